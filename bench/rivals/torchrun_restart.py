"""Stop at the move step, `torch.save`, and start again elsewhere under a new torchrun."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from bench import workload


def main() -> None:
    options = workload.options()
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    marks = workload.Marks(rank)
    model = workload.model(options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = workload.loader(options, rank, world_size)
    torch.manual_seed(options.seed + rank)
    first = 0
    saved, mine = Path(options.checkpoint, "state.pt"), Path(options.checkpoint, f"rank{rank}.pt")
    if saved.exists():
        state = torch.load(saved, mmap=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    model = DistributedDataParallel(model, init_sync=not saved.exists())
    if saved.exists():
        torch.set_rng_state(torch.load(mine))
    for step, (inputs, targets) in workload.batches(loader, first, options.steps):
        if step == options.move_at and first == 0:
            marks.note("move")
            torch.save(torch.get_rng_state(), mine)
            if rank == 0:
                state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save(state, saved)
            dist.barrier()
            marks.note("saved")
            return
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
