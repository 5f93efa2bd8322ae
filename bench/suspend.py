"""A training job is paused and resumed, and makes checkpoints: what each costs beside copying its state in memory, and whether the
numbers stay. And a job of four ranks on fewer devices (scale.py).

    python bench/suspend.py --json suspend.json
    python bench/suspend.py --json suspend.json --state-mb 100 --times 5 --no-scale

Three ranks on one machine, 1 GB of state each.

    suspend_s   from the end of the last step until its devices are free (its processes sleep, or are gone)
    blocked_s   the part of it in which the state is written (training stands still, the devices are held)
    resume_s    from the call of resume until every rank has begun its next step
    start_s     the part of it before the state is asked for: processes, the script up to its loop, the rehearsal
    fill_s      the rest: state out of the vault, the ring proved
    cold        the same, once, when the sleeping processes were killed meanwhile: new ones start, and rehearse
    copy_s      one copy of the state of one rank in memory, on one core

    checkpoint_blocked_s   training stood still for so long while a checkpoint was made
    checkpoint_slow_down   steps while it was written, by steps before
    shrink_bit_identical, half_speed_ratio   of scale.py
    steady_cost            of steady.py: what being able to recover costs, as a part of a step
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench import scale, steady, timeline  # noqa: E402
from bench.options import new_file  # noqa: E402
from bench.place import Here  # noqa: E402
from bench.run import RunFailed  # noqa: E402
from bench.systems.restow import Cluster, Watched, digests  # noqa: E402

AROUND = 12  # steps for each checkpoint
WARM, BETWEEN = 4, 3  # steps before the first pause, and between two


def main() -> None:
    options = _options()
    steps = WARM + BETWEEN * (options.times + 3) + AROUND * options.times
    script = [f"--state-mb={options.state_mb:g}", f"--steps={steps}"]
    folder = tempfile.mkdtemp(prefix="restow-bench-")
    checkpoint = {"folder": folder, "keep": 1}
    with Cluster(Here(), nodes=("m1",)) as cluster:
        job = Watched(cluster, cluster.submit("paused", "auto", script, checkpoint=checkpoint))
        job.wait_until("its steps", lambda view: view["movable"] and view["step"] >= WARM, timeout_s=900)
        written = [_checkpoint(cluster, job) for _ in range(options.times)]
        calls = []
        begun = job.show()["step"]
        for number in range(options.times + 1):
            goal = begun + BETWEEN * number
            job.wait_until("its steps", lambda view, goal=goal: view["movable"] and view["step"] >= goal, timeout_s=900)
            cluster.client.pause(job.job)
            job.wait_until("the pause", lambda view: view["state"] == "suspended", timeout_s=900)
            time.sleep(1.0)  # its processes sleep by then, and its copy to disk has begun
            if number == options.times:
                _kill_sleepers(cluster, job)
            calls.append((time.monotonic(), time.time()))
            cluster.client.resume(job.job)
            job.wait_until("its return", lambda view: view["state"] == "running", timeout_s=900)
        job.wait_until("its end", lambda view: view["state"] == "done", timeout_s=1800)
        alone = Watched(cluster, cluster.submit("alone", "auto", script))
        alone.wait_until("its end", lambda view: view["state"] == "done", timeout_s=1800)
        events = [event for event in cluster.client.events() if event.get("job") == job.job]
        marks, reference = timeline.read_marks(job.lines()), timeline.read_marks(alone.lines())
        same = timeline.same_run(marks, digests(job.lines()), reference, digests(alone.lines()))
    shutil.rmtree(folder, ignore_errors=True)
    offset_s = time.time() - time.monotonic()
    kept = [event for event in events if event["type"] == "RankKept"]
    *found, cold = [_costs(marks, events, call_s, wall_s, offset_s) for call_s, wall_s in calls]
    numbers = {
        **{name: median(one[name] for one in found) for name in found[0]},
        "copy_s": copy_s(options.state_mb), "state_mb": options.state_mb, "bit_identical": same, "times": found,
        "cold": cold,
        "phases": [{"rank": event["rank"], **dict(event["phases"])} for event in kept],
        "checkpoint_blocked_s": median(event["blocked_s"] for event in written),
        "checkpoint_write_s": median(event["write_s"] for event in written),
        "checkpoint_slow_down": median(_slow_down(marks, event, offset_s) for event in written),
    }  # fmt: skip
    if options.scale:
        numbers |= scale.measured(2, 20.0) | steady.measured()
    options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    print(
        f"suspend  {numbers['suspend_s']:.2f} s (written in {numbers['blocked_s']:.2f} s)\n"
        f"resume   {numbers['resume_s']:.2f} s ({numbers['start_s']:.2f} s to start and rehearse,"
        f" {numbers['fill_s']:.2f} s to fill)\n"
        f"  without its processes {cold['resume_s']:.2f} s ({cold['start_s']:.2f} s to start and rehearse)\n"
        f"copy     {numbers['copy_s']:.2f} s for {options.state_mb:g} MB; twice that and half a second is"
        f" {2 * numbers['copy_s'] + 0.5:.2f} s\n"
        f"checkpoint: training stood still for {1e3 * numbers['checkpoint_blocked_s']:.0f} ms, written in"
        f" {numbers['checkpoint_write_s']:.2f} s, steps meanwhile {numbers['checkpoint_slow_down']:.2f} times as long\n"
        f"numbers  {'bit-identical' if same else 'other ones'}"
    )
    if options.scale:
        print("\n".join((*scale.lines(numbers), *steady.lines(numbers))))


def _kill_sleepers(cluster: Cluster, job: Watched) -> None:
    started = [event for event in cluster.client.events() if event["type"] == "RankStarted" and event["job"] == job.job]
    for pid in {event["rank"]: event["pid"] for event in started}.values():
        os.kill(pid, signal.SIGKILL)
    time.sleep(1.0)  # until the agent knows


def _checkpoint(cluster: Cluster, job: Watched) -> dict[str, Any]:
    """Make one; the event that says what it cost."""
    after = max(event["number"] for event in cluster.client.events())
    asked_s = time.time()
    cluster.client.checkpoint(job.job)
    deadline_s = time.monotonic() + 300
    while time.monotonic() < deadline_s:
        for event in cluster.client.events(after=after):
            if event["type"] == "CheckpointWritten":
                return {**event, "asked_s": asked_s}
            if event["type"] == "CheckpointFailed":
                raise RunFailed(f"no checkpoint: {event['reason']}")
        time.sleep(0.1)
    raise RunFailed("no checkpoint within 300 s")


def _slow_down(marks: list[timeline.Mark], event: dict[str, Any], offset_s: float) -> float:
    """Mean of the steps between the snapshot and the end of the writing, by the median of those before it was asked for."""
    mine = sorted((mark for mark in marks if mark.rank == 0), key=lambda mark: mark.end_s)
    before = [b.end_s - a.end_s for a, b in pairwise(mine) if b.end_s < event["asked_s"] - offset_s]
    during = [b.end_s - a.end_s for a, b in pairwise(mine) if b.step > event["step"] - 1 and a.end_s < event["time_s"] - offset_s]
    return mean(during) / median(before[-10:]) if before and during else 1.0


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
    parser.add_argument("--no-scale", dest="scale", action="store_false", help="without the job on fewer devices")
    parser.add_argument("--state-mb", type=float, default=1000.0)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return parser.parse_args()


if __name__ == "__main__":
    main()
