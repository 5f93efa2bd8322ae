"""A job changes its number of workers while it trains (`workers: 1..4`): how long is the pause, how fast is it afterwards, and
does it train on as it would have?

    python bench/resize.py --json resize.json
    python bench/resize.py --json resize.json --rounds 3 --state-mb 100

One lab machine with four devices, equal shares of its cores. The number of workers goes 4, 2, 1, 2, 4, ... in one run.

    pause_s            end of the last step of the old gang (its slowest rank) to the start of the first one of the new gang
    told_s             the pause as restow says it
    step_predicted_s   what restow said a step would take, beside step_s, measured
    loss_difference    largest relative difference of a step's mean loss from the same job left on four workers: sums come in
                       another order, everything else is the same (no dropout here)
    steps_missing, steps_twice   of all steps, each has to be made once
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench import timeline  # noqa: E402
from bench.options import new_file  # noqa: E402
from bench.systems.restow import Cluster, Watched  # noqa: E402
from restow.lab import Lab  # noqa: E402

WORKERS = 4
SETTLE, WINDOW = 8, 30  # steps after a change that do not count, and that do

Made = dict[int, list[timeline.Mark]]
"""Step → its marks, one of each rank."""


def main() -> None:
    options = _options()
    sizes = [WORKERS, *[size for _ in range(options.rounds) for size in (2, 1, 2, WORKERS)]]
    steps = (SETTLE + WINDOW + 8) * len(sizes) + 20
    script = [f"--state-mb={options.state_mb:g}", f"--steps={steps}", "--batch=16", "--samples=7168", "--dropout=0"]
    with Lab(nodes=1, devices=WORKERS, rate_bits_per_s=None) as lab:
        every = json.loads(Path(lab.nodes["m1"].devices_file).read_text())["devices"]
        with Cluster(lab, nodes=("m1",), devices={"m1": every}) as cluster:
            job = Watched(cluster, cluster.submit("resized", "auto", script, workers=WORKERS, workers_min=1))
            windows: list[tuple[int, int, int]] = []  # workers, first and last step
            for size in sizes:
                job.wait_until("its first steps", lambda view: view["movable"])
                if size != len(job.show()["placement"]):
                    cluster.client.scale(job.job, size)
                view = job.wait_until(
                    f"{size} workers",
                    lambda view, size=size: len(view["placement"]) == size and view["state"] == "running" and not view["switch"],
                )
                first = view["step"] + SETTLE
                job.wait_until("its steps", lambda view, last=first + WINDOW: view["step"] >= last)
                windows.append((size, first, first + WINDOW))
            job.wait_until("its end", lambda view: view["state"] == "done", timeout_s=900)
            alone = Watched(cluster, cluster.submit("alone", "auto", script, workers=WORKERS, workers_min=WORKERS))
            alone.wait_until("its end", lambda view: view["state"] == "done", timeout_s=900)
            marks, reference = timeline.read_marks(job.lines()), timeline.read_marks(alone.lines())
            told = [event for event in cluster.client.events() if event["type"] == "MoveMeasured" and event["job"] == job.job]
    made = _by_step(marks)
    rows = [_row(made, windows, at, told[at - 1]) for at in range(1, len(windows))]
    losses, expected = _losses(made), _losses(_by_step(reference))
    numbers = {
        "rows": rows, "state_mb": options.state_mb,
        "pause_s": median(row["pause_s"] for row in rows),
        "step_s": {size: median(_step_s(made, first, last) for w, first, last in windows if w == size) for size in (4, 2, 1)},
        "loss_difference": max(abs(losses[step] - loss) / abs(loss) for step, loss in expected.items()),
        "steps_missing": len(expected.keys() - losses.keys()),
        "steps_twice": sum(len(ranks) != len({mark.rank for mark in ranks}) for ranks in made.values()),
    }  # fmt: skip
    options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['then']} workers instead of {row['now']}: pause {row['pause_s']:.2f} s (told {row['told_s']:.2f}),"
            f" step {1e3 * row['step_s']:.0f} ms ({1e3 * row['step_predicted_s']:.0f} predicted)"
        )
    print(
        f"pause {numbers['pause_s']:.2f} s; mean losses differ by at most {numbers['loss_difference']:.1e};"
        f" {numbers['steps_missing']} steps missing, {numbers['steps_twice']} made twice"
    )


def _row(made: Made, windows: list[tuple[int, int, int]], at: int, told: dict[str, Any]) -> dict[str, Any]:
    size, first, last = windows[at]
    return {
        "now": windows[at - 1][0], "then": size, "step": told["step"], "told_s": told["downtime_s"],
        "pause_s": min(mark.start_s for mark in made[told["step"]]) - max(mark.end_s for mark in made[told["step"] - 1]),
        "step_s": _step_s(made, first, last), "step_predicted_s": told["step_predicted_s"],
    }  # fmt: skip


def _by_step(marks: list[timeline.Mark]) -> Made:
    made: Made = defaultdict(list)
    for mark in marks:
        made[mark.step].append(mark)
    return made


def _losses(made: Made) -> dict[int, float]:
    """Step → mean over the ranks, which have equally many samples."""
    return {step: sum(float.fromhex(mark.loss) for mark in ranks) / len(ranks) for step, ranks in made.items()}


def _step_s(made: Made, first: int, last: int) -> float:
    """Seconds per step, from the slowest rank's end of one to the end of the next."""
    return (max(mark.end_s for mark in made[last]) - max(mark.end_s for mark in made[first])) / (last - first)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the numbers here")
    parser.add_argument("--rounds", type=int, default=2, help="times that the number goes down and up again")
    parser.add_argument("--state-mb", type=float, default=20.0)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return parser.parse_args()


if __name__ == "__main__":
    main()
