"""An ordinary data-parallel training script. It cannot be moved; the others are compared with it line by line."""

from __future__ import annotations

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
    model = DistributedDataParallel(workload.model(options))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = workload.loader(options, rank, world_size)
    torch.manual_seed(options.seed + rank)
    for step, (inputs, targets) in workload.batches(loader, 0, options.steps):
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
