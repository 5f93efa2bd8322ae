"""The nursery's children: who they are, how they ended, and how to end them with everything they started.

A child is a session of its own. What it leaves behind is found by process group, by session, and by descent. Each child has a
file in the run folder, so that neither the death of the agent nor that of the nursery makes anybody forget it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

UNKNOWN_CODE = -9
UNKNOWN_REASON = "exit code unknown: the nursery was killed"
TAIL_BYTES = 8192
_EXCEPTION_LINE = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Warning|Iteration|Failure|Failed)?(: .*)?")


class Stat(NamedTuple):
    """What /proc says of a process."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    started: int  # clock ticks since boot; with the pid it names one process for ever


def boot_id() -> str:
    """Another one after each start of the machine, when process numbers mean nothing any more."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def read_stat(pid: int) -> Stat | None:
    try:
        words = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Stat(pid, words[0], int(words[1]), int(words[2]), int(words[3]), int(words[19]))


def all_stats() -> Iterator[Stat]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := read_stat(int(name))):
            yield stat


def is_alive(pid: int, started: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.started == started and stat.state not in "ZX"


@dataclass
class Child:
    pid: int
    started: int
    label: dict[str, Any]
    is_own: bool = True  # False: born by a nursery that was killed; its exit is seen, its code is not
    code: int | None = None  # None: alive
    reason: str = ""

    def to_wire(self) -> dict[str, Any]:
        return {"pid": self.pid, "label": self.label, "code": self.code, "reason": self.reason}


class RunFiles:
    """`<pid>.json`: the child; `<pid>.words`: what it said last, written by itself; `<pid>.sock`: of a store."""

    def __init__(self, folder: Path):
        self.folder = folder

    def words(self, pid: int) -> Path:
        return self.folder / f"{pid}.words"

    def write(self, child: Child) -> None:
        wire = {**child.to_wire(), "started": child.started, "boot": boot_id()}
        draft = self.folder / f"{child.pid}.draft"
        draft.write_text(json.dumps(wire))
        draft.replace(self.folder / f"{child.pid}.json")

    def remove(self, pid: int) -> None:
        for suffix in ("json", "words", "sock", "draft"):
            (self.folder / f"{pid}.{suffix}").unlink(missing_ok=True)

    def read(self) -> Iterator[Child]:
        """Children of an earlier nursery; those that are gone have a code."""
        for path in self.folder.glob("*.json"):
            try:
                wire = json.loads(path.read_text())
                child = Child(wire["pid"], wire["started"], wire["label"], False, wire["code"], wire["reason"])
                is_ours = wire["boot"] == boot_id()
            except (ValueError, KeyError):  # nothing can be known of it
                is_ours = False
            if not is_ours:
                path.unlink(missing_ok=True)
                continue
            if child.code is None and not is_alive(child.pid, child.started):
                self.note_exit(child, None)
            yield child

    def note_exit(self, child: Child, code: int | None) -> None:
        """Fill in code and reason. `code` is None where nobody reaped it: then what it wrote itself counts."""
        said = self._said(child.pid)
        if code is None:
            code = said[0] if said else UNKNOWN_CODE
            child.reason = said[1] if said else UNKNOWN_REASON
        elif code < 0:
            child.reason = f"killed by {signal_name(-code)}"
        elif code:
            child.reason = said[1] if said and said[0] == code else last_line(child.label.get("log", ""))
        child.code = code
        try:
            self.write(child)
        except OSError as error:
            print(f"exit of {child.pid} could not be written down: {error}", file=sys.stderr, flush=True)

    def _said(self, pid: int) -> tuple[int, str] | None:
        try:
            wire = json.loads(self.words(pid).read_text())
            return int(wire["code"]), str(wire["reason"])
        except (OSError, ValueError, KeyError):
            return None


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_line(log: str) -> str:
    """The exception's line, if what was printed last looks like a traceback's end; else the last line; at most 200 characters."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = [line.rstrip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        for line in reversed(lines):
            if _EXCEPTION_LINE.fullmatch(line):
                return line[:200]
    return lines[-1].strip()[:200] if lines else ""


def signal_group(child: Child, number: int) -> None:
    """To all processes of its group; nothing if the child is another one by now."""
    if child.is_own or is_alive(child.pid, child.started):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)


def kill_remains(child: Child) -> None:
    """SIGKILL to everything of it that can be found. Only while its number is still its own: alive, or not reaped yet.

    The group is killed in one go, so forking as fast as one can does not help; what left the group is looked for until
    nothing is found, a few times at most.
    """
    mark = b"RESTOW_PAGE=" + str(child.label.get("page", "")).encode()
    for _ in range(10):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        stats = [stat for stat in all_stats() if stat.state not in "ZX" and stat.pid != os.getpid()]
        doomed = {stat.pid for stat in stats if child.pid in (stat.group, stat.session) or _is_marked(stat.pid, mark)}
        doomed |= _descendants(doomed | {child.pid}, stats)
        if not doomed:
            return
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _is_marked(pid: int, mark: bytes) -> bool:
    """Was it executed with this in its environment? Forks that executed nothing show their ancestor's."""
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or another user's
        return False


def _descendants(roots: set[int], stats: list[Stat]) -> set[int]:
    found: set[int] = set()
    frontier = set(roots)
    while frontier:
        frontier = {s.pid for s in stats if s.parent in frontier and s.state not in "ZX"} - found
        found |= frontier
    return found
