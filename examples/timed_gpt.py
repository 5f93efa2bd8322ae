"""The GPT of chars_gpt.py, one that says after each step when it ended, what processor time it took and what came out.

    torchrun --nproc-per-node 2 examples/timed_gpt.py --stop-after 20
    restow submit -n 2 --share interleave -- python examples/timed_gpt.py

    @step {"rank": 0, "step": 12, "end_s": 5021.253, "cpu_s": 0.118, "loss": "0x1.0ae3p+2"}

Each rank prints its own lines: `end_s` is of the machine's monotonic clock, the loss is in hexadecimal, no digit lost. So two runs
can be compared bit by bit even if one of them was ended in the middle. `--stop-after` ends early what is scheduled for `--steps`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

import restow
from chars_gpt import GPT, Text, read_text
from digest import History


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000, help="optimizer steps that the learning rate is planned for")
    parser.add_argument("--stop-after", type=int, default=0, metavar="N", help="end after N steps; 0: after --steps")
    parser.add_argument("--batch", type=int, default=8, help="pieces of text per rank and step")
    parser.add_argument("--context", type=int, default=64, help="characters that the model sees")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--characters", type=int, default=400_000, help="how much text to read")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.width % chosen.heads:
        parser.error(f"--width {chosen.width} cannot be divided among --heads {chosen.heads}")
    return chosen


def main() -> None:
    chosen = options()
    job = restow.init(seed=chosen.seed)
    loader = DataLoader(Text(read_text(chosen.characters), chosen.context), chosen.batch, shuffle=True, drop_last=True)
    model = GPT(chosen.layers, chosen.width, chosen.heads, chosen.context, chosen.dropout).to(job.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=chosen.lr, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=chosen.steps)
    model, optimizer, schedule = job.prepare(model, optimizer, schedule)
    history = History()
    job.carry("history", history)

    used_s = time.process_time()
    for text, following in job.steps(loader, total=chosen.stop_after or chosen.steps):
        scores = model(text.to(job.device))
        loss = functional.cross_entropy(scores.flatten(0, 1), following.to(job.device).flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        value = loss.item()
        history.losses.append(value)
        job.report(loss=value)
        before_s, used_s = used_s, time.process_time()
        mark = {
            "rank": job.rank,
            "step": len(history.losses),
            "end_s": round(time.monotonic(), 6),
            "cpu_s": round(used_s - before_s, 6),
            "loss": value.hex(),
        }
        sys.stdout.write(f"@step {json.dumps(mark)}\n")  # one write: lines of several ranks may share a file
        sys.stdout.flush()


if __name__ == "__main__":
    main()
