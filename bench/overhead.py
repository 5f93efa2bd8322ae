"""What restow costs per step when nothing moves, against the same script under torchrun; and how soon a job starts.

    python bench/overhead.py --json overhead.json

Two jobs of two ranks, one under restow and one under torchrun, train in windows that alternate (the one that waits does
nothing); each pair of windows gives one difference. A step is about 20 ms of fixed computing. Then one job trains two equal
models in turns, one as restow has it and one as torch alone would (inside_job.py), which tells finer. README.md says more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench.options import new_file  # noqa: E402
from bench.place import ROOT, Here, environment, free_port, python  # noqa: E402
from bench.run import Run, RunFailed  # noqa: E402
from bench.systems.restow import Cluster, Watched  # noqa: E402
from bench.timeline import said  # noqa: E402

SCRIPT = ROOT / "bench" / "paced_job.py"
INSIDE = ROOT / "bench" / "inside_job.py"


def main() -> None:
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="restow-bench-"))
    try:
        work = steps_of_work(options.step_ms)
        place = Here()
        with Cluster(place, nodes=("m1",)) as cluster:
            numbers = {
                **compared(options, cluster, place, folder, work),
                **inside(options, cluster, work),
                **started(options, cluster, place, folder),
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    print(
        f"per step     {numbers['per_step_us']:+.0f} us ({numbers['ratio'] - 1:+.2%} of {numbers['torchrun_step_ms']:.1f} ms), "
        f"half of the {options.windows} pairs within {numbers['per_step_us_quartiles'][0]:+.0f} to "
        f"{numbers['per_step_us_quartiles'][1]:+.0f} us\n"
        f"quick steps  {numbers['per_quick_step_us']:+.0f} us: the tenth percentiles, which others on this machine disturb least\n"
        f"processor    {numbers['per_step_cpu_us']:+.0f} us of each process per step, half of the pairs within "
        f"{numbers['per_step_cpu_us_quartiles'][0]:+.0f} to {numbers['per_step_cpu_us_quartiles'][1]:+.0f} us\n"
        f"in a process {numbers['inside_us']:+.0f} us of {numbers['inside_step_ms']:.1f} ms, half of the windows within "
        f"{numbers['inside_us_quartiles'][0]:+.0f} to {numbers['inside_us_quartiles'][1]:+.0f} us; "
        f"processor {numbers['inside_cpu_us']:+.0f} us\n"
        f"  the least  {numbers['least_us']:+.0f} us, half within {numbers['least_us_quartiles'][0]:+.0f} to "
        f"{numbers['least_us_quartiles'][1]:+.0f} us; processor {numbers['least_cpu_us']:+.0f} us\n"
        f"first step   restow {numbers['submit_to_first_step_s']:.2f} s after submit, "
        f"torchrun {numbers['torchrun_to_first_step_s']:.2f} s after its start"
    )


def steps_of_work(step_ms: float) -> int:
    """How many products of 256 x 256 take so long here on one core; the same number is then given to both jobs."""
    import torch

    torch.set_num_threads(1)
    square = torch.randn(256, 256) / 16
    taken = []
    for _ in range(200):
        begin_s = time.perf_counter()
        square = (square @ square).clamp(-1, 1)
        taken.append(time.perf_counter() - begin_s)
    return max(1, round(step_ms / 1e3 / median(taken)))


class Turn:
    """Whose window it is; a file that all ranks read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.give("nobody", 0)

    def said(self, name: str, kind: str, number: int) -> list[dict[str, Any]]:
        """What the ranks of this job have said of this kind and number."""
        return [json.loads(path.read_text()) for path in self.path.parent.glob(f"{name}.{kind}{number}.rank*[0-9]")]

    def wait_for(self, name: str, kind: str, number: int, ranks: int, timeout_s: float = 180.0) -> list[dict[str, Any]]:
        """What all ranks have said, once they have."""
        deadline_s = time.monotonic() + timeout_s
        while len(words := self.said(name, kind, number)) < ranks:
            if time.monotonic() > deadline_s:
                raise RunFailed(f"{name}: {len(words)} of {ranks} ranks finished {kind} {number} within {timeout_s:.0f} s")
            time.sleep(0.1)
        return words

    def give(self, name: str, window: int) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(f"{name} {window}")
        os.replace(fresh, self.path)


def pace(turn: Turn, name: str, length: int, work: int) -> dict[str, str]:
    return {"PACE_TURN": str(turn.path), "PACE_NAME": name, "PACE_STEPS": str(length), "PACE_WORK": str(work)}


def compared(options: argparse.Namespace, cluster: Cluster, place: Here, folder: Path, work: int) -> dict[str, Any]:
    """Restow against torchrun, in paired windows."""
    turn = Turn(folder / "turn")
    script_options = [f"--state-mb={options.state_mb:g}", f"--steps={(options.windows + 1) * options.steps}"]
    watched = submit(cluster, "paced", options.ranks, script_options, pace(turn, "restow", options.steps, work),
                     options.recover)
    with Run(folder / "torchrun") as run:
        torchrun(run, place, options.ranks, script_options, pace(turn, "torchrun", options.steps, work))
        take_turns(turn, ("torchrun", "restow"), options.windows, options.ranks)
        watched.wait_until("its end", lambda view: view["state"] == "done")
        run.wait_for_end()
    found = differences(turn, ("restow", "torchrun"), options.windows)
    return {
        **{name: found[name] for name in found if not name.startswith("step_")},
        "restow_step_ms": found["step_s"] * 1e3,
        "torchrun_step_ms": found["step_without_s"] * 1e3,
        "windows": options.windows,
        "steps_per_window": options.steps,
        "ranks": options.ranks,
    }


def take_turns(turn: Turn, names: tuple[str, str], windows: int, ranks: int) -> None:
    """Each job gets `windows` windows after one to warm up; who is first changes."""
    for window in range(windows + 1):
        for name in names[:: -1 if window % 2 else 1]:
            turn.give(name, window)
            turn.wait_for(name, "window", window, ranks)


def differences(turn: Turn, names: tuple[str, str], windows: int) -> dict[str, Any]:
    """What a step of the first job takes longer than one of the second: medians over the ranks' steps, then over the pairs."""
    cpu, steps = [], []
    for name in names:
        said = [turn.said(name, "window", window) for window in range(1, windows + 1)]
        cpu.append([mean(word["cpu_s"] for word in words) for words in said])
        steps.append([[period for word in words for period in word["periods_s"]] for words in said])
    pairs = [(median(mine), median(theirs)) for mine, theirs in zip(*steps, strict=True)]
    wall_us = [(mine - theirs) * 1e6 for mine, theirs in pairs]
    cpu_us = [(mine - theirs) * 1e6 for mine, theirs in zip(*cpu, strict=True)]
    quick_s = [quantiles([period for window in windows_of for period in window], n=10)[0] for windows_of in steps]
    return {
        "per_step_us": median(wall_us),
        "per_step_us_quartiles": quantiles(wall_us, n=4)[::2],
        "per_quick_step_us": (quick_s[0] - quick_s[1]) * 1e6,
        "ratio": median(mine / theirs for mine, theirs in pairs),
        "per_step_cpu_us": median(cpu_us),
        "per_step_cpu_us_quartiles": quantiles(cpu_us, n=4)[::2],
        "step_s": median(mine for mine, _ in pairs),
        "step_without_s": median(theirs for _, theirs in pairs),
    }


def inside(options: argparse.Namespace, cluster: Cluster, work: int) -> dict[str, Any]:
    """Restow against torch alone, both in the same processes."""
    script_options = [f"--state-mb={options.state_mb:g}", f"--steps={(options.windows + 3) * options.steps + 2}"]
    env = {"INSIDE_STEPS": str(options.steps), "INSIDE_WORK": str(work), "INSIDE_PARTS": "1" if options.parts else ""}
    watched = submit(cluster, "inside", options.ranks, script_options, env, options.recover, INSIDE)
    watched.wait_until("its end", lambda view: view["state"] == "done", timeout_s=1800)
    words = list(said(watched.lines(), "inside"))
    rounds = [each for word in words for each in word["rounds"]]

    def beyond_plain(which: int, column: int) -> list[float]:
        return [(each[which][column] - each[1][column]) * 1e6 for each in rounds]

    return {
        "inside_us": median(beyond_plain(0, 0)),
        "inside_us_quartiles": quantiles(beyond_plain(0, 0), n=4)[::2],
        "inside_cpu_us": mean(beyond_plain(0, 1)),
        "least_us": median(beyond_plain(2, 0)),
        "least_us_quartiles": quantiles(beyond_plain(2, 0), n=4)[::2],
        "least_cpu_us": mean(beyond_plain(2, 1)),
        "inside_step_ms": median(each[1][0] for each in rounds) * 1e3,
        "inside_parts_us": {name: max(word["parts_us"][name] for word in words) for name in words[0]["parts_us"]},
    }


def started(options: argparse.Namespace, cluster: Cluster, place: Here, folder: Path) -> dict[str, Any]:
    """From the command to the end of the first step of the last rank, in turns; both commands are new processes."""
    script_options = [f"--state-mb={options.state_mb:g}", f"--steps={options.steps}"]
    turn = Turn(folder / "turn")
    turn.give("all", 1 << 30)
    mine, theirs = [], []
    for number in range(options.starts):
        begin_s = time.monotonic()
        watched = submit(cluster, f"start{number}", options.ranks, script_options, pace(turn, f"mine{number}", options.steps, 1),
                         options.recover)
        mine.append(_first_step_s(turn, f"mine{number}", options.ranks) - begin_s)
        watched.wait_until("its end", lambda view: view["state"] == "done")
        with Run(folder / f"start{number}") as run:
            begin_s = time.monotonic()
            torchrun(run, place, options.ranks, script_options, pace(turn, f"theirs{number}", options.steps, 1))
            theirs.append(_first_step_s(turn, f"theirs{number}", options.ranks) - begin_s)
            run.wait_for_end()
    return {
        "submit_to_first_step_s": median(mine),
        "torchrun_to_first_step_s": median(theirs),
        "submit_to_first_step_each_s": mine,
        "torchrun_to_first_step_each_s": theirs,
    }


def _first_step_s(turn: Turn, name: str, ranks: int) -> float:
    return max(float(word["time_s"]) for word in turn.wait_for(name, "first", 0, ranks))


def submit(
    cluster: Cluster, name: str, ranks: int, script_options: list[str], env: dict[str, str], recover: bool, script: Path = SCRIPT
) -> Watched:
    """By the command line, as a user would."""
    source = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    settings = [word for key, value in {**env, "PYTHONPATH": source}.items() for word in ("--env", f"{key}={value}")]
    ways = ("--no-migrate",) if recover else ("--no-migrate", "--no-recover")
    words = ("submit", "--json", "-n", str(ranks), "--name", name, *ways, *settings, "--")
    printed = cluster.command("m1", *words, sys.executable, str(script), *script_options)
    return Watched(cluster, json.loads(printed)["id"])


def torchrun(run: Run, place: Here, ranks: int, script_options: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    node = place.nodes["m1"]
    return run.start(
        node,
        python(
            "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={ranks}", "--master-addr=127.0.0.1",
            f"--master-port={free_port()}", "--monitor-interval=0.02", str(SCRIPT), *script_options,
        ),
        {**environment(node), **env},
    )  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the numbers here")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--windows", type=int, default=20, help="pairs of windows")
    parser.add_argument("--steps", type=int, default=40, help="steps per window")
    parser.add_argument("--step-ms", type=float, default=20.0, help="fixed computing per step")
    parser.add_argument("--state-mb", type=float, default=1.0)
    parser.add_argument("--recover", action="store_true", help="with what it costs to outlive a lost worker")
    parser.add_argument("--parts", action="store_true", help="time the parts of what restow does in a step, too")
    parser.add_argument("--starts", type=int, default=3, help="starts of each that are timed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
