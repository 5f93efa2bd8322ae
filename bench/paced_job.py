"""A small training job with steps of a fixed amount of computing, for the cost per step when nothing moves.

Runs under restow and, unchanged, under torchrun. It trains in windows and waits for its turn before each, so that two jobs can
be compared in turns on the same machine. Writes the times from the end of one step to the end of the next, and the processor time.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import restow
from bench import workload


def say(kind: str, number: int, **fields: object) -> None:
    """A file for the harness: it sees that cheaply, in the same way under every system, and disturbs nobody by looking."""
    turn, rank = Path(os.environ["PACE_TURN"]), os.environ["RANK"]
    path = turn.with_name(f"{os.environ['PACE_NAME']}.{kind}{number}.rank{rank}")
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(fields))
    fresh.rename(path)


def wait_for_turn(window: int) -> None:
    """Until the file names this job and a window that is not before ours."""
    turn, name = Path(os.environ["PACE_TURN"]), os.environ["PACE_NAME"]
    while True:
        whose, number = turn.read_text().split()
        if whose in (name, "all") and int(number) >= window:
            return
        time.sleep(0.002)


def main() -> None:
    options = workload.options()
    length, work = int(os.environ["PACE_STEPS"]), int(os.environ["PACE_WORK"])
    job = restow.init(seed=options.seed)
    model = workload.model(options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = job.prepare(model, optimizer)
    loader = workload.loader(options, job.rank, job.world_size)
    square, ends, used_s = torch.randn(256, 256) / 16, [], 0.0
    for step, (inputs, targets) in enumerate(job.steps(loader, total=options.steps)):
        if step % length == 0 and not job.is_rehearsal:
            wait_for_turn(step // length)
        optimizer.zero_grad()
        for _ in range(work):  # the fixed part of a step
            square = (square @ square).clamp(-1, 1)
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        ends.append(time.monotonic())
        if len(ends) == 1:
            used_s = time.process_time()
        if step == 0:
            say("first", 0, time_s=ends[-1])
        if len(ends) == length:  # the first step of a window is left out: it follows a wait
            periods_s = [b - a for a, b in itertools.pairwise(ends)]
            say("window", step // length, periods_s=periods_s, cpu_s=(time.process_time() - used_s) / len(periods_s))
            ends = []

    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # nobody leaves while another still reads from it


if __name__ == "__main__":
    main()
