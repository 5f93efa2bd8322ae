"""A gang on one machine without agent and controller: what the SDK's own tests drive a switch with.

`Gang` plays both: it starts ranks and twins as plain processes with the environment of docs/design/001-processes.md, hosts the
stores, answers the channel and writes pages. Real processes, real sockets, real groups; only who decides is the test.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import queue
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from restow.page import Page, create_page
from restow.placement import Placement, moved_ranks, parse_placement

PATIENCE_S = 90.0
# forks processes that have imported torch already, as the nursery does: 10 ms instead of 3 s each
_warm = multiprocessing.get_context("forkserver")
_warm.set_forkserver_preload(
    ["torch", "torch._dynamo", "torch.distributed", "torch.utils.data", "numpy", "restow.sdk.session"]
)
SECRET = "5e" * 16


def _run(script: str, arguments: list[str], environment: dict[str, str], log: str) -> None:
    """In the child: be what `python script arguments` would be."""
    os.setsid()
    gc.freeze()  # as the nursery does
    multiprocessing.set_start_method(
        "fork", force=True
    )  # as in a fresh python; a child of the fork server has another default
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def in_a_process(does: Callable[[], None]) -> None:
    """Run it in a warm process of its own, whose memory no other test has used; fails if that does, which says why on stderr."""
    process = _warm.Process(target=does)
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == 0, f"{does.__name__} ended with {process.exitcode}"


class Child:
    """A warm process with the few words of Popen that we need."""

    def __init__(self, script: str, arguments: list[str], environment: dict[str, str], log: Path):
        os.environ["OMP_NUM_THREADS"] = "1"  # read when the fork server imports torch
        self._process = _warm.Process(target=_run, args=(script, arguments, environment, str(log)))
        self._process.start()
        self.pid = int(self._process.pid or 0)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout_s: float = PATIENCE_S) -> int | None:
        self._process.join(timeout_s)
        return self._process.exitcode


@dataclass
class Process:
    rank: int
    generation: int
    role: str
    popen: Child
    page: Page
    log: Path
    facts: list[dict[str, Any]] = field(default_factory=list)
    connection: socket.socket | None = None


class Gang:
    """One job. Use as a context manager: everything is ended and removed on the way out."""

    def __init__(
        self, script: str | Path, placement: str, arguments: Sequence[str] = (), holds: Sequence[int] = (20,),
        gates: Path | None = None, job: str = "job",
    ):  # fmt: skip
        """`holds`: steps after which the script waits for `release`, so that a test has time for what it does. `gates`: a folder
        with one more for each node, in which the gates of its devices are."""
        self.gates, self.job = gates, job
        self.placement = parse_placement(placement)
        self.generation = self._present = 1  # the newest number used, and the generation that trains
        self.folder = Path(tempfile.mkdtemp(prefix="rg-"))
        self.script = str(script)
        self.holds = list(holds)
        self.arguments = [*arguments, "--holds", f"{self.folder}:{','.join(map(str, self.holds))}"]
        self.shm = Path(tempfile.mkdtemp(prefix="gang-", dir=os.environ["RESTOW_SHM"]))
        self.processes: list[Process] = []
        self.messages: queue.Queue[tuple[Process, dict[str, Any]]] = queue.Queue()
        self._stores: list[dist.TCPStore] = []
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(self.folder / "agent.sock"))
        self._server.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Gang:
        store = self.open_store()
        for rank in range(len(self.placement)):
            self.start(rank, self.placement, 1, "rank", store)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.popen.pid, signal.SIGKILL)
            process.popen.wait()
        self._server.close()
        self._stores.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.shm, ignore_errors=True)

    # ------------------------------------------------------------ processes

    def open_store(self) -> dist.TCPStore:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
        self._stores.append(store)
        return store

    def start(self, rank: int, placement: Placement, generation: int, role: str, store: dist.TCPStore) -> Process:
        log = self.folder / f"{rank}.g{generation}.log"
        page = create_page(self.shm / f"job.g{generation}.r{rank}.page")
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(len(placement)),
            "LOCAL_RANK": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "RESTOW_JOB": self.job,
            "RESTOW_GATE": f"{self.gates / placement[rank].node}:{placement[rank].device}" if self.gates else "",
            "RESTOW_GENERATION": str(generation),
            "RESTOW_ROLE": role,
            "RESTOW_PAGE": str(page.path),
            "RESTOW_AGENT": str(self.folder / "agent.sock"),
            "RESTOW_SECRET": SECRET,
            "RESTOW_ADDRESS": "127.0.0.1",
            "RESTOW_NODE": placement[rank].node,
            "RESTOW_STORE": f"127.0.0.1:{store.port}",
            "RESTOW_LOG": str(log),
            "RESTOW_PRIVATE": str(self.shm / f"job.g{generation}.r{rank}.private"),
        }
        output = log if role == "rank" else log.with_suffix(".rehearsal.log")
        popen = Child(self.script, self.arguments, environment, output)
        process = Process(rank, generation, role, popen, page, output)
        self.processes.append(process)
        return process

    def live(self, rank: int) -> Process:
        """The process that holds `rank` now."""
        return next(p for p in reversed(self.processes) if p.rank == rank and p.role == "rank")

    # ------------------------------------------------------------ messages

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        process: Process | None = None
        for line in connection.makefile("rb"):
            message = json.loads(line)
            if message["type"] == "hello":
                assert message["secret"] == SECRET
                while process is None:
                    process = next((p for p in self.processes if p.popen.pid == message["pid"]), None)
                process.connection = connection
            else:
                assert process
                process.facts.append(message)
                self.messages.put((process, message))

    def tell(self, process: Process, **message: Any) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while process.connection is None:
            assert time.monotonic() < deadline, f"rank {process.rank} never said hello"
            time.sleep(0.01)
        process.connection.sendall(json.dumps(message).encode() + b"\n")

    def await_fact(
        self, processes: Sequence[Process], kind: str, generation: int | None = None
    ) -> list[dict[str, Any]]:
        """The fact of this kind from each of the processes. Fails when one of them ends without it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = [
                next(
                    (
                        f
                        for f in p.facts
                        if f["type"] == kind and (generation is None or f.get("generation") == generation)
                    ),
                    None,
                )
                for p in processes
            ]
            if all(found):
                return found  # type: ignore[return-value]
            for process, fact in zip(processes, found, strict=True):
                failed = [f for f in process.facts if f["type"] == "failed"]
                ended = process.popen.poll() is not None
                assert fact or not (failed or ended), f"{kind}: {failed} {process.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"no {kind} from {[p.rank for p, f in zip(processes, found, strict=True) if not f]}"
            time.sleep(0.005)

    def await_step(self, step: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        ranks = [self.live(rank) for rank in range(len(self.placement))]
        while min(p.page.get("step") for p in ranks) < step:
            for process in ranks:
                assert process.popen.poll() in (None, 0), process.log.read_text()[-3000:]
            assert time.monotonic() < deadline, f"step {step} not reached"
            time.sleep(0.002)

    def await_stop(self, rank: int, step: int, place: str) -> None:
        """Until a process of `rank` waits at a place named by the script's `--stops`."""
        deadline = time.monotonic() + PATIENCE_S
        while not (self.folder / f"stop-{rank}-{step}-{place}").exists():
            assert time.monotonic() < deadline, f"rank {rank} did not come to {place} of step {step}"
            time.sleep(0.002)

    def kill(self, process: Process) -> None:
        os.killpg(process.popen.pid, signal.SIGKILL)
        process.popen.wait()

    def release(self) -> None:
        """Let the script go on from the hold that it has come to."""
        if self.holds:
            (self.folder / str(self.holds.pop(0))).touch()

    # ------------------------------------------------------------ a switch

    def prepare(self, then: str, fill: str) -> Switching:
        """Old ranks on their guard, twins parked."""
        switching = self.begin(then, fill)
        switching.await_parked()
        return switching

    def begin(self, then: str, fill: str) -> Switching:
        """Old ranks are told to be on their guard, twins have been started."""
        target = parse_placement(then)
        self.generation += 1
        store = self.open_store()
        moved = moved_ranks(self.placement, target)
        old = [self.live(rank) for rank in range(len(target))]
        self._present = int(old[0].page.get("generation"))
        for process in old:
            self._tell_terms(process, "guard", target, store, fill)
        twins = [self.start(rank, target, self.generation, "twin", store) for rank in moved]
        return Switching(self, target, fill, store, old, twins)

    def _tell_terms(self, process: Process, kind: str, then: Placement, store: dist.TCPStore, fill: str) -> None:
        self.tell(
            process,
            type=kind,
            generation=self.generation,
            present=self._present,
            now=[list(slot) for slot in self.placement],
            then=[list(slot) for slot in then],
            store=["127.0.0.1", store.port],
            fill=fill,
        )

    def move(self, then: str, fill: str = "replica", at: int | None = None) -> list[dict[str, Any]]:
        """The whole move; returns what the ranks of the new generation said."""
        switching = self.prepare(then, fill)
        switching.connect()
        switching.propose(at)
        switching.decide("go")
        self.release()
        return switching.await_done()

    def await_end(self) -> None:
        """Every rank ends by itself with code 0."""
        while self.holds:
            self.release()
        for rank in range(len(self.placement)):
            process = self.live(rank)
            code = process.popen.wait(PATIENCE_S)
            assert code == 0, f"rank {rank}: {code}\n{process.log.read_text()[-1500:]}\n{self.output(rank)[-40:]}"

    def output(self, rank: int) -> list[str]:
        """What the rank printed over all generations, rehearsals left out."""
        logs = sorted(self.folder.glob(f"{rank}.g*.log"), key=lambda p: int(p.name.split(".g")[1].split(".")[0]))
        return [line for log in logs if "rehearsal" not in log.name for line in log.read_text().splitlines()]

    def story(self, rank: int) -> list[str]:
        """What the rank printed, where a step that was repeated by another process may have been printed by both."""
        return list(dict.fromkeys(self.output(rank)))


@dataclass
class Switching:
    gang: Gang
    then: Placement
    fill: str
    store: dist.TCPStore
    old: list[Process]
    twins: list[Process]
    step: int = -1

    @property
    def moved(self) -> tuple[int, ...]:
        return moved_ranks(self.gang.placement, self.then)

    def await_parked(self) -> None:
        signatures = {f["signature"] for f in self.gang.await_fact(self.old, "ready")}
        parked = self.gang.await_fact(self.twins, "parked")
        assert {f["signature"] for f in parked} == signatures, (signatures, parked)

    def connect(self, without: int | None = None) -> None:
        """`without`: an old rank that is dead."""
        everybody = [*(process for process in self.old if process.rank != without), *self.twins]
        for process in everybody:
            self.gang._tell_terms(process, "connect", self.then, self.store, self.fill)
        self.gang.await_fact(everybody, "connected", self.gang.generation)
        if self.fill == "shadow":
            self.gang.await_fact(self.twins, "shadowing", self.gang.generation)

    def propose(self, at: int | None = None) -> None:
        step = at or max(p.page.get("step") for p in self.old) + 5
        for process in self.old:
            process.page.set("switch_generation", self.gang.generation)
            process.page.set("switch_step", step)
        assert max(p.page.get("step") for p in self.old) < step
        self.step = int(step)

    def decide(self, word: str) -> str:
        return self.store.compare_set(f"decision/{self.step}", "", word).decode()

    def await_done(self) -> list[dict[str, Any]]:
        staying = [p for p in self.old if p.rank not in self.moved]
        facts = self.gang.await_fact([*staying, *self.twins], "switched", self.gang.generation)
        for process in self.old:
            if process.rank in self.moved:
                assert process.popen.wait(PATIENCE_S) == 0
        for twin in self.twins:
            twin.role = "rank"
        self.gang.placement = self.then
        return facts

    def await_taken_over(self) -> list[dict[str, Any]]:
        """Like await_done, where moved ranks were killed."""
        staying = [p for p in self.old if p.rank not in self.moved]
        facts = self.gang.await_fact([*staying, *self.twins], "switched", self.gang.generation)
        for twin in self.twins:
            twin.role = "rank"
        self.gang.placement = self.then
        return facts
