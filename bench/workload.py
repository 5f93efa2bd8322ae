"""What all training scripts of the benchmarks share: the model, the data, and the lines by which a run is measured.

A script holds only its training loop and what its system asks of it, so that the difference to `rivals/plain.py` can be
counted. Knows nothing of restow or of any rival.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

BYTES_PER_PARAMETER = 12  # float32: the parameter and the two moments of AdamW
FEATURES, CLASSES = 64, 10


def options() -> argparse.Namespace:
    """The command line of every training script; a script ignores what it has no use for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state-mb", type=float, default=100.0, help="model and AdamW together, in 10^6 bytes")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps in all")
    parser.add_argument("--batch", type=int, default=4, help="samples per rank and step")
    parser.add_argument("--samples", type=int, default=360, help="samples of the data set; one epoch")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--batchnorm", action="store_true")
    parser.add_argument("--checkpoint", default="", help="folder for the checkpoints of systems that need one")
    parser.add_argument("--move-at", type=int, default=-1, help="the step before which such a system saves and stops")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(chosen.seed)
    return chosen


def model(chosen: argparse.Namespace) -> nn.Module:
    """A stack of equal linear layers with about `state_mb` of state; cheap to compute at small batches."""
    parameters = chosen.state_mb * 1e6 / BYTES_PER_PARAMETER
    width = 2048 if parameters > 40e6 else 1024 if parameters > 2e6 else 128
    depth = max(1, round((parameters - width * (FEATURES + CLASSES)) / (width * width + width)))
    layers: list[nn.Module] = [nn.Linear(FEATURES, width)]
    for _ in range(depth):
        layers += [nn.GELU(), nn.Dropout(chosen.dropout)]
        layers += [nn.BatchNorm1d(width)] if chosen.batchnorm else []
        layers += [nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def loader(chosen: argparse.Namespace, rank: int, world_size: int) -> DataLoader[tuple[Tensor, ...]]:
    """Shuffled batches of this rank. Its own generator: making an iterator leaves the global random state alone."""
    generator = torch.Generator().manual_seed(chosen.seed)
    inputs = torch.randn(chosen.samples, FEATURES, generator=generator)
    targets = torch.randint(CLASSES, (chosen.samples,), generator=generator)
    dataset = TensorDataset(inputs, targets)
    sampler = DistributedSampler(dataset, world_size, rank, shuffle=True, seed=chosen.seed, drop_last=True)
    return DataLoader(dataset, chosen.batch, sampler=sampler, drop_last=True, generator=generator)


def batches(loader: DataLoader[tuple[Tensor, ...]], first: int, last: int) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """(step, batch) for the steps `first` up to, not including, `last`, over as many epochs as that takes."""
    step = first - first % len(loader)
    while step < last:
        loader.sampler.set_epoch(step // len(loader))  # type: ignore[attr-defined]
        for batch in loader:
            if first <= step < last:
                yield step, batch
            step += 1


class Marks:
    """Prints one line per step (and one at the end) that the harness reads; times are time.monotonic()."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._start_s = 0.0

    def begin(self) -> None:
        """The batch is there; the step begins."""
        self._start_s = time.monotonic()

    def end(self, step: int, loss: Tensor) -> None:
        """The optimizer has stepped."""
        value = float(loss.detach()).hex()
        self._say("step", step=step, start_s=self._start_s, end_s=time.monotonic(), loss=value)

    def note(self, what: str, **fields: object) -> None:
        """Something else that the harness wants to know the time of, for example the beginning of a save."""
        self._say("note", what=what, time_s=time.monotonic(), **fields)

    def finish(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """All steps are done; the digest covers every parameter, buffer and optimizer state."""
        self._say("end", digest=digest(model, optimizer), state_bytes=state_bytes(model, optimizer))

    def _say(self, kind: str, **fields: object) -> None:
        # one write per line (print would make two): lines of several ranks share a file
        sys.stdout.write(f"@{kind} {json.dumps({'rank': self.rank, 'pid': os.getpid(), **fields})}\n")
        sys.stdout.flush()


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    yield from model.state_dict().values()
    for _, entry in sorted(optimizer.state_dict()["state"].items()):
        yield from (entry[name] for name in sorted(entry) if isinstance(entry[name], Tensor))


def digest(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """SHA-256 over the bytes of every parameter, buffer and optimizer state, in a fixed order."""
    whole = hashlib.sha256()
    for tensor in _state(model, optimizer):
        whole.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return whole.hexdigest()


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of model and optimizer of one rank."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _state(model, optimizer))
