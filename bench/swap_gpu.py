"""How fast training state leaves a GPU and comes back, against a plain copy through pinned memory.

    python bench/swap_gpu.py --json swap-gpu.json

In one process, in rounds of (plain copy out and back, swap out, swap back) of as many bytes; each round gives one ratio each.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

import torch  # noqa: E402

from bench.options import new_file  # noqa: E402
from bench.swap import said, spread  # noqa: E402
from restow.sdk.boxes import StateTable  # noqa: E402
from restow.sdk.swap import StorageSwap  # noqa: E402

WIDTH = 1024


def rates(state_mb: float, rounds: int) -> dict[str, Any]:
    layers = max(1, round(state_mb * 1e6 / (WIDTH * WIDTH * 4 * 3)))  # parameters and two moments
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(layers))).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(4, WIDTH, device="cuda")).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    swap = StorageSwap(StateTable({"model": model, "optimizer": optimizer}))
    moved = swap.out()  # makes and pins the arena
    swap.back()
    here = torch.ones(moved, dtype=torch.uint8, device="cuda")
    there = torch.empty(moved, dtype=torch.uint8, pin_memory=True)
    acts: dict[str, Callable[[], object]] = {
        "plain out": lambda: there.copy_(here, non_blocking=True),
        "plain back": lambda: here.copy_(there, non_blocking=True),
        "out": swap.out,
        "back": swap.back,
    }
    seen: dict[str, list[float]] = {name: [] for name in acts}
    for number in range(rounds + 1):  # the first warms up
        for name, act in acts.items():
            torch.cuda.synchronize()
            begin_s = time.perf_counter()
            act()
            torch.cuda.synchronize()
            if number:
                seen[name].append(moved / (time.perf_counter() - begin_s) / 1e9)
    return {
        "moved_mb": moved / 1e6,
        **{f"{name} gb_s".replace(" ", "_"): spread(found) for name, found in seen.items()},
        "out_ratio": spread([a / b for a, b in zip(seen["out"], seen["plain out"], strict=True)]),
        "back_ratio": spread([a / b for a, b in zip(seen["back"], seen["plain back"], strict=True)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the numbers here")
    parser.add_argument("--sizes", type=float, nargs="*", default=[100.0, 1000.0], help="states, in 10^6 bytes")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU here; bench/swap.py measures the CPU's back ends")
    rows = []
    for state_mb in options.sizes:
        row = rates(state_mb, options.rounds)
        rows.append(row)
        found = ", ".join(f"{name} {said(row[name])}" for name in row if name != "moved_mb")
        print(f"{row['moved_mb']:.0f} MB, GB/s: {found}", flush=True)
    numbers = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rates": rows}
    options.json.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
