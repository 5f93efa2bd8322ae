"""Processes that outlive the command that started them: how they are recorded, recognised and ended.

A pid alone names nobody, since pids are used again; a pid with its start time does. Never ends a process by its name.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from restow.config import CLUSTER_MARK


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """One process for good: `started` is its start in clock ticks since boot."""

    pid: int
    started: int

    @property
    def is_alive(self) -> bool:
        return started_of(self.pid) == self.started


def started_of(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it is gone (a zombie is gone)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def identify(pid: int) -> ProcessId:
    """The process that has this pid now. Raises ProcessLookupError."""
    started = started_of(pid)
    if started is None:
        raise ProcessLookupError(f"process {pid} is gone")
    return ProcessId(pid=pid, started=started)


def members_of(session: ProcessId) -> list[int]:
    """Live processes of a session, its leader's own death included: a session id is not used again while it has members."""
    leader = started_of(session.pid)
    if leader is not None and leader != session.started:
        return []  # somebody else's process has this pid, so the session is empty
    return [pid for pid in _pids() if _session_of(pid) == session.pid]


def marked_with(cluster_id: str, nodes: Collection[str] | None = None) -> list[int]:
    """Live processes whose environment carries the mark of this cluster, this process and its ancestors left out.

    `nodes`: only those of these nodes. Weakness: a process that overwrote its environment (Ray's workers do) is not found.
    """
    mark = f"{CLUSTER_MARK}={cluster_id}".encode()
    names = None if nodes is None else {f"RESTOW_NODE_NAME={node}".encode() for node in nodes}
    spared = set(_ancestors(os.getpid()))
    marked = []
    for pid in _pids():
        try:
            environment = set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
        except OSError:
            continue  # ended meanwhile, or another user's: not ours
        if (
            mark in environment
            and (names is None or names & environment)
            and pid not in spared
            and started_of(pid) is not None
        ):
            marked.append(pid)
    return marked


def end(pids: Iterable[int], *, grace_s: float) -> list[int]:
    """SIGTERM, then after `grace_s` SIGKILL; `grace_s` 0 kills at once. Returns those that are still there 5 s later."""
    waiting = {pid: started for pid in pids if (started := started_of(pid)) is not None}
    if grace_s > 0:
        _signal(waiting, signal.SIGTERM)
        _await_gone(waiting, grace_s)
    _signal(waiting, signal.SIGKILL)
    _await_gone(waiting, 5.0)
    return sorted(waiting)


def _signal(waiting: dict[int, int], number: signal.Signals) -> None:
    for pid, started in waiting.items():
        if started_of(pid) == started:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue  # it was quicker


def _await_gone(waiting: dict[int, int], limit_s: float) -> None:
    """Take those that are gone out of `waiting`; return when none is left or the time is over."""
    deadline = time.monotonic() + limit_s
    while True:
        for pid, started in list(waiting.items()):
            if started_of(pid) != started:
                del waiting[pid]
        if not waiting or time.monotonic() >= deadline:
            return
        time.sleep(0.02)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _session_of(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[3])


def _ancestors(pid: int) -> Iterable[int]:
    while pid > 0:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return
