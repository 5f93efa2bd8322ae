"""Processes that each have a seat at a gate and do what a test tells them: real ones, forked, killed at the end.

    a, b = crowd.join("a"), crowd.join("b")
    a.do("acquire")                  # True, once it has it
    b.begin("acquire")               # returns at once; crowd.wait_for(b) until it is in the queue
    a.do("release")
    assert b.answer() is True

Nothing sleeps for a time: a test waits for an answer, for the end of a process, or until the page shows something.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from restow.gate import Gate, Keeper, Seat, native

PATIENCE_S = 10.0


class Crowd:
    """A folder for gates, and everybody who comes to them."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gate-", dir=os.environ.get("RESTOW_SHM", "/dev/shm")))
        self.lifeline = os.pipe()  # sleepers end when its writing end is closed
        self.members: list[Member] = []
        self._keepers: dict[int, Keeper] = {}

    def keeper(self, device: int = 0) -> Keeper:
        if device not in self._keepers:
            self._keepers[device] = Keeper(self.folder, device)
        return self._keepers[device]

    def join(self, job: str, *, rank: int = 0, level: int = 1, device: int = 0) -> Member:
        member = Member(self, job, rank, level, device)
        self.members.append(member)
        member.answer()
        return member

    def wait_for(self, *members: Member) -> None:
        """Until they wait in their queue, and are out of the mutex again."""
        for member in members:
            until(lambda member=member: (seat := member.look()) is not None and seat.waiting)  # type: ignore[misc]
            address = self.keeper(member.device)._order.record.mutex_address
            until(lambda address=address: native.mutex_owner(address) == 0)  # type: ignore[misc]

    def owner(self, device: int = 0) -> int | None:
        """The process that holds the gate."""
        view = self.keeper(device).look()
        seat = view.seat(view.owner)
        return seat.pid if seat else None

    def close(self) -> None:
        for member in self.members:
            member.kill()
        for keeper in self._keepers.values():
            keeper.close()
        for end in self.lifeline:
            os.close(end)
        shutil.rmtree(self.folder, ignore_errors=True)


class Member:
    """One process with one gate."""

    def __init__(self, crowd: Crowd, job: str, rank: int, level: int, device: int):
        self.crowd, self.job, self.rank, self.device = crowd, job, rank, device
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                ours.close()
                os.close(crowd.lifeline[1])
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)
                _obey(theirs, crowd, lambda: Gate.join(crowd.folder, device, job=job, rank=rank, level=level))
                code = 0
            finally:
                os._exit(code)
        theirs.close()
        self._socket = ours
        self._lines = ours.makefile("r")
        self._is_gone = False

    def begin(self, what: str, *arguments: Any) -> None:
        self._socket.sendall((json.dumps([what, *arguments]) + "\n").encode())

    def has_answered(self) -> bool:
        return bool(select.select([self._socket], [], [], 0)[0])

    def answer(self, timeout_s: float = PATIENCE_S) -> Any:
        """Of the last thing that was begun. Raises what it raised, as an AssertionError; None if the process is gone."""
        assert select.select([self._socket], [], [], timeout_s)[0], f"no answer from {self.job} within {timeout_s} s"
        line = self._lines.readline()
        kind, answer = json.loads(line) if line else ("answer", None)
        assert kind == "answer", answer
        return answer

    def do(self, what: str, *arguments: Any) -> Any:
        self.begin(what, *arguments)
        return self.answer()

    def look(self) -> Seat | None:
        """Our seat, as the agent sees it."""
        return next((seat for seat in self.crowd.keeper(self.device).look().seats if seat.pid == self.pid), None)

    @property
    def seat(self) -> int:
        seat = self.look()
        assert seat, f"{self.job} has no seat"
        return seat.number

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if not self._is_gone:
            os.kill(self.pid, signal.SIGKILL)
            self.wait_for_end()

    def stop(self) -> None:
        """SIGSTOP, and wait until it is stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def wait_for_end(self) -> None:
        os.waitpid(self.pid, 0)
        self._is_gone = True
        self._lines.close()
        self._socket.close()


def until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"did not come true within {timeout_s} s"
        time.sleep(0.0005)


# ---- in the member's process


def _obey(connection: socket.socket, crowd: Crowd, join: Callable[[], Gate]) -> None:
    def say(kind: str, answer: Any) -> None:
        connection.sendall((json.dumps([kind, answer]) + "\n").encode())

    gate = join()
    say("answer", True)
    for line in connection.makefile("r"):
        what, *arguments = json.loads(line)
        try:
            if what in _DOINGS:
                answer = _DOINGS[what](gate, crowd, *arguments)
            else:
                answer = getattr(gate, what)
                answer = answer(*arguments) if callable(answer) else answer
            say("answer", answer)
        except Exception:
            say("error", traceback.format_exc())


def _sleeper(gate: Gate, crowd: Crowd) -> int:
    """Fork a child that lives until the test is over, as a DataLoader has its workers."""
    child = os.fork()
    if child == 0:
        os.read(crowd.lifeline[0], 1)
        os._exit(0)
    return child


def _what_a_child_finds(gate: Gate, crowd: Crowd) -> list[Any]:
    """Fork a child that uses the gate it inherited; what it got."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        gate.release()
        found = [gate.acquire(), gate.held, gate.mode, gate.poll(), gate.crowded(), gate.give_way(), gate.turn_wanted(),
                 gate.next_turn(), gate.pass_turn(), gate.seat]  # fmt: skip
        gate.release()
        gate.leave()
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as lines:
        found = json.load(lines)
    assert isinstance(found, list)
    return found


def _daemonise(gate: Gate, crowd: Crowd) -> None:
    """The process that goes on is a grandchild; this one ends."""
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            os.read(crowd.lifeline[0], 1)
        os._exit(0)
    os.waitpid(child, 0)
    os._exit(0)


def _exec(gate: Gate, crowd: Crowd) -> None:
    """Become another program, with the same process id."""
    os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(60)"])


def _lock_the_mutex(gate: Gate, crowd: Crowd) -> int:
    return int(native.trylock(gate._order.record.mutex))


def _unlock_the_mutex(gate: Gate, crowd: Crowd) -> int:
    return int(native.unlock(gate._order.record.mutex))


def _interrupted(gate: Gate, crowd: Crowd, line: int, what: str, *arguments: Any) -> bool:
    """Do it, but be killed before the given line (as `each_line` counts) of the gate's own code; True if it ended before."""
    with each_line(line, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        getattr(gate, what)(*arguments)
    return True


def _stopped(gate: Gate, crowd: Crowd, line: int, what: str) -> bool:
    """Do it, but be stopped before the given line, until somebody continues us."""
    with each_line(line, lambda: os.kill(os.getpid(), signal.SIGSTOP)):
        getattr(gate, what)()
    return True


_DOINGS: dict[str, Callable[..., Any]] = {
    "sleeper": _sleeper,
    "what_a_child_finds": _what_a_child_finds,
    "daemonise": _daemonise,
    "exec": _exec,
    "lock_the_mutex": _lock_the_mutex,
    "unlock_the_mutex": _unlock_the_mutex,
    "interrupted": _interrupted,
    "stopped": _stopped,
}


@contextlib.contextmanager
def each_line(number: int, do: Callable[[], Any]) -> Any:
    """Call `do` once, before the `number`-th line that runs in gate.py and order.py from now on; repeated ones count once."""
    seen: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.endswith(("gate/gate.py", "gate/order.py")):
            return None
        if event == "line":
            seen.add((frame.f_code.co_filename, frame.f_lineno))
            if len(seen) == number:
                sys.settrace(None)
                do()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
