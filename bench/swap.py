"""How fast training state leaves memory and comes back, and what two jobs lose that have to take turns in it.

    python bench/swap.py --json swap.json

No GPU: the CPU's memory stands for a device's, so these numbers say how near both back ends come to a plain copy, not how fast
a link is. Rates: in one process, in rounds of (plain copy, out, back) of as many bytes, each round gives one ratio; the plain copy
is the better of one thread and two. `kept` is with arena.keep_freed_memory(): no page goes back to the kernel, as on a device,
whose memory needs no page faults. `at once` and plain `storage` give pages back and pay for fresh ones.
The pair: two processes, each with state that fills the pretended device, take turns of the length that
quantum_s chooses, in windows that alternate: with swapping, and with both left where they are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

import torch  # noqa: E402

from bench import workload  # noqa: E402
from bench.options import new_file  # noqa: E402
from restow.sdk import arena  # noqa: E402
from restow.sdk.boxes import StateTable  # noqa: E402
from restow.sdk.footprint import MemoryWatch  # noqa: E402
from restow.sdk.swap import MappedSwap, StorageSwap, quantum_s  # noqa: E402

BACK_ENDS: dict[str, Callable[[StateTable], StorageSwap | MappedSwap]] = {
    "storage": StorageSwap,
    "storage, kept": StorageSwap,
    "mapped": MappedSwap,
    "mapped, at once": partial(MappedSwap, lazily=False),
}


def main() -> None:
    options = _options()
    if options.part == "rates":
        print(json.dumps(rates(options.back_end, options.state_mb, options.rounds)))
        return
    if options.part == "job":
        Job(options.back_end, options.state_mb, options.batch).serve()
        return
    rows = []
    for state_mb in options.sizes:
        for back_end in BACK_ENDS:
            row = part("rates", back_end, state_mb, options)
            rows.append(row)
            print(
                f"{back_end:<15} {row['moved_mb']:6.0f} MB, {row['freed_mb']:.0f} freed; GB/s: out {said(row['out_gb_s'])}, "
                f"back {said(row['back_gb_s'])}, plain copy {said(row['plain_gb_s'])}; of the plain copy: "
                f"out {said(row['out_ratio'])}, back {said(row['back_ratio'])}",
                flush=True,
            )
    pairs = [pair(back_end, options) for back_end in options.pairs]
    for row in pairs:
        print(
            f"pair, {row['back_end']:<15} 2 x {row['state_mb']:.0f} MB on {row['device_mb']:.0f} MB: "
            f"swap {row['swap_s'] * 1e3:.0f} ms, turns of {row['quantum_s']:.1f} s, "
            f"speed {said(row['ratio'])} of the same turns without swapping",
            flush=True,
        )
    watch_us = watch_cost_us()
    print(f"memory watch   {watch_us:.1f} us per step")
    options.json.write_text(json.dumps({"rates": rows, "pairs": pairs, "watch_us_per_step": watch_us}, indent=1) + "\n")


def part(name: str, back_end: str, state_mb: float, options: argparse.Namespace) -> dict[str, Any]:
    """A part of this file in a process of its own: malloc's settings and what it keeps stay there."""
    words = [__file__, "--part", name, "--back-end", back_end, "--state-mb", str(state_mb), "--rounds", str(options.rounds)]
    answer = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(answer.stdout))


# ---------------------------------------------------------------- rates


def made(state_mb: float, batch: int) -> tuple[StateTable, Callable[[], None]]:
    """A stack of linear layers with AdamW, one step old; and its step. Gradients are cleared, so all state must be kept."""
    torch.manual_seed(7)
    model = workload.model(argparse.Namespace(state_mb=state_mb, dropout=0.1, batchnorm=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs, targets = torch.randn(batch, workload.FEATURES), torch.randint(workload.CLASSES, (batch,))

    def step() -> None:
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return StateTable({"model": model, "optimizer": optimizer}), step


def rates(back_end: str, state_mb: float, rounds: int) -> dict[str, Any]:
    if back_end.endswith("kept"):
        arena.keep_freed_memory()
    table, step = made(state_mb, batch=4)
    swap = BACK_ENDS[back_end](table)
    begin_s = time.perf_counter()
    moved = swap.out()
    first_out_s = time.perf_counter() - begin_s  # makes and touches the arena
    swap.back()
    here, there = torch.ones(moved, dtype=torch.uint8), torch.ones(moved, dtype=torch.uint8)
    before = held_bytes()
    seen: dict[str, list[float]] = {"one": [], "two": [], "out": [], "back": []}
    acts: dict[str, Callable[[], object]] = {
        "one": lambda: arena.copy_in_host([(there, here)], threads=1),
        "two": lambda: arena.copy_in_host([(there, here)], threads=2),
        "out": swap.out,
        "back": swap.back,
    }
    freed = 0
    for number in range(rounds + 1):  # the first warms up
        step()
        for name in ("one", "two", "out", "back") if number % 2 else ("out", "back", "two", "one"):
            begin_s = time.perf_counter()
            acts[name]()
            taken_s = time.perf_counter() - begin_s
            if number:
                seen[name].append(moved / taken_s / 1e9)
            if name == "out":
                freed = before - held_bytes()
    plain = [max(pair) for pair in zip(seen["one"], seen["two"], strict=True)]
    return {
        "back_end": back_end,
        "state_mb": state_mb,
        "moved_mb": moved / 1e6,
        "freed_mb": freed / 1e6,
        "first_out_s": first_out_s,
        "plain_one_thread_gb_s": spread(seen["one"]),
        "plain_two_threads_gb_s": spread(seen["two"]),
        "plain_gb_s": spread(plain),
        "out_gb_s": spread(seen["out"]),
        "back_gb_s": spread(seen["back"]),
        "out_ratio": spread([a / b for a, b in zip(seen["out"], plain, strict=True)]),
        "back_ratio": spread([a / b for a, b in zip(seen["back"], plain, strict=True)]),
        "rounds": rounds,
    }


def held_bytes() -> int:
    """Private memory that the kernel cannot simply take."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    kilobytes = {line.split()[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
    return (kilobytes["Anonymous:"] - kilobytes["LazyFree:"]) << 10


def watch_cost_us(steps: int = 20_000) -> float:
    watch = MemoryWatch()
    begin_s = time.perf_counter()
    for _ in range(steps):
        watch.step()
    return (time.perf_counter() - begin_s) / steps * 1e6


# ---------------------------------------------------------------- two jobs in turns


class Job:
    """One process of a pair. Does what it is told on its standard input, and says one line of JSON for each."""

    def __init__(self, back_end: str, state_mb: float, batch: int):
        if back_end.endswith("kept"):
            arena.keep_freed_memory()
        table, self.step = made(state_mb, batch)
        self.swap = BACK_ENDS[back_end](table)
        self.out_s = 0.0
        taken = []
        for _ in range(3):  # the first makes the arena
            self.step()
            begin_s = time.perf_counter()
            self.swap.out()
            self.out_s = time.perf_counter() - begin_s
            self.swap.back()
            taken.append(time.perf_counter() - begin_s)
        self.swap_s = median(taken[1:])

    def serve(self) -> None:
        self.say(swap_s=self.swap_s, state_mb=self.swap.resident_bytes() / 1e6)
        for line in sys.stdin:
            word, _, length_s = line.strip().partition(" ")
            if word == "in":
                self.swap.back()
                self.say()
            elif word == "out":
                self.swap.out()
                self.say()
            else:
                self.say(steps=self.turn(float(length_s), word == "swapping"))

    def turn(self, length_s: float, is_swapping: bool) -> int:
        end_s = time.perf_counter() + length_s - (self.out_s if is_swapping else 0.0)
        if is_swapping:
            self.swap.back()
        steps = 0
        while time.perf_counter() < end_s:
            self.step()
            steps += 1
        if is_swapping:
            begin_s = time.perf_counter()
            self.swap.out()
            self.out_s = time.perf_counter() - begin_s
        return steps

    def say(self, **words: float) -> None:
        print(json.dumps({**words, "resident_mb": self.swap.resident_bytes() / 1e6}), flush=True)


class Told:
    """The other end of a Job."""

    def __init__(self, back_end: str, state_mb: float, batch: int):
        words = [__file__, "--part=job", "--back-end", back_end, "--state-mb", str(state_mb), "--batch", str(batch)]
        self.process = subprocess.Popen([sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.last = self.hear()

    def tell(self, word: str) -> dict[str, float]:
        assert self.process.stdin
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self) -> dict[str, float]:
        assert self.process.stdout
        self.last = json.loads(self.process.stdout.readline())
        return self.last

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)


def pair(back_end: str, options: argparse.Namespace) -> dict[str, Any]:
    jobs = [Told(back_end, options.pair_mb, options.batch) for _ in range(2)]  # one after the other: nobody disturbs a measurement
    try:
        swap_s, state_mb = max(job.last["swap_s"] for job in jobs), max(job.last["state_mb"] for job in jobs)
        length_s = max(quantum_s(swap_s, options.budget), options.turn_min)
        speeds: dict[str, list[float]] = {"swapping": [], "staying": []}
        held_mb: list[float] = []
        for number in range(options.windows + 1):  # the first warms up
            for kind in ("swapping", "staying") if number % 2 else ("staying", "swapping"):
                for job in jobs:
                    job.tell("out" if kind == "swapping" else "in")
                steps, begin_s = 0.0, time.monotonic()
                for _ in range(options.turns):
                    for job in jobs:
                        steps += job.tell(f"{kind} {length_s}")["steps"]
                        held_mb.append(sum(each.last["resident_mb"] for each in jobs) if kind == "swapping" else 0.0)
                if number:
                    speeds[kind].append(steps / (time.monotonic() - begin_s))
    finally:
        for job in jobs:
            job.end()
    return {
        "back_end": back_end,
        "state_mb": state_mb,
        "device_mb": state_mb,  # of the pretended device: one of the two fits
        "left_between_turns_mb": max(held_mb),
        "budget": options.budget,
        "swap_s": swap_s,
        "quantum_s": length_s,
        "steps_per_s_swapping": spread(speeds["swapping"]),
        "steps_per_s_staying": spread(speeds["staying"]),
        "ratio": spread([a / b for a, b in zip(speeds["swapping"], speeds["staying"], strict=True)]),
        "windows": options.windows,
        "turns_each_per_window": options.turns,
    }


# ---------------------------------------------------------------- numbers


def spread(numbers: Sequence[float]) -> list[float]:
    """[median, lower quartile, upper quartile]"""
    low, middle, high = quantiles(numbers, n=4, method="inclusive") if len(numbers) > 1 else numbers * 3
    return [middle, low, high]


def said(numbers: Sequence[float]) -> str:
    middle, low, high = numbers
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, default=Path(os.devnull), help="write the numbers here")
    parser.add_argument("--sizes", type=float, nargs="*", default=[100.0, 500.0, 1000.0], help="states, in 10^6 bytes")
    parser.add_argument("--rounds", type=int, default=15, help="of each size and back end")
    parser.add_argument("--pairs", nargs="*", choices=[*BACK_ENDS], default=["storage", "mapped"], help="back ends of the pair")
    parser.add_argument("--pair-mb", type=float, default=500.0, help="state of each of the two jobs")
    parser.add_argument("--batch", type=int, default=64, help="samples per step of the two jobs")
    parser.add_argument("--budget", type=float, default=0.05, help="the share of a turn that swapping may take")
    parser.add_argument("--turn-min", type=float, default=0.5, help="no turn is shorter, in seconds")
    parser.add_argument("--windows", type=int, default=5, help="windows of each kind")
    parser.add_argument("--turns", type=int, default=2, help="turns of each job per window")
    parser.add_argument("--part", choices=["rates", "job"], help=argparse.SUPPRESS)
    parser.add_argument("--back-end", choices=[*BACK_ENDS], help=argparse.SUPPRESS)
    parser.add_argument("--state-mb", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
