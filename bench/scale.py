"""A job of four ranks on four, two and one devices, changed while it trains: how fast is it, and do the numbers stay?

    python bench/scale.py --json scale.json
    python bench/scale.py --json scale.json --rounds 5 --state-mb 100

One lab machine with four devices, equal shares of its cores. The number of devices goes 4, 2, 1, 2, 4, ... in one run.

    half_speed_ratio     speed on two devices by half the speed on four; each phase on two against its neighbours on four
    quarter_speed_ratio  speed on one device by a quarter of the speed on four
    shrink_bit_identical every loss and the final parameters equal those of the same job left on four
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench import timeline  # noqa: E402
from bench.options import new_file  # noqa: E402
from bench.systems.restow import Cluster, Watched, digests  # noqa: E402
from restow.lab import Lab  # noqa: E402

WORKERS = 4
SETTLE, WINDOW = 8, 30  # steps after a change that do not count, and that do


def main() -> None:
    options = _options()
    numbers = measured(options.rounds, options.state_mb, recover=options.recover)
    options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    print("\n".join(lines(numbers)))


def lines(numbers: dict[str, Any]) -> list[str]:
    """For people."""
    steps = ", ".join(f"{n} {1e3 * s:.0f} ms" for n, s in sorted(numbers["step_s"].items(), reverse=True))
    found = [f"{at:.3f}" for at in sorted(numbers["halves"])]
    return [
        f"a step on so many devices: {steps}",
        f"speed on 2 by half of that on 4: {numbers['half_speed_ratio']:.3f} ({found[0]} to {found[-1]})",
        f"speed on 1 by a quarter of it:   {numbers['quarter_speed_ratio']:.3f}",
        f"numbers: {'bit-identical' if numbers['shrink_bit_identical'] else 'other ones'}",
    ]


def measured(rounds: int, state_mb: float, *, recover: bool = True) -> dict[str, Any]:
    """The numbers, as they are written."""
    phases = [4, *[number for _ in range(rounds) for number in (2, 1, 2, 4)]]
    steps = (SETTLE + WINDOW + 8) * len(phases) + 20  # a change takes some steps, too
    script = [f"--state-mb={state_mb:g}", f"--steps={steps}", "--batch=16", "--samples=7200"]
    with Lab(nodes=1, devices=WORKERS, rate_bits_per_s=None) as lab:
        every = json.loads(Path(lab.nodes["m1"].devices_file).read_text())["devices"]
        with Cluster(lab, nodes=("m1",), devices={"m1": every}) as cluster:
            job = Watched(cluster, cluster.submit("scaled", "auto", script, workers=WORKERS, devices=(1, WORKERS), recover=recover))
            windows: list[tuple[int, int, int]] = []  # devices, first and last step
            job.wait_until("its first steps", lambda view: view["movable"])
            for number in phases:
                if number != len(set(job.show()["placement"])):
                    cluster.client.scale(job.job, number)
                view = job.wait_until(f"{number} devices", lambda view, number=number: len(set(view["placement"])) == number)
                first = view["step"] + SETTLE
                job.wait_until("its steps", lambda view, last=first + WINDOW: view["step"] >= last)
                windows.append((number, first, first + WINDOW))
            job.wait_until("its end", lambda view: view["state"] == "done", timeout_s=900)
            alone = Watched(cluster, cluster.submit("alone", "auto", script, workers=WORKERS))
            alone.wait_until("its end", lambda view: view["state"] == "done", timeout_s=900)
            marks, reference = timeline.read_marks(job.lines()), timeline.read_marks(alone.lines())
            same = timeline.same_run(marks, digests(job.lines()), reference, digests(alone.lines()))
    times = [(number, _step_s(marks, first, last)) for number, first, last in windows]
    halves = [_ratio(times, at, 2) for at, (number, _) in enumerate(times) if number == 2]
    quarters = [_ratio(times, at, 4) for at, (number, _) in enumerate(times) if number == 1]
    return {
        "shrink_bit_identical": same, "half_speed_ratio": median(halves), "quarter_speed_ratio": median(quarters),
        "halves": halves, "step_s": {number: median(s for n, s in times if n == number) for number in (4, 2, 1)},
    }  # fmt: skip


def _step_s(marks: list[timeline.Mark], first: int, last: int) -> float:
    """Seconds per step, from the slowest rank's end of one to the end of the next."""
    ends = [max(mark.end_s for mark in marks if mark.step == step) for step in (first, last)]
    return (ends[1] - ends[0]) / (last - first)


def _ratio(times: list[tuple[int, float]], at: int, fewer: int) -> float:
    """Against the mean of the nearest phases on all devices, before and after."""
    before = next(s for number, s in reversed(times[:at]) if number == WORKERS)
    after = next(s for number, s in times[at:] if number == WORKERS)
    return fewer * (before + after) / 2 / times[at][1]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the numbers here")
    parser.add_argument("--rounds", type=int, default=3, help="times that the number goes down and up again")
    parser.add_argument("--no-recover", dest="recover", action="store_false", help="without what it costs to outlive lost workers")
    parser.add_argument("--state-mb", type=float, default=20.0)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return parser.parse_args()


if __name__ == "__main__":
    main()
