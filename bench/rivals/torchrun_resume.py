"""torchrun: every rank goes on from the last checkpoint, made every 10 steps into shared memory, when torchrun starts it again."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from bench import workload

SAVE_EVERY = 10  # steps


def main() -> None:
    options = workload.options()
    dist.init_process_group("gloo", timeout=timedelta(seconds=10))  # a machine that is cut off says nothing, and 30 min are long
    rank, world_size = dist.get_rank(), dist.get_world_size()
    marks = workload.Marks(rank)
    model = workload.model(options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = workload.loader(options, rank, world_size)
    torch.manual_seed(options.seed + rank)
    first = 0
    saved = sorted(Path(options.checkpoint).glob("step*.pt"), key=lambda path: int(path.stem[4:]))
    if saved:
        state = torch.load(saved[-1], mmap=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    model = DistributedDataParallel(model, init_sync=not saved)
    if saved:
        torch.set_rng_state(torch.load(Path(options.checkpoint, f"random{first}.rank{rank}.pt")))
    for step, (inputs, targets) in workload.batches(loader, first, options.steps):
        if step % SAVE_EVERY == 0 and step > first:
            torch.save(torch.get_rng_state(), Path(options.checkpoint, f"random{step}.rank{rank}.pt"))
            dist.barrier()
            if rank == 0:
                state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                path = Path(options.checkpoint, f"step{step}.pt")
                torch.save(state, path.with_suffix(".new"))
                os.replace(path.with_suffix(".new"), path)
        marks.begin()
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        marks.end(step, loss)
    marks.finish(model, optimizer)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
