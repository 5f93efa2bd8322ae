"""What a run was, bit for bit: every loss it printed and a fingerprint of what it ended with.

Two runs are the same run if these files are equal. Shared by the examples; it needs nothing of restow.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn


class History:
    """The losses of this rank so far. With `state_dict` and `load_state_dict` it can be carried through a move."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def state_dict(self) -> dict[str, list[float]]:
        return {"losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.losses[:] = state["losses"]


def plain(model: nn.Module) -> nn.Module:
    """The module itself, out of its DDP wrapping."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """SHA-256 over names and bytes of every parameter, buffer and tensor of optimizer state, in a fixed order."""
    whole = hashlib.sha256()
    for name, tensor in _tensors(plain(model), optimizer):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return whole.hexdigest()


def write_digest(
    path: str, rank: int, history: History, model: nn.Module, optimizer: torch.optim.Optimizer, **more: object
) -> None:
    """Write `path` (rank 0) or `path.rank<r>`: the fingerprint, and the losses in hexadecimal, no digit lost."""
    target = Path(path if rank == 0 else f"{path}.rank{rank}")
    digest = {
        "rank": rank,
        "steps": len(history.losses),
        "losses": [loss.hex() for loss in history.losses],
        "sha256": fingerprint(model, optimizer),
        **more,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(digest, indent=1) + "\n")
    unfinished.replace(target)  # a reader sees the whole file or none


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    yield from model.state_dict().items()
    for index, entry in sorted(optimizer.state_dict()["state"].items()):
        for key in sorted(entry):
            value = entry[key]
            yield f"{index}.{key}", value if isinstance(value, Tensor) else torch.tensor(value)
