"""A real agent of one node for tests: real nursery, real processes, folders that vanish afterwards.

The agent's event loop runs in a thread, so a test reads as a sequence of commands and events.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from restow.agent.loop import Agent, AgentConfig
from restow.codec import from_json, to_json
from restow.job import JobSpec
from restow.messages import Command, Event, Launch, OpenStore, RankExited, StoreOpened
from restow.page import Page, open_page
from restow.placement import parse_placement

PATIENCE_S = 60.0
SECRET = "5e" * 16


class Node:
    """Use as a context manager. Everything it started is gone afterwards, whatever happened in between."""

    def __init__(self, name: str = "a", *, warm: bool = True, devices: str = "", environment: dict[str, str] | None = None):
        self.folder = Path(tempfile.mkdtemp(prefix="ra-"))
        self.shm = Path(tempfile.mkdtemp(prefix="agent-", dir=os.environ["RESTOW_SHM"]))
        devices_file = None
        if devices:
            devices_file = self.folder / "devices.json"
            devices_file.write_text(devices)
        self.config = AgentConfig(
            node=name, address="127.0.0.1", cluster_id="0123abcd", node_dir=self.folder / "n", shm_dir=self.shm / "n",
            devices_file=devices_file, warm=warm, environment={**os.environ, **(environment or {})},
        )  # fmt: skip
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.agent = Agent(self.config)
        self.seen: list[Event] = []
        self.after = 0
        self._jobs = 0

    def __enter__(self) -> Node:
        self.thread.start()
        self.run(self.agent.start())
        return self

    def __exit__(self, *_: object) -> None:
        nursery = self.nursery_pid()
        try:
            self.run(self.agent.stop())
        finally:
            end_session_tree(nursery)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(PATIENCE_S)
            self.loop.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(self.shm, ignore_errors=True)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)

    def restart(self) -> None:
        """Another agent takes over, as after a crash of this one: nothing but processes and files is handed on."""
        self.run(self.agent.stop(keep_ranks=True))
        self.agent = Agent(self.config)
        self.run(self.agent.start())
        self.after = 0

    def nursery_pid(self) -> int:
        return int((self.config.node_dir / "nursery.pid").read_text() or 0)

    # ------------------------------------------------------------ commands, events, questions

    def tell(self, command: Command) -> None:
        self.run(self.agent.tell(to_json(command)))

    def ask(self, what: str, **arguments: Any) -> Any:
        return self.run(self.agent.ask(what, arguments))

    def await_event(self, kind: type, **about: Any) -> Any:
        """The first event of this kind with these fields, also if it came before; it is not found twice."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for event in self.seen:
                if isinstance(event, kind) and all(getattr(event, name) == value for name, value in about.items()):
                    self.seen.remove(event)
                    return event
            assert time.monotonic() < deadline, f"no {kind.__name__} with {about}; seen: {self.seen}"
            self.read(wait_s=1.0)

    def read(self, wait_s: float = 0.0) -> list[Event]:
        answer = self.run(self.agent.events(self.after, wait_s))
        events = [from_json(wire) for _, wire in answer["events"]]
        if events:
            self.after = answer["events"][-1][0]
        self.seen += events
        return events

    # ------------------------------------------------------------ jobs

    def job(self) -> str:
        self._jobs += 1
        return f"job{self._jobs}"

    def script(self, text: str, name: str = "script.py") -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def launch(
        self, *command: str, job: str = "", env: dict[str, str] | None = None, cwd: str = "", placement: str = "a:0",
        store: tuple[str, int] = ("127.0.0.1", 1), generation: int = 1,
    ) -> str:  # fmt: skip
        """Start a gang here; the job's name."""
        job = job or self.job()
        spec = JobSpec(
            command=command, workers=len(placement.split()), cwd=cwd or str(self.folder), env=tuple((env or {}).items())
        )
        self.tell(
            Launch(
                job=job, generation=generation, spec=spec, placement=parse_placement(placement), store=store, secret=SECRET
            )
        )
        return job

    def run_to_end(self, *command: str, **arguments: Any) -> tuple[RankExited, str]:
        """One rank, until it is gone: how it ended and what it printed."""
        job = self.launch(*command, **arguments)
        return self.await_event(RankExited, job=job), self.log(job)

    def python(self, text: str, **arguments: Any) -> tuple[RankExited, str]:
        return self.run_to_end("python", self.script(text), **arguments)

    def log(self, job: str, rank: int = 0, generation: int = 1, **arguments: Any) -> str:
        text, offset = "", 0
        while True:
            piece = self.ask("logs", job=job, rank=rank, generation=generation, offset=offset, **arguments)
            if not piece["text"]:
                return text
            text, offset = text + piece["text"], piece["offset"]

    def open_store(self, job: str, generation: int = 1) -> StoreOpened:
        self.tell(OpenStore(job=job, generation=generation))
        return self.await_event(StoreOpened, job=job, generation=generation)

    def page(self, job: str, rank: int = 0, generation: int = 1) -> Page:
        return open_page(self.config.shm_dir / f"{job}.g{generation}.r{rank}.page")

    def await_true(self, question: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (answer := question()):
            assert time.monotonic() < deadline, what
            threading.Event().wait(0.01)
        return answer

    def await_line(self, job: str, line: str, **arguments: Any) -> None:
        self.await_true(lambda: line in self.log(job, **arguments).splitlines(), f"{line!r} was never printed by {job}")


def is_gone(pid: int) -> bool:
    """No such process, or one that is dead and only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def end_session_tree(nursery: int) -> None:
    """What a failed test left: the nursery. Its children end with `agent.stop`."""
    if nursery and not is_gone(nursery):
        os.kill(nursery, signal.SIGKILL)


class Line:
    """A connection to the agent's socket, as a rank would make it, or a stranger."""

    def __init__(self, path: Path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(path))

    def send(self, raw: bytes) -> None:
        self.socket.sendall(raw)

    def is_closed_by_agent(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
