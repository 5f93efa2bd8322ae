"""An ordinary data-parallel script that knows nothing of restow: its own process group, its own checkpoint.

    python examples/plain_ddp.py --checkpoint plain.pt                               alone
    torchrun --nproc-per-node 2 examples/plain_ddp.py --checkpoint plain.pt          data-parallel
    restow submit -n 2 -- python examples/plain_ddp.py --checkpoint /shared/plain.pt

SIGTERM makes it save after the step under way and leave with code 143; started again with the same --checkpoint it goes
on where it was. So restow can move it too, by a stop and a start: the price is the start. The checkpoint has to be on a
disk that every node sees. With three ranks or more the numbers after a restart may differ in the last bit: a new DDP
reduces its first step in other buckets. A script under the SDK has neither cost; compare digits_cnn.py.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from digest import History, plain, write_digest

STOPPED = 128 + signal.SIGTERM


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps in all")
    parser.add_argument("--batch", type=int, default=32, help="images per rank and step")
    parser.add_argument("--checkpoint", default="", metavar="FILE", help="saved here on SIGTERM, gone on from here")
    parser.add_argument("--log-every", type=int, default=50, metavar="N", help="print the loss every N steps; 0: never")
    parser.add_argument("--digest", default="", metavar="FILE", help="write all losses and a fingerprint of the end")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def any_rank(wish: bool, world_size: int) -> bool:
    """Does any rank wish it? All ranks must ask at the same step: a signal reaches them at different times."""
    flag = torch.tensor(float(wish))
    if world_size > 1:
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def save(path: Path, rank: int, world_size: int, state: dict[str, Any]) -> None:
    """Rank 0 writes everybody's own part (random states, losses) and, once, what all ranks have in common."""
    own = {"torch": torch.get_rng_state(), "python": random.getstate(), "losses": state.pop("losses")}
    everybody: list[Any] = [own]
    if world_size > 1:
        everybody = [None] * world_size
        dist.all_gather_object(everybody, own)
    if rank == 0:
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        torch.save({**state, "ranks": everybody}, unfinished)
        unfinished.replace(path)  # the old checkpoint stays whole until the new one is


def main() -> int:
    chosen = options()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    torch.manual_seed(chosen.seed + rank)
    random.seed(chosen.seed + rank)
    if world_size > 1:
        dist.init_process_group("gloo")
    code = work(chosen, rank, world_size, asked)  # its model is gone by then: torch may abort where one outlives the group
    if world_size > 1:
        dist.destroy_process_group()
    return code


def work(chosen: argparse.Namespace, rank: int, world_size: int, asked: list[int]) -> int:
    """From the data to the end, or until somebody asks to leave; the exit code."""
    images, labels = load_digits(return_X_y=True)
    dataset = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
    sampler = DistributedSampler(dataset, world_size, rank, shuffle=True, seed=chosen.seed, drop_last=True)
    loader = DataLoader(dataset, chosen.batch, sampler=sampler, drop_last=True)

    model: nn.Module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 10))
    if world_size > 1:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = History()

    checkpoint = Path(chosen.checkpoint) if chosen.checkpoint else None
    if checkpoint and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)  # our own file; holds Python's random state too
        if len(saved["ranks"]) != world_size:
            raise SystemExit(f"{checkpoint} was written by {len(saved['ranks'])} ranks; this job has {world_size}")
        plain(model).load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        own = saved["ranks"][rank]
        torch.set_rng_state(own["torch"])
        random.setstate(own["python"])
        history.load_state_dict({"losses": own["losses"]})
        if rank == 0:
            print(f"goes on after step {len(history.losses)}", flush=True)

    code = train(chosen, model, optimizer, loader, history, checkpoint, rank, world_size, asked)
    if code == 0 and chosen.digest:
        write_digest(chosen.digest, rank, history, model, optimizer)
    return code


def train(
    chosen: argparse.Namespace,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[tuple[Tensor, ...]],
    history: History,
    checkpoint: Path | None,
    rank: int,
    world_size: int,
    asked: list[int],
) -> int:
    """Train up to `steps`; returns the exit code: 0 when all were made, STOPPED when somebody asked to leave."""
    while len(history.losses) < chosen.steps:
        epoch, position = divmod(len(history.losses), len(loader))
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        before = torch.get_rng_state()  # a loader draws a number when it starts; a run in one piece must not differ
        for number, (inputs, targets) in enumerate(loader):
            if number == 0:
                torch.set_rng_state(before)
            if number < position:
                continue  # seen before the restart
            loss = functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            history.losses.append(loss.item())
            made = len(history.losses)
            if rank == 0 and chosen.log_every and made % chosen.log_every == 0:
                print(f"step {made} loss {history.losses[-1]:.4f} {history.losses[-1].hex()}", flush=True)
            if any_rank(bool(asked), world_size):
                if checkpoint:
                    state = {"model": plain(model).state_dict(), "optimizer": optimizer.state_dict()}
                    save(checkpoint, rank, world_size, {**state, "losses": history.losses})
                if rank == 0:
                    where = f"saved in {checkpoint}" if checkpoint else "nothing saved (no --checkpoint)"
                    print(f"asked to leave after step {made}; {where}", flush=True)
                return STOPPED
            if made == chosen.steps:
                break
    return 0


if __name__ == "__main__":
    sys.exit(main())
