"""Ends what is left inside a lab and removes the lab: processes, control groups, folder.

Namespaces, cables and shaping go by themselves with the last process that is inside. Every part may be done twice, by
the holder and by somebody who finds it dead. Only processes inside the lab's own namespaces or control groups are
touched; if nobody holds the namespaces any more their numbers may be somebody else's, so then a process must
also carry the lab's mark.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from restow.lab.state import LabState, Process, identify, read_state

TERM_GRACE_S = 1.0  # everything in a lab is disposable; this is for programs that remove files of their own
HOLDER_GRACE_S = 5.0  # its own sweep takes the grace above, three times at worst
_PAUSE_S = 0.02


def processes_inside(state: LabState, *, held: bool) -> list[Process]:
    """Every process in the lab's namespaces and control groups, except this one and the holder.

    `held`: the holder lives, so the inodes of the namespaces are surely those of this lab.
    """
    spared = {os.getpid(), state.holder.pid if state.holder else 0}
    inodes = set(state.namespaces.values())
    mark = f"RESTOW_LAB={state.mark}".encode()
    found = {pid for path in state.cgroups for pid in _pids_in_cgroup(path)}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _namespace(entry) in inodes and (held or mark in _environment(entry)):
            found.add(int(entry))
    return [process for process in map(identify, sorted(found - spared)) if process]


def _namespace(pid: str) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:  # gone, a zombie, or another user's: not ours in any case
        return -1


def _environment(pid: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _pids_in_cgroup(path: str) -> list[int]:
    try:
        return [int(line) for line in Path(path, "cgroup.procs").read_text().split()]
    except OSError:
        return []


def end_processes(find: Callable[[], list[Process]], grace_s: float = TERM_GRACE_S) -> None:
    """SIGTERM to all that `find` gives, SIGKILL to those that stay or appear after the grace. Returns when none is left."""
    deadline_s = time.monotonic() + grace_s
    asked: set[Process] = set()
    while left := find():
        is_late = time.monotonic() >= deadline_s
        if time.monotonic() > deadline_s + TERM_GRACE_S:
            return  # stuck in the kernel; SIGKILL is pending, it goes as soon as it can
        for process in left:
            if is_late or process not in asked:
                _signal(process, signal.SIGKILL if is_late else signal.SIGTERM)
        asked.update(left)
        time.sleep(_PAUSE_S)


def _signal(process: Process, number: int) -> None:
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:  # gone already
        return
    try:
        if process.is_alive:  # checked with the descriptor open: the pid cannot change hands in between
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)


def remove_cgroups(paths: Iterable[str]) -> None:
    """Remove them, children before parents; a killed process may stay in one for a moment."""
    deadline_s = time.monotonic() + TERM_GRACE_S
    for path in reversed(tuple(paths)):
        while os.path.isdir(path):
            with suppress(OSError):
                os.rmdir(path)
                break
            if time.monotonic() > deadline_s:
                break
            time.sleep(_PAUSE_S)


def empty(state: LabState, *, held: bool) -> None:
    """Remove everything but the holder."""
    end_processes(lambda: processes_inside(state, held=held))
    remove_cgroups(state.cgroups)
    current = read_state(state.folder)
    if current and current.id == state.id:  # else it is gone, or a new lab has the name
        shutil.rmtree(state.folder, ignore_errors=True)


def remove(state: LabState) -> None:
    """Remove the lab, its holder first (which normally does all of it). Harmless when repeated."""
    holder = state.holder
    if holder and holder.is_alive:
        _signal(holder, signal.SIGTERM)
        deadline_s = time.monotonic() + HOLDER_GRACE_S
        while holder.is_alive and time.monotonic() < deadline_s:
            time.sleep(_PAUSE_S)
        if holder.is_alive:
            end_processes(lambda: processes_inside(state, held=holder.is_alive))
            end_processes(lambda: [holder] if holder.is_alive else [], grace_s=0.0)
    empty(state, held=False)


def remove_abandoned(base: Path) -> list[str]:
    """Remove every lab under `base` that nobody is responsible for; their names. To be called under the lock."""
    names = []
    for folder in sorted(base.iterdir()):
        if not folder.is_dir():
            continue
        state = read_state(folder)
        if state is None:  # somebody was killed while making or removing it
            shutil.rmtree(folder, ignore_errors=True)
        elif state.is_abandoned:
            remove(state)
            names.append(state.name)
    return names
