"""A whole cluster for tests of faults: real controller, agents, nurseries and ranks, all of them processes that can be killed.

    with Cluster({"a": 4, "b": 2}) as cluster:
        job = cluster.submit("a:0 a:1 b:0")
        with cluster.held("Connect"):
            cluster.migrate(job, "a:0 a:1 a:2")
            cluster.await_event(job, "TwinParked")
            cluster.kill(cluster.pid(job, 2, "twin"))

The training script waits at the first of HOLDS until `release`, and at the second until `release_all`, so a test chooses what
happens before which step.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restow import config
from restow.client import Client
from restow.errors import Unreachable
from restow.lab import Lab
from restow.page import Page, open_page
from tests.live.daemons import MODULE

PATIENCE_S = 90.0
LOOK_S = 0.004
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/sdk/script_mlp.py"
HOLDS, STEPS = (20, 40), 60
WHERE = "a:0 a:1 b:0"  # of three ranks on the nodes of conftest.py
SHM_BYTES = 1 << 20  # of each node: enough for pages and the log of a shadow


@dataclass(frozen=True)
class LiveJob:
    id: str
    folder: Path  # a file named after a step here lets the script go on from it
    workers: int


class Cluster:
    """Nodes by name with their number of devices. With a lab they are its machines, and the controller may be on one of them; else
    all are this one. `core`: times of CoreConfig."""

    def __init__(self, nodes: Mapping[str, int], lab: Lab | None = None, controller_on: str = "", **core: float):
        self._enter = lab.nodes[controller_on].enter_command([]) if lab and controller_on else []
        self.folder = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp"))
        self.shm = Path(tempfile.mkdtemp(prefix="live-", dir=os.environ["RESTOW_SHM"]))
        self.nodes = list(nodes)
        self.is_bounded = True  # shared memory of each node is SHM_BYTES
        self.client = Client(config.Home(path=self.folder / "home"), answer_s_max=PATIENCE_S)
        self._controller: subprocess.Popen[bytes] | None = None
        self._mounts: list[Path] = []
        about = {}
        for name, devices in nodes.items():
            shm = self.shm / name
            shm.mkdir()
            self._bound(shm)
            address = lab.nodes[name].address if lab else "127.0.0.1"
            about[name] = {"address": address, "shm": str(shm), "enter": lab.nodes[name].enter_command([]) if lab else []}
            wire = {"devices": [{"index": index} for index in range(devices)]}
            (self.folder / f"{name}.devices.json").write_text(json.dumps(wire))
        (self.folder / "held").mkdir()
        (self.folder / "core.json").write_text(json.dumps(core))
        (self.folder / "nodes.json").write_text(json.dumps(about))

    def _bound(self, shm: Path) -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={SHM_BYTES}", "none", str(shm)]
        if shutil.which("mount") and subprocess.run(command, capture_output=True).returncode == 0:
            self._mounts.append(shm)
        else:
            self.is_bounded = False

    def __enter__(self) -> Cluster:
        try:
            self.start_controller()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._controller and self._controller.poll() is None:
                self.client.stop(end_agents=True)
                self._controller.wait(PATIENCE_S)
        finally:
            if self._controller and self._controller.poll() is None:
                self._controller.kill()
                self._controller.wait()
            for pid in self._left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for mount in self._mounts:
                subprocess.run(["umount", "-l", str(mount)], check=False)
            shutil.rmtree(self.shm, ignore_errors=True)
            shutil.rmtree(self.folder, ignore_errors=True)

    def _left(self) -> list[int]:
        """Processes whose command line or environment names our folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                said = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
                if os.fsencode(self.folder) in said and int(path.name) != os.getpid():
                    found.append(int(path.name))
        return found

    # ------------------------------------------------------------ the daemons

    def start_controller(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
        with open(self.folder / "controller.log", "ab") as log:
            self._controller = subprocess.Popen(
                [*self._enter, sys.executable, "-m", MODULE, "controller", str(self.folder)],
                stdout=log, stderr=log, env=environment, cwd=ROOT, start_new_session=True,
            )  # fmt: skip
        self.await_true(lambda: self._joined() == len(self.nodes), "the nodes never joined")

    def _joined(self) -> int:
        assert self._controller
        assert self._controller.poll() is None, self.controller_log()
        try:
            return sum(node["alive"] for node in self.client.nodes())
        except Unreachable:
            return 0

    def controller_log(self) -> str:
        return (self.folder / "controller.log").read_text()[-6000:]

    def kill_controller(self) -> None:
        """Killed, and another one started as an operator would."""
        assert self._controller
        self._controller.kill()
        self._controller.wait()
        self.start_controller()

    def restart(self) -> None:
        """Everything is taken down as by `restow down`, and started again."""
        assert self._controller
        self.client.stop(end_agents=True)
        self._controller.wait(PATIENCE_S)
        self.start_controller()

    def lose(self, node: str) -> None:
        """The machine is gone: everything on it is killed, and nothing there answers or is started again."""
        (self.folder / "lost").mkdir(exist_ok=True)
        (self.folder / "lost" / node).touch()
        pids = {self.agent_pid(node), self.nursery_pid(node)}
        for path in (self.folder / node / "run").glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                pids.add(int(json.loads(path.read_text())["pid"]))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def controller_pid(self) -> int:
        assert self._controller
        return self._controller.pid

    def agent_pid(self, node: str) -> int:
        return int(json.loads((self.folder / node / "node.json").read_text())["pid"])

    def nursery_pid(self, node: str) -> int:
        return int((self.folder / node / "nursery.pid").read_text())

    @staticmethod
    def kill(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    # ------------------------------------------------------------ jobs

    def submit(self, placement: str, fill: str = "replica", width: int = 64, at_hold: bool = True, back: str = "",
               recover: bool = False, stops: str = "", devices: tuple[int, int] = (0, 0), flags: tuple[str, ...] = (),
               **spec: Any) -> LiveJob:  # fmt: skip
        """A job that runs where the test wants it; returns when every rank stands at its first hold and the controller knows it."""
        folder = Path(tempfile.mkdtemp(prefix="job-", dir=self.folder))
        workers = len(placement.split())
        holds = f"{folder}:{','.join(map(str, HOLDS))}"
        command = ["python", str(SCRIPT), "--steps", str(STEPS), "--width", str(width), "--holds", holds, "--stops", stops, *flags]
        view = self.client.submit(
            {
                "command": command, "name": "net", "workers": workers, "cwd": str(folder), "migrate": False, "fill": fill,
                "env": [["PLACEMENT", placement], ["BACK", back]], "stop_grace_s": 1.0, "recover": recover,
                "devices": list(devices), **spec,
            }
        )  # fmt: skip
        job = LiveJob(view["id"], folder, workers)
        if at_hold:
            self.await_hold(job, HOLDS[0])
        return job

    def await_hold(self, job: LiveJob, step: int) -> None:
        """Every rank waits at its hold in this step and the controller knows it. The step that it shows is one that ranks are in;
        the line of the step is what they print last before they wait."""
        self.await_true(lambda: self.client.show(job.id)["step"] == step, f"never at its hold in step {step}", job)
        self.await_true(
            lambda: all(lines and lines[-1].startswith(f"{step} ") for lines in self.output(job)),
            f"not every rank came to its hold in step {step}", job,
        )  # fmt: skip

    def migrate(self, job: LiveJob, to: str) -> None:
        self.client.migrate(job.id, to=to)

    def release(self, job: LiveJob) -> None:
        (job.folder / str(HOLDS[0])).touch()

    def release_all(self, job: LiveJob) -> None:
        for step in HOLDS:
            (job.folder / str(step)).touch()

    def await_end(self, job: LiveJob) -> dict[str, Any]:
        """Let it go on to its end: its view once it is final; nothing of it is left then on any node."""
        self.release_all(job)
        self.await_true(lambda: self._state(job) in ("done", "failed", "cancelled"), "the job never ended", job)
        self.await_true(lambda: not self.processes(job) and not self._stores(job), "processes are left", job)
        self.await_true(lambda: not list(self.shm.glob(f"*/{job.id}.*")), "shared memory is left", job)
        return self.client.show(job.id)

    def _state(self, job: LiveJob) -> str:
        return str(self.client.show(job.id)["state"])

    def output(self, job: LiveJob) -> list[list[str]]:
        """What each rank printed over all generations, on whatever node; rehearsals and torch's warnings (with times) left out."""
        printed = []
        for rank in range(job.workers):
            logs = [p for p in self.folder.glob(f"*/logs/{job.id}/{rank}.g*.log") if "rehearsal" not in p.name]
            logs.sort(key=lambda path: int(path.name.split(".g")[1].split(".")[0]))
            lines = [line for log in logs for line in log.read_text().splitlines()]
            printed.append([line for line in lines if not line.startswith("[W")])
        return printed

    # ------------------------------------------------------------ what there is

    def events(self, job: LiveJob) -> list[dict[str, Any]]:
        """The job's journalled events, read behind the controller's back, so also when it is dead."""
        return [event for event in self.all_events() if event.get("job") == job.id]

    def all_events(self) -> list[dict[str, Any]]:
        with contextlib.closing(sqlite3.connect(f"file:{self.folder}/home/journal.db?mode=ro", uri=True)) as journal:
            return [json.loads(body) for (body,) in journal.execute("select body from events order by number")]

    def await_event(self, job: LiveJob, kind: str, count: int = 1, **about: Any) -> list[dict[str, Any]]:
        def found() -> list[dict[str, Any]]:
            events = [e for e in self.events(job) if e["type"] == kind and about.items() <= e.items()]
            return events if len(events) >= count else []

        return self.await_true(found, f"no {kind} with {about}", job)

    def has_event(self, job: LiveJob, kind: str, **about: Any) -> bool:
        return any(e["type"] == kind and about.items() <= e.items() for e in self.events(job))

    def await_told(self, job: LiveJob, kind: str, generation: int = 0) -> None:
        """A command of this kind (for this generation) was delivered to a node."""
        path = self.folder / "told"
        wanted = [job.id, str(generation), kind]

        def is_told() -> bool:
            told = [line.split()[:3] for line in path.read_text().splitlines()]
            return any(words == wanted or (not generation and words[::2] == wanted[::2]) for words in told)

        self.await_true(is_told, f"{kind} was never delivered", job)

    @contextlib.contextmanager
    def held(self, kind: str) -> Iterator[None]:
        """Commands of this kind stay on their way as long as we are in here."""
        path = self.folder / "held" / kind
        path.touch()
        try:
            yield
        finally:
            path.unlink()

    def processes(self, job: LiveJob) -> list[dict[str, Any]]:
        """The job's living processes: node, pid, rank, generation at birth, role; read from the nurseries' own notes."""
        found = []
        for path in self.folder.glob("*/run/*.json"):
            with contextlib.suppress(OSError, ValueError):
                child = json.loads(path.read_text())
                if child["label"]["job"] == job.id and child["label"]["kind"] == "rank" and not _is_gone(child["pid"]):
                    found.append({**child["label"], "pid": child["pid"], "node": path.parts[-3]})
        return found

    def _stores(self, job: LiveJob) -> list[int]:
        found = []
        for path in self.folder.glob("*/run/*.json"):
            with contextlib.suppress(OSError, ValueError):
                child = json.loads(path.read_text())
                if child["label"]["job"] == job.id and child["label"]["kind"] == "store" and not _is_gone(child["pid"]):
                    found.append(int(child["pid"]))
        return found

    def pid(self, job: LiveJob, rank: int, born: int) -> int:
        """The process of this rank that was born in generation `born`: 1 an old rank, 2 the twin."""
        started = self.await_event(job, "RankStarted", rank=rank, generation=born)
        return int(started[-1]["pid"])

    @contextlib.contextmanager
    def pages(self, job: LiveJob) -> Iterator[list[Page]]:
        """Of the old ranks."""
        pages = [open_page(path) for path in sorted(self.shm.glob(f"*/{job.id}.g1.r*.page"))]
        try:
            yield pages
        finally:
            for page in pages:
                page.close()

    def await_switch_step(self, job: LiveJob) -> None:
        """Every old rank stands at the proposed switch step and waits for the decision."""
        with self.pages(job) as pages:
            assert len(pages) == job.workers
            self.await_true(lambda: all(p.get("step") == p.get("switch_step") for p in pages), "never at the switch step", job)

    def await_true(self, question: Callable[[], Any], what: str, job: LiveJob | None = None) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (answer := question()):
            assert time.monotonic() < deadline, f"{what}\n{self.story(job)}"
            time.sleep(LOOK_S)
        return answer

    def story(self, job: LiveJob | None) -> str:
        """For whoever reads why a test failed."""
        events = [json.dumps(event) for event in self.events(job)] if job else []
        printed = [f"rank {rank}: {lines[-12:]}" for rank, lines in enumerate(self.output(job))] if job else []
        return "\n".join([*events[-40:], *printed, self.controller_log()])


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
