"""Random kills: workers, agents, everything on a machine, links, the controller, with moves and suspends among them. Does every job
end, and with the same parameters as if nothing had happened?

    python bench/chaos.py --json chaos.json --kills 300 --seed 1

Two lab machines, two jobs of three ranks at any time. A job that has finished is compared with its undisturbed twin, and another
one comes in its place. The controller is on the first machine, of which only workers, agents and the controller are killed; of the
second everything may be, and its link may be cut. Jobs make checkpoints every 20 steps: a job that lies on the second machine as a
whole has nothing else when everything there is killed.

    kills           things that were killed or cut; moves and suspends are not counted
    lost_jobs       jobs that did not end as they should: failed, or with other parameters or losses
    hung_jobs       jobs that made no step for two minutes
    repeated_steps  steps that were made again although a rank held their end: only where all ranks of a job were killed at once
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench import timeline  # noqa: E402
from bench.options import new_file  # noqa: E402
from bench.systems.restow import Cluster, Watched, digests  # noqa: E402
from restow import config  # noqa: E402
from restow.errors import RestowError  # noqa: E402
from restow.lab import Lab  # noqa: E402

WORKERS, JOBS, STEPS = 3, 2, 150
HUNG_S = 120.0
CALM_S = (0.5, 4.0)  # between two deeds
CUT_S = (0.2, 5.0)
DEEDS = {"rank": 8, "agent": 2, "nursery": 1, "node": 1, "link": 3, "controller": 2, "move": 4, "pause": 2}  # kind → weight
KILLS = ("rank", "agent", "nursery", "node", "link", "controller")


class Chaos:
    def __init__(self, cluster: Cluster, lab: Lab, seed: int, folder: Path, kept: Path | None):
        self.cluster, self.lab, self.client = cluster, lab, cluster.client
        self.random = random.Random(seed)
        self.folder, self.kept = folder, kept
        self.done: Counter[str] = Counter()
        self.jobs: dict[str, tuple[int, float]] = {}  # id → step last seen, and when
        self.finished: list[dict[str, Any]] = []
        self.reference: tuple[Any, Any] | None = None
        self.healed_s = 0.0

    # ------------------------------------------------------------ jobs

    def submit(self) -> None:
        checkpoint = {"folder": str(self.folder / "checkpoints"), "every_steps": 20, "shared": True}
        script = ["--state-mb=4", f"--steps={STEPS}", "--batch=16", "--samples=7200"]
        job = self.cluster.submit("chaos", "auto", script, workers=WORKERS, checkpoint=checkpoint, retries=5)
        self.jobs[job] = (0, time.monotonic())

    def undisturbed(self) -> None:
        self.submit()
        (job,) = self.jobs
        watched = Watched(self.cluster, job)
        watched.wait_until("its end", lambda view: view["state"] == "done")
        self.reference = timeline.losses(timeline.read_marks(watched.lines())), digests(watched.lines())
        self.jobs.clear()

    def look(self) -> None:
        """Who is through, and is it right? Who makes no steps any more?"""
        for view in self.ask(lambda: self.client.ps(), []):
            job = view["id"]
            if job not in self.jobs:
                continue
            step, seen_s = self.jobs[job]
            if view["step"] != step or view["paused"]:
                self.jobs[job] = (view["step"], time.monotonic())
            if view["ended_s"] is not None:
                self.finished.append(self._judged(view))
                del self.jobs[job]
            elif time.monotonic() - seen_s > HUNG_S:
                self.finished.append({"job": job, "verdict": "hung", "why": view["reason"]})
                print(f"hung: {job} {view['state']}: {view['reason']}", file=sys.stderr, flush=True)
                self.keep(job)
                del self.jobs[job]
                self.ask(lambda job=job: self.client.cancel(job))

    def _judged(self, view: dict[str, Any]) -> dict[str, Any]:
        about = {"job": view["id"], "verdict": "right", "why": ""}
        if view["state"] != "done":
            about |= {"verdict": "lost", "why": f"{view['state']}: {view['reason']}"}
        else:
            lines = self.ask(lambda: Watched(self.cluster, view["id"]).lines(), [], tries=100)
            marks = timeline.read_marks(lines)
            losses, ends = timeline.losses(marks), digests(lines)
            assert self.reference
            if ends != self.reference[1]:
                about |= {"verdict": "lost", "why": f"other parameters: {ends}"}
            wrong = [key for key, loss in losses.items() if self.reference[0].get(key) != loss]
            if wrong:
                about |= {"verdict": "lost", "why": f"another loss of rank and step {min(wrong, key=lambda key: key[1])}"}
            about["again"] = self._again(marks)
        if about["verdict"] != "right":
            print(f"{about['verdict']}: {about['job']}: {about['why']}", file=sys.stderr, flush=True)
            self.keep(str(about["job"]))
        return about

    def keep(self, job: str) -> None:
        """What there is to find out why."""
        if self.kept:
            said = {"nodes": self.ask(lambda: self.client.nodes(), []), "events": self.ask(lambda: list(self.client.events()), [])}
            (self.kept / f"{job}.json").write_text(json.dumps(said, indent=1))
            shutil.copytree(self.cluster.home / "logs", self.kept / f"{job}.logs", dirs_exist_ok=True)

    @staticmethod
    def _again(marks: list[timeline.Mark]) -> int:
        """Steps that every rank had made and then made again."""
        made = Counter((mark.step, mark.rank) for mark in marks)
        return sum(1 for step in {mark.step for mark in marks} if all(made[step, rank] > 1 for rank in range(WORKERS)))

    # ------------------------------------------------------------ deeds

    def deed(self) -> None:
        (kind,) = self.random.choices(list(DEEDS), list(DEEDS.values()))
        happened = getattr(self, f"_{kind}")()
        if happened:
            self.done[kind] += 1

    @property
    def kills(self) -> int:
        return sum(self.done[kind] for kind in KILLS)

    def _rank(self) -> bool:
        pids = [pid for node in ("m1", "m2") for pid in self._ranks(node)]
        return bool(pids) and _kill(self.random.choice(sorted(pids)))

    def _agent(self) -> bool:
        return _kill(self._about(self.random.choice(["m1", "m2"]), "node.json"))

    def _nursery(self) -> bool:
        path = self._node_folder(self.random.choice(["m1", "m2"])) / "nursery.pid"
        with contextlib.suppress(OSError, ValueError):
            return _kill(int(path.read_text()))
        return False

    def _node(self) -> bool:
        """Everything of restow on the second machine."""
        with contextlib.suppress(OSError, ValueError):
            _kill(int((self._node_folder("m2") / "nursery.pid").read_text()))
        _kill(self._about("m2", "node.json"))
        for pid in self._ranks("m2"):
            _kill(pid)
        return True

    def _link(self) -> bool:
        self.lab.cut("m2")
        time.sleep(self.random.uniform(*CUT_S))
        self.lab.heal("m2")
        return True

    def _controller(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            _kill(int((self.cluster.home / "controller.pid").read_text()))
        time.sleep(self.random.uniform(0.0, 2.0))
        self.cluster.command("m1", "up")
        return True

    def _move(self) -> bool:
        job = self._any_job()
        nodes = self.random.choice([("m1", "m1", "m1"), ("m1", "m1", "m2"), ("m1", "m2", "m2"), ("m2", "m2", "m2")])
        free = {node: list(range(6)) for node in ("m1", "m2")}
        for indices in free.values():
            self.random.shuffle(indices)
        to = " ".join(f"{node}:{free[node].pop()}" for node in nodes)
        return bool(job) and self.ask(lambda: self.client.migrate(job, to=to), None) is not None

    def _pause(self) -> bool:
        job = self._any_job()
        if not job or self.ask(lambda: self.client.pause(job), None) is None:
            return False
        time.sleep(self.random.uniform(0.0, 3.0))
        return self.ask(lambda: self.client.resume(job), None, tries=100) is not None

    # ------------------------------------------------------------ help

    def ask(self, question: Any, otherwise: Any = None, tries: int = 1) -> Any:
        """The answer, also of a controller that was just killed; `otherwise` when it refuses or there is none."""
        for _ in range(tries):
            with contextlib.suppress(RestowError):
                return question()
            time.sleep(0.1 if tries > 1 else 0.0)
        return otherwise

    def _any_job(self) -> str:
        return self.random.choice(sorted(self.jobs)) if self.jobs else ""

    def _node_folder(self, node: str) -> Path:
        cluster_id = config.cluster_id_of(config.read_token(self.cluster.home / "token"))
        return config.run_folder(cluster_id) / node

    def _about(self, node: str, file: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int(json.loads((self._node_folder(node) / file).read_text())["pid"])
        return 0

    def _ranks(self, node: str) -> list[int]:
        found = []
        for path in (self._node_folder(node) / "run").glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                child = json.loads(path.read_text())
                if child["label"]["kind"] == "rank" and child["code"] is None and psutil.pid_exists(child["pid"]):
                    found.append(int(child["pid"]))
        return found


def _kill(pid: int) -> bool:
    if pid <= 1:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def measured(kills: int, seed: int, folder: Path, kept: Path | None) -> dict[str, Any]:
    """The numbers, as they are written."""
    with Lab(nodes=2, devices=0, rate_bits_per_s=200e6) as lab:
        devices = {node: [{"index": index, "kind": "cpu"} for index in range(6)] for node in ("m1", "m2")}
        with Cluster(lab, devices=devices) as cluster:
            chaos = Chaos(cluster, lab, seed, folder, kept)
            chaos.undisturbed()
            while chaos.kills < kills:
                while len(chaos.jobs) < JOBS:
                    chaos.submit()
                chaos.deed()
                time.sleep(chaos.random.uniform(*CALM_S))
                chaos.look()
                print(f"\r{chaos.kills} of {kills} kills, {len(chaos.finished)} jobs ended", end="", file=sys.stderr, flush=True)
            while chaos.jobs:
                chaos.look()
                time.sleep(0.2)
            print(file=sys.stderr)
    verdicts = Counter(job["verdict"] for job in chaos.finished)
    return {
        "kills": chaos.kills, "seed": seed, "by_kind": dict(chaos.done), "jobs": len(chaos.finished), "lost_jobs": verdicts["lost"],
        "hung_jobs": verdicts["hung"], "repeated_steps": sum(job.get("again", 0) for job in chaos.finished),
        "wrong": [job for job in chaos.finished if job["verdict"] != "right"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the numbers here")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for the events and logs of jobs that did not end as they should")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="restow-chaos-") as folder:
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
        numbers = measured(options.kills, options.seed, Path(folder), options.keep)
    options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    print(
        f"{numbers['kills']} kills ({', '.join(f'{n} {kind}' for kind, n in sorted(numbers['by_kind'].items()))}),"
        f" {numbers['jobs']} jobs:"
        f" {numbers['lost_jobs']} lost, {numbers['hung_jobs']} hung, {numbers['repeated_steps']} steps made again"
    )


if __name__ == "__main__":
    main()
