"""A running system seen from outside: its processes, and the lines that its ranks print."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from bench import timeline


class RunFailed(RuntimeError):
    """A system did not do what was asked of it; the text holds its last words."""


class Run:
    """Programs that print to one file; whatever of them is left is ended on leaving the `with` block."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "lines.log"
        self.log.write_bytes(b"")  # of an earlier run with the same --keep
        self.shaped_s = float("-inf")  # when the link got its rate; whoever shapes it says so here
        self.started: list[subprocess.Popen[bytes]] = []
        self.watched: list[subprocess.Popen[bytes]] = []  # an error of one of these ends the waiting

    def start(self, node: Any, argv: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Run a program on a node, in a session of its own."""
        env = {"PET_LOG_DIR": str(self.log.parent), **env}  # torchrun's folder, which it would leave in the temporary one
        with self.log.open("ab") as lines:
            program = node.popen(
                list(argv), env=env, stdout=lines, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.started.append(program)
        self.watched.append(program)
        return program

    def lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()

    def marks(self) -> list[timeline.Mark]:
        return timeline.read_marks(self.lines())

    def digests(self) -> dict[int, str]:
        """Rank → digest of its final state."""
        return {end["rank"]: end["digest"] for end in timeline.said(self.lines(), "end")}

    def state_bytes(self) -> int:
        return max((end["state_bytes"] for end in timeline.said(self.lines(), "end")), default=0)

    def noted(self, what: str) -> list[float]:
        """When the ranks noted this."""
        return [note["time_s"] for note in timeline.said(self.lines(), "note") if note["what"] == what]

    def wait_for(self, what: str, is_so: Callable[[], bool], timeout_s: float = 300.0) -> None:
        """Wait until it is so. Raises RunFailed when a program fails first, or when it takes too long."""
        deadline_s = time.monotonic() + timeout_s
        while not is_so():
            if any(program.poll() for program in self.watched):
                raise RunFailed(f"waiting for {what}: a program ended with an error; {self.last_words()}")
            if time.monotonic() > deadline_s:
                raise RunFailed(f"waiting for {what}: nothing for {timeout_s:.0f} s; {self.last_words()}")
            time.sleep(0.02)

    def wait_for_step(self, step: int, timeout_s: float = 300.0) -> None:
        """Wait until some rank has finished this step."""
        self.wait_for(f"step {step}", lambda: any(mark.step >= step for mark in self.marks()), timeout_s)

    def wait_for_end(self, programs: Sequence[subprocess.Popen[bytes]] = (), timeout_s: float = 600.0) -> None:
        """Wait until these programs (or all) ended with success."""
        waited = list(programs) or self.watched
        self.wait_for("the end", lambda: all(program.poll() == 0 for program in waited), timeout_s)

    def last_words(self) -> str:
        """The last telling line, for an error message."""
        telling = [line for line in self.lines() if "Error" in line and "raise" not in line] or self.lines()
        return telling[-1].strip()[:300] if telling else "nothing was printed"

    def end(self, program: subprocess.Popen[bytes], with_signal: int = signal.SIGKILL) -> None:
        """Signal the program and all that it started (torchrun's workers have sessions of their own)."""
        try:
            everyone = [psutil.Process(program.pid)]
            everyone += everyone[0].children(recursive=True)
        except psutil.NoSuchProcess:
            return
        for process in everyone:
            try:
                process.send_signal(with_signal)
            except psutil.NoSuchProcess:
                continue

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for program in self.started:
            self.end(program)
        for program in self.started:
            program.wait(10)
