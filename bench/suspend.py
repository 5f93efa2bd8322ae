"""A training job is paused and resumed: what each costs beside copying its state in memory, and whether the numbers stay.

    python bench/suspend.py --json suspend.json
    python bench/suspend.py --json suspend.json --state-mb 100 --times 5

Three ranks on one machine, 1 GB of state each.

    suspend_s   from the end of the last step until the last process is gone and its devices are free
    blocked_s   the part of it in which the state is written (training stands still, the devices are held)
    resume_s    from the call of resume until every rank has begun its next step
    start_s     the part of it before the state is asked for: processes, the script up to its loop, the rehearsal
    fill_s      the rest: state out of the vault, the ring proved
    copy_s      one copy of the state of one rank in memory, on one core
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench import timeline  # noqa: E402
from bench.options import new_file  # noqa: E402
from bench.place import Here  # noqa: E402
from bench.systems.restow import Cluster, Watched, digests  # noqa: E402

WARM, BETWEEN = 4, 3  # steps before the first pause, and between two


def main() -> None:
    options = _options()
    steps = WARM + BETWEEN * (options.times + 2)
    script = [f"--state-mb={options.state_mb:g}", f"--steps={steps}"]
    with Cluster(Here(), nodes=("m1",)) as cluster:
        job = Watched(cluster, cluster.submit("paused", "auto", script))
        calls = []
        for number in range(options.times):
            goal = WARM + BETWEEN * number
            job.wait_until("its steps", lambda view, goal=goal: view["movable"] and view["step"] >= goal, timeout_s=900)
            cluster.client.pause(job.job)
            job.wait_until("the pause", lambda view: view["state"] == "suspended", timeout_s=900)
            time.sleep(1.0)  # its processes are gone by then, and its copy to disk has begun
            calls.append((time.monotonic(), time.time()))
            cluster.client.resume(job.job)
            job.wait_until("its return", lambda view: view["state"] == "running", timeout_s=900)
        job.wait_until("its end", lambda view: view["state"] == "done", timeout_s=1800)
        alone = Watched(cluster, cluster.submit("alone", "auto", script))
        alone.wait_until("its end", lambda view: view["state"] == "done", timeout_s=1800)
        events = [event for event in cluster.client.events() if event.get("job") == job.job]
        marks, reference = timeline.read_marks(job.lines()), timeline.read_marks(alone.lines())
        same = timeline.same_run(marks, digests(job.lines()), reference, digests(alone.lines()))
    offset_s = time.time() - time.monotonic()
    found = [_costs(marks, events, call_s, wall_s, offset_s) for call_s, wall_s in calls]
    numbers = {
        **{name: median(one[name] for one in found) for name in found[0]},
        "copy_s": copy_s(options.state_mb), "state_mb": options.state_mb, "bit_identical": same, "times": found,
    }  # fmt: skip
    options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    print(
        f"suspend  {numbers['suspend_s']:.2f} s (written in {numbers['blocked_s']:.2f} s)\n"
        f"resume   {numbers['resume_s']:.2f} s ({numbers['start_s']:.2f} s to start and rehearse,"
        f" {numbers['fill_s']:.2f} s to fill)\n"
        f"copy     {numbers['copy_s']:.2f} s for {options.state_mb:g} MB; twice that and half a second is"
        f" {2 * numbers['copy_s'] + 0.5:.2f} s\n"
        f"numbers  {'bit-identical' if same else 'other ones'}"
    )


def _costs(
    marks: list[timeline.Mark], events: list[dict[str, Any]], call_s: float, wall_s: float, offset_s: float
) -> dict[str, float]:
    """Of the pause before this call of resume, and of what followed."""
    last_s = max(mark.end_s for mark in marks if mark.start_s < call_s)
    exits = [e["time_s"] - offset_s for e in events if e["type"] == "RankExited" and e["time_s"] < wall_s]
    kept = [e["pause_s"] for e in events if e["type"] == "RankKept" and e["time_s"] < wall_s]
    first_s = min(mark.start_s for mark in marks if mark.start_s > call_s)
    step = min(mark.step for mark in marks if mark.start_s >= first_s)
    again = [mark.start_s for mark in marks if mark.start_s >= first_s and mark.step == step]
    connected = [e["time_s"] - offset_s for e in events if e["type"] == "RankConnected" and e["time_s"] > wall_s]
    start_s = sorted(connected)[len(again) - 1] - call_s
    return {
        "suspend_s": max(exits) - last_s, "blocked_s": max(kept[-len(again) :]), "resume_s": max(again) - call_s,
        "start_s": start_s, "fill_s": max(again) - call_s - start_s,
    }  # fmt: skip


def copy_s(state_mb: float) -> float:
    """Seconds of one copy of so much memory, into memory that was touched before."""
    import torch

    torch.set_num_threads(1)
    source = torch.ones(int(state_mb * 1e6 / 4))
    target = torch.zeros_like(source)
    taken = []
    for _ in range(5):
        began_s = time.perf_counter()
        target.copy_(source)
        taken.append(time.perf_counter() - began_s)
    return median(taken)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the numbers here")
    parser.add_argument("--times", type=int, default=3, help="pauses of the one job")
    parser.add_argument("--state-mb", type=float, default=1000.0)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return parser.parse_args()


if __name__ == "__main__":
    main()
