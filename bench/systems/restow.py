"""restow itself: one job goes to and fro on a running cluster; the moves in one direction are measured.

Only the public ways are used: `restow up`, `restow up --join`, and what the client offers.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.cases import RATE_BITS_PER_S, WORLD_SIZE, Case
from bench.place import ROOT, Wire, environment, python, set_rate
from bench.run import RunFailed
from bench.systems.base import Reference, Trial
from bench.timeline import read_marks, said
from restow.client import Client
from restow.config import Home

TOLD = ("downtime_s", "downtime_predicted_s", "wire_bytes", "step_predicted_s", "step_after_s")
LOG_POLL_S = 0.25  # looking costs the controller and us some milliseconds of the cores that the job trains on


class Cluster:
    """restow on the nodes of a place, under a home of its own; taken down on leaving."""

    def __init__(
        self, place: Any, nodes: tuple[str, ...] = ("m1", "m2"), devices: Mapping[str, list[dict[str, Any]]] | None = None
    ) -> None:
        """`devices`: of each node, as in a device file; without it as many as ranks, not bound to a core: the rivals' ranks are
        not either."""
        self._place, self._nodes = place, nodes
        self._home = Path(tempfile.mkdtemp(prefix="restow-bench-home-", dir="/tmp"))
        default = [{"index": index, "kind": "cpu"} for index in range(WORLD_SIZE)]
        for name in nodes:
            listed = {"devices": devices[name] if devices else default}
            self._devices_of(name).write_text(json.dumps(listed))
        self.client = Client(Home(path=self._home))

    @property
    def home(self) -> Path:
        """RESTOW_HOME of the first node."""
        return self._home

    def _devices_of(self, name: str) -> Path:
        return self._home / f"devices-{name}.json"

    def environment(self, name: str) -> dict[str, str]:
        """What a restow command needs on this node."""
        node = self._place.nodes[name]
        home = self._home if name == self._nodes[0] else self._home / name  # a joined node keeps its own
        return environment(node, RESTOW_HOME=str(home), RESTOW_NODE_NAME=name, RESTOW_NODE_ADDRESS=node.address)

    def command(self, name: str, *words: str) -> str:
        """Run `restow WORDS` on this node; returns what it printed. Raises RunFailed."""
        argv = ["env", f"RESTOW_DEVICES={self._devices_of(name)}", *python("-m", "restow", *words)]  # instead of the lab's
        program = self._place.nodes[name].popen(
            argv, env=self.environment(name), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL, cwd=ROOT,
        )  # fmt: skip
        out, err = program.communicate(timeout=180)
        if program.returncode:
            raise RunFailed(f"restow {' '.join(words[:4])} ended with {program.returncode}: {err.decode(errors='replace')[-300:]}")
        return str(out.decode())

    def __enter__(self) -> Cluster:
        try:
            self.command(self._nodes[0], "up")
            for name in self._nodes[1:]:
                self._join(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _join(self, name: str) -> None:
        gcs = self.client.ping()["gcs"]
        self.command(name, "up", "--join", gcs, "--token-file", str(self._home / "token"))
        deadline_s = time.monotonic() + 60
        while not any(node["name"] == name and node["alive"] for node in self.client.nodes()):
            if time.monotonic() > deadline_s:
                raise RunFailed(f"node {name} joined, but the controller does not see it after 60 s")
            time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        for name in reversed(self._nodes):
            try:
                self.command(name, "down", "--yes", "--purge")
            except (RunFailed, subprocess.TimeoutExpired) as error:
                print(f"bench: {error}", file=sys.stderr)
        shutil.rmtree(self._home, ignore_errors=True)

    def submit(self, name: str, fill: str, options: list[str], workers: int = WORLD_SIZE, **more: Any) -> str:
        """Hand in the training job; returns its id. `more` holds further fields of its spec."""
        source = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
        spec = {
            "command": (sys.executable, str(ROOT / "bench" / "train_job.py"), *options),
            "name": name,
            "workers": workers,
            "cwd": str(ROOT),
            "env": (("PYTHONPATH", source),),
            "fill": fill,
            **more,
        }
        return str(self.client.submit(spec)["id"])


class Watched:
    """A job of the cluster: what its ranks printed so far, and waiting for it."""

    def __init__(self, cluster: Cluster, job: str) -> None:
        self.client, self.job = cluster.client, job

    def lines(self) -> list[str]:
        """All lines of all ranks, over all generations."""
        by_source: dict[tuple[int, int], list[str]] = {}
        for piece in self.client.logs(self.job):
            by_source.setdefault((piece["rank"], piece["generation"]), []).append(piece["text"])
        return [line for pieces in by_source.values() for line in "".join(pieces).splitlines()]

    def show(self) -> dict[str, Any]:
        """The job's view. Raises RunFailed when it failed."""
        view = self.client.show(self.job)
        if view["state"] in ("failed", "cancelled"):
            raise RunFailed(f"job {self.job} {view['state']}: {view['reason']}")
        return view

    def wait_until(self, what: str, is_so: Any, timeout_s: float = 300.0) -> dict[str, Any]:
        deadline_s = time.monotonic() + timeout_s
        while not is_so(view := self.show()):
            if time.monotonic() > deadline_s:
                at = f"{view['state']}, step {view['step']}: {view['reason']}"
                raise RunFailed(f"job {self.job}: waited {timeout_s:.0f} s for {what}; {at}")
            time.sleep(LOG_POLL_S)
        return view

    def make_steps(self, count: int) -> None:
        """Wait until this many more steps are done."""
        goal = self.show()["step"] + count
        self.wait_until(f"step {goal}", lambda view: view["step"] >= goal or view["state"] == "done")

    def move(self, placement: str) -> tuple[float, dict[str, Any]]:
        """Move it and wait until it is there: when that was asked for, and the job's view afterwards."""
        began_s = time.monotonic()
        self.client.migrate(self.job, to=placement)
        there = sorted(placement.split())  # restow may give the same slots to the ranks in another order: fewer then move
        return began_s, self.wait_until(
            f"the move to {placement}", lambda view: sorted(view["placement"]) == there and view["switch"] is None
        )


def slots(ranks_on: tuple[str, ...]) -> str:
    """Rank → node as the placement that gives each node's ranks its devices in order."""
    return " ".join(f"{name}:{ranks_on[:rank].count(name)}" for rank, name in enumerate(ranks_on))


class Restow:
    name = "restow"
    script = ROOT / "bench" / "train_job.py"
    note = "one job, moved to and fro; between the measured moves the link is open"

    def why_not(self) -> str:
        return ""

    def reference(self, case: Case, place: Any, folder: Path, options: list[str]) -> Reference:
        """The run that was left alone in the same cluster, after the moves."""
        return self._alone

    def trials(self, case: Case, place: Any, folder: Path, moves: int, options: list[str]) -> Iterator[Trial]:
        """As many moves as asked of one job, which then ends by itself; its twin that never moves follows."""
        total = case.warm + (case.before + case.after + case.between) * (moves + 1)
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            set_rate(place, None)
            cluster = stack.enter_context(Cluster(place))
            wire = stack.enter_context(Wire(place, "m1"))
            job = Watched(cluster, cluster.submit("moved", case.fill, [*options, f"--steps={total}"]))
            job.wait_until("its first steps", lambda view: view["movable"] and view["step"] >= case.warm)
            spans: list[tuple[float, float, float]] = []  # the link's rate, the call, the last step that counts
            for _ in range(moves):
                if sorted(job.show()["placement"]) != sorted(slots(case.now).split()):
                    job.move(slots(case.now))
                set_rate(place, RATE_BITS_PER_S)
                since_s = time.monotonic()
                job.make_steps(case.before)
                began_s, _ = job.move(slots(case.then))
                job.make_steps(case.after)
                spans.append((since_s, began_s, time.monotonic()))
                set_rate(place, None)
            job.wait_until("its end", lambda view: view["state"] == "done", timeout_s=1800)
            lines = job.lines()
            (folder / "restow-moved.log").write_text("\n".join(lines))
            alone = Watched(cluster, cluster.submit("alone", case.fill, [*options, f"--steps={total}"]))
            alone.wait_until("its end", lambda view: view["state"] == "done", timeout_s=1800)
            (folder / "restow-alone.log").write_text("\n".join(alone.lines()))
            self._alone = Reference(marks=read_marks(alone.lines()), digests=digests(alone.lines()))
            told = [move for move in job.show()["moves"] if sorted(move["then"]) == sorted(slots(case.then).split())]
            for number, (since_s, began_s, until_s) in enumerate(spans):
                yield Trial(
                    marks=read_marks(lines),
                    began_s=began_s,
                    since_s=since_s,
                    until_s=until_s,
                    wire=wire,
                    digests=digests(lines),
                    state_bytes=max((end["state_bytes"] for end in said(lines, "end")), default=0),
                    told={name: told[number][name] for name in TOLD} if len(told) == moves else {},
                )


def digests(lines: list[str]) -> dict[int, str]:
    return {end["rank"]: end["digest"] for end in said(lines, "end")}
