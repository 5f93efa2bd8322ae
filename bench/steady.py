"""What it costs that a job can outlive a lost worker, while none is lost: the same job with it and without it (`recover: false`),
in paired windows on the same cores.

    python bench/steady.py --json steady.json
    python bench/steady.py --json steady.json --step-ms 20 --state-mb 1

Three ranks on one machine of a lab, each with a device of its own, an equal share of the cores; they compute a fixed amount besides
training a model of `--state-mb`. A job that has its window computes, the other one waits.

    steady_cost   the median of the pairs of windows: a step with it, by one without it, less 1
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench.options import new_file  # noqa: E402
from bench.overhead import Turn, differences, pace, steps_of_work, submit, take_turns  # noqa: E402
from bench.systems.restow import Cluster  # noqa: E402
from restow.lab import Lab  # noqa: E402

RANKS = 3
NAMES = ("with", "without")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the numbers here")
    parser.add_argument("--windows", type=int, default=20, help="pairs of windows")
    parser.add_argument("--steps", type=int, default=20, help="steps per window")
    parser.add_argument("--step-ms", type=float, default=100.0, help="fixed computing per step")
    parser.add_argument("--state-mb", type=float, default=20.0)
    options = parser.parse_args()
    numbers = measured(options.windows, options.steps, options.step_ms, options.state_mb)
    options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    print("\n".join(lines(numbers)))


def measured(windows: int = 20, steps: int = 20, step_ms: float = 100.0, state_mb: float = 20.0) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="restow-bench-"))
    turn, work = Turn(folder / "turn"), steps_of_work(step_ms)
    script = [f"--state-mb={state_mb:g}", f"--steps={(windows + 1) * steps}"]
    try:
        with Lab(nodes=1, devices=RANKS, rate_bits_per_s=None) as lab, Cluster(lab, nodes=("m1",), devices=_twice(lab)) as cluster:
            jobs = [
                submit(cluster, name, RANKS, script, pace(turn, name, steps, work), recover=name == "with") for name in NAMES
            ]
            take_turns(turn, NAMES, windows, RANKS)
            for job in jobs:
                job.wait_until("its end", lambda view: view["state"] == "done")
        found = differences(turn, NAMES, windows)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"steady_cost": found["ratio"] - 1, "steady": {**found, "state_mb": state_mb, "windows": windows, "steps": steps}}


def _twice(lab: Lab) -> dict[str, list[dict[str, Any]]]:
    """Each device of the lab for both jobs: only one of them computes at a time."""
    every = json.loads(Path(lab.nodes["m1"].devices_file).read_text())["devices"]
    return {"m1": [{**device, "index": len(every) * number + device["index"]} for number in range(len(NAMES)) for device in every]}


def lines(numbers: dict[str, Any]) -> list[str]:
    of = numbers["steady"]
    low, high = of["per_step_us_quartiles"]
    return [
        f"able to recover: {numbers['steady_cost']:+.1%} of steps of {1e3 * of['step_without_s']:.0f} ms with {of['state_mb']:g} MB"
        f" of state: {of['per_step_us']:+.0f} us ({low:+.0f} to {high:+.0f}), processor {of['per_step_cpu_us']:+.0f} us"
    ]


if __name__ == "__main__":
    main()
