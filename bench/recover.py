"""A worker of a training job is killed with SIGKILL, or its machine cut off, again and again: how soon is it noticed, how soon does
the job train again, and is anything lost? restow and torchrun with a checkpoint every 10 steps, in one run, same model and data.

    python bench/recover.py --json recover.json
    python bench/recover.py --json recover.json --kills 10 --cuts 5 --state-mb 100

Three ranks on two nodes of a lab (a 200 Mbit/s link); the killed rank is another one each time. A cut takes the machine of one rank
off the network without a word to anybody; afterwards it comes back and gets its rank back.

    detect_s      from the kill until the agent says that the rank is gone (restow); torchrun says nothing of that
    resume_s      from then (torchrun: from the kill) until every rank has begun a step again
    lost_steps    optimizer updates that were made again, a median over the kills
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
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench import timeline  # noqa: E402
from bench.cases import SCATTERED, WORLD_SIZE  # noqa: E402
from bench.options import new_file  # noqa: E402
from bench.place import ROOT, environment, free_port, python  # noqa: E402
from bench.run import Run, RunFailed  # noqa: E402
from bench.switch import place  # noqa: E402
from bench.systems.restow import Cluster, Watched, digests  # noqa: E402

RIVAL_S_MAX = 120.0  # that is waited for a rival to train again
WARM, BETWEEN = 5, 25  # steps before the first kill, and between two


def main() -> None:
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="restow-bench-"))
    shared = Path(tempfile.mkdtemp(prefix="restow-bench-", dir="/dev/shm"))
    rows, notes = [], {}
    try:
        with place(options.lab) as where:
            row, notes = restow(options, where)
            rows.append(row)
            print(_line(row), file=sys.stderr, flush=True)
        with place(options.lab) as where:
            rows.append(torchrun(options, where, folder, shared))
            print(_line(rows[-1]), file=sys.stderr, flush=True)
        if options.lab and options.cuts:
            with place(options.lab) as where:
                rows.append(restow_cut(options, where))
                print(_line(rows[-1]), file=sys.stderr, flush=True)
            with place(options.lab) as where:
                rows.append(torchrun_cut(options, where, folder, shared))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(shared, ignore_errors=True)
    options.json.write_text(json.dumps({"rows": rows, **notes}, indent=1) + "\n")
    print("\n".join(map(_line, rows)))


def restow(options: argparse.Namespace, where: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """One job that loses a rank again and again, and its twin that does not."""
    steps = WARM + BETWEEN * (options.kills + 1)
    script = [f"--state-mb={options.state_mb:g}", f"--steps={steps}"]
    with Cluster(where) as cluster:
        job = Watched(cluster, cluster.submit("killed", "auto", script))
        kills: list[tuple[float, float]] = []  # when, on both clocks
        for number in range(options.kills):
            goal = WARM + BETWEEN * number + 3
            job.wait_until(f"step {goal}", lambda view, goal=goal: view["movable"] and view["step"] >= goal and not view["switch"])
            pid = _pid_of(cluster, job.job, number % WORLD_SIZE)
            kills.append((time.monotonic(), time.time()))
            os.kill(pid, signal.SIGKILL)
        job.wait_until("its end", lambda view: view["state"] == "done", timeout_s=1800)
        alone = Watched(cluster, cluster.submit("alone", "auto", script))
        alone.wait_until("its end", lambda view: view["state"] == "done", timeout_s=1800)
        exits = [e for e in cluster.client.events() if e["type"] == "RankExited" and e["job"] == job.job]
        gone = [e["time_s"] for e in exits if e["code"] == -9]
        marks, ended = timeline.read_marks(job.lines()), digests(job.lines())
        reference = timeline.read_marks(alone.lines()), digests(alone.lines())
    detected = [min(t for t in gone if t >= wall_s) - wall_s for _, wall_s in kills]
    found = [_after_kill(marks, kill_s) for kill_s, _ in kills]
    row = {
        "system": "restow",
        "detect_s": median(detected),
        "resume_s": median(again - one for (again, _), one in zip(found, detected, strict=True)),
        "lost_steps": median(lost for _, lost in found),
        "worst_s": max(again for again, _ in found),
        "bit_identical": timeline.same_run(marks, ended, *reference),
    }
    return row, {"kills": options.kills, "lost_jobs": 0, "hung_jobs": 0, "repeated_steps": sum(lost for _, lost in found)}


def restow_cut(options: argparse.Namespace, where: Any) -> dict[str, Any]:
    """The machine of rank 2 is cut off again and again, and its twin job never."""
    steps = WARM + BETWEEN * (options.cuts + 1) * 3
    script = [f"--state-mb={options.state_mb:g}", f"--steps={steps}"]
    with Cluster(where) as cluster:
        job = Watched(cluster, cluster.submit("cut", "auto", script))
        cuts: list[tuple[float, float]] = []
        for _ in range(options.cuts):
            job.wait_until("its first steps", lambda view: view["movable"] and not view["switch"])
            cluster.client.migrate(job.job, to=" ".join(f"{node}:{at}" for at, node in enumerate(SCATTERED)))
            view = job.wait_until("its machines", lambda view: len({s.split(":")[0] for s in view["placement"]}) == 2)
            job.wait_until("some steps", lambda view, goal=view["step"] + 3: view["movable"] and view["step"] >= goal)
            cuts.append((time.monotonic(), time.time()))
            where.cut(SCATTERED[-1])
            goal = view["step"] + 15
            job.wait_until("steps without it", lambda view, goal=goal: view["state"] == "running" and view["step"] >= goal)
            where.heal(SCATTERED[-1])
            _wait_for_node(cluster, SCATTERED[-1])
        job.wait_until("its end", lambda view: view["state"] == "done", timeout_s=1800)
        alone = Watched(cluster, cluster.submit("alone", "auto", script))
        alone.wait_until("its end", lambda view: view["state"] == "done", timeout_s=1800)
        lost = [e["time_s"] for e in cluster.client.events() if e["type"] == "NodeLost"]
        marks, ended = timeline.read_marks(job.lines()), digests(job.lines())
        same = timeline.same_run(marks, ended, timeline.read_marks(alone.lines()), digests(alone.lines()))
    detected = [min(t for t in lost if t >= wall_s) - wall_s for _, wall_s in cuts]
    found = [_after_kill(marks, cut_s) for cut_s, _ in cuts]
    return {
        "system": "restow, a machine cut off", "detect_s": median(detected),
        "resume_s": median(again - one for (again, _), one in zip(found, detected, strict=True)),
        "lost_steps": median(lost for _, lost in found), "worst_s": max(again for again, _ in found), "bit_identical": same,
    }  # fmt: skip


def _wait_for_node(cluster: Cluster, name: str) -> None:
    deadline_s = time.monotonic() + 120
    while not any(node["name"] == name and node["alive"] for node in cluster.client.nodes()):
        if time.monotonic() > deadline_s:
            raise RunFailed(f"node {name} did not come back within 120 s after its link was healed")
        time.sleep(0.1)


def torchrun_cut(options: argparse.Namespace, where: Any, folder: Path, shared: Path) -> dict[str, Any]:
    """Elastic torchrun (one node or two): the machine of rank 2 is cut off once; the others go on without it."""
    script = [str(ROOT / "bench/rivals/torchrun_resume.py"), f"--state-mb={options.state_mb:g}", f"--steps={WARM + 3 * BETWEEN}"]
    checkpoint = shared / "cut"
    checkpoint.mkdir()
    port, nodes = free_port(), list(dict.fromkeys(SCATTERED))
    with Run(folder / "cut") as run:
        for index, name in enumerate(nodes):
            node = where.nodes[name]
            words = (
                "-m", "torch.distributed.run", f"--nnodes=1:{len(nodes)}", f"--nproc-per-node={SCATTERED.count(name)}",
                "--rdzv-backend=c10d", f"--rdzv-endpoint={where.nodes[nodes[0]].address}:{port}", "--rdzv-id=bench",
                f"--rdzv-conf=is_host={'true' if index == 0 else 'false'},last_call_timeout=1,keep_alive_interval=1,"
                "keep_alive_max_attempt=3",
                f"--local-addr={node.address}", "--max-restarts=3", "--monitor-interval=0.02", *script,
                f"--checkpoint={checkpoint}",
            )  # fmt: skip
            run.start(node, python(*words), environment(node))
        run.wait_for("all three ranks", lambda: {mark.rank for mark in run.marks()} == set(range(WORLD_SIZE)), 120)
        run.wait_for_step(WARM + BETWEEN)
        cut_s = time.monotonic()
        where.cut(SCATTERED[-1])
        old = {mark.pid for mark in run.marks()}
        again = f"a step within {RIVAL_S_MAX:.0f} s"
        try:
            run.wait_for(again, lambda: any(mark.pid not in old for mark in run.marks()), RIVAL_S_MAX)
        except RunFailed:
            return {
                "system": "torchrun elastic, a machine cut off", "detect_s": None, "resume_s": None, "lost_steps": None,
                "worst_s": RIVAL_S_MAX, "bit_identical": False, "note": "it did not train again in this time",
            }  # fmt: skip
        marks = run.marks()
    fresh = [mark for mark in marks if mark.pid not in old]
    made = max(mark.step for mark in marks if mark.pid in old)
    after_s = min(mark.start_s for mark in fresh) - cut_s
    return {
        "system": "torchrun elastic, a machine cut off", "detect_s": None, "resume_s": after_s, "worst_s": after_s,
        "lost_steps": max(0, made + 1 - min(mark.step for mark in fresh)), "bit_identical": False,
    }  # fmt: skip


def torchrun(options: argparse.Namespace, where: Any, folder: Path, shared: Path) -> dict[str, Any]:
    """One torchrun per node, which starts all its ranks again when one is gone."""
    steps = WARM + BETWEEN * (options.kills + 1)
    script = [str(ROOT / "bench/rivals/torchrun_resume.py"), f"--state-mb={options.state_mb:g}", f"--steps={steps}"]

    def start(run: Run, checkpoint: Path) -> None:
        checkpoint.mkdir()
        port, nodes = free_port(), list(dict.fromkeys(SCATTERED))
        for index, name in enumerate(nodes):
            node = where.nodes[name]
            words = (
                "-m", "torch.distributed.run", f"--nnodes={len(nodes)}", f"--nproc-per-node={SCATTERED.count(name)}",
                "--rdzv-backend=c10d", f"--rdzv-endpoint={where.nodes[nodes[0]].address}:{port}", "--rdzv-id=bench",
                f"--rdzv-conf=is_host={'true' if index == 0 else 'false'},last_call_timeout=1,keep_alive_interval=1,"
                "keep_alive_max_attempt=3",
                f"--local-addr={node.address}", f"--max-restarts={options.kills + 1}", "--monitor-interval=0.02", *script,
                f"--checkpoint={checkpoint}",
            )  # fmt: skip
            run.start(node, python(*words), environment(node))

    with Run(folder / "killed") as run:
        start(run, shared / "killed")
        kills = []
        for number in range(options.kills):
            run.wait_for_step(WARM + BETWEEN * number + 3)
            newest = max((m for m in run.marks() if m.rank == number % WORLD_SIZE), key=lambda mark: mark.end_s)
            kills.append(time.monotonic())
            os.kill(newest.pid, signal.SIGKILL)
            run.wait_for("a step after the kill", lambda since=kills[-1]: any(mark.start_s > since for mark in run.marks()[-3:]))
        run.wait_for("the end", lambda: len(run.digests()) == WORLD_SIZE)
        marks, ended = run.marks(), run.digests()
    with Run(folder / "alone") as run:
        start(run, shared / "alone")
        run.wait_for("the end", lambda: len(run.digests()) == WORLD_SIZE)
        same = timeline.same_run(marks, ended, run.marks(), run.digests())
    found = [_after_kill(marks, kill_s) for kill_s in kills]
    return {
        "system": "torchrun, a checkpoint every 10 steps", "detect_s": None, "resume_s": median(again for again, _ in found),
        "lost_steps": median(lost for _, lost in found), "worst_s": max(again for again, _ in found), "bit_identical": same,
    }  # fmt: skip


def _pid_of(cluster: Cluster, job: str, rank: int) -> int:
    started = [e for e in cluster.client.events() if e["type"] == "RankStarted" and e["job"] == job and e["rank"] == rank]
    return int(started[-1]["pid"])


def _after_kill(marks: list[timeline.Mark], kill_s: float) -> tuple[float, int]:
    """Seconds until every rank had begun a step again, in new processes; and the steps that were made again."""
    old = {mark.pid for mark in marks if mark.start_s <= kill_s}
    again = [min((m for m in marks if m.rank == rank and m.pid not in old and m.start_s > kill_s), key=lambda m: m.start_s)
             for rank in range(WORLD_SIZE)]  # fmt: skip
    first_s = min(mark.start_s for mark in again)
    made = [mark.step for mark in marks if mark.end_s < first_s]
    whole = [step for step in set(made) if made.count(step) >= WORLD_SIZE]
    lost = max(0, max(whole, default=-1) + 1 - min(mark.step for mark in again))
    return max(mark.start_s for mark in again) - kill_s, lost


def _line(row: dict[str, Any]) -> str:
    if row["resume_s"] is None:
        return f"{row['system']:<40} did not train again within {row['worst_s']:.0f} s"
    noticed = "" if row["detect_s"] is None else f"noticed after {row['detect_s'] * 1e3:.0f} ms, "
    same = "bit-identical" if row["bit_identical"] else "other numbers"
    return (
        f"{row['system']:<40} {noticed}trains again {row['resume_s']:.2f} s after that (worst {row['worst_s']:.2f} s from the"
        f" kill), {row['lost_steps']:g} steps lost, {same}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the rows here")
    parser.add_argument("--kills", type=int, default=6, help="of each system's job")
    parser.add_argument("--cuts", type=int, default=3, help="of the machine of one rank; 0: none")
    parser.add_argument("--state-mb", type=float, default=10.0)
    parser.add_argument("--no-lab", dest="lab", action="store_false", help="on this machine alone, without a shaped link")
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if options.kills < 1:
        raise RunFailed("--kills must be at least 1")
    return options


if __name__ == "__main__":
    main()
