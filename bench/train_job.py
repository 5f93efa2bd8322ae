"""The training script that restow moves. Also runs under plain torchrun, where the SDK does nothing.

Compare with `rivals/plain.py`: the same model, data and random generators.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

import restow
from bench import workload


def main() -> None:
    options = workload.options()
    job = restow.init(seed=options.seed)
    marks = workload.Marks(job.rank)
    model = workload.model(options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = job.prepare(model, optimizer)
    loader = workload.loader(options, job.rank, job.world_size)
    torch.manual_seed(options.seed + job.rank)
    for inputs, targets in job.steps(loader, total=options.steps):
        marks.begin()
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        marks.end(job.step, loss)
    marks.finish(model, optimizer)


if __name__ == "__main__":
    main()
