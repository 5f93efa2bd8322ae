"""Where the device is a processor core, the kernel takes part in protecting a job: who runs in its gaps is scheduled only when
nobody else wants the core (SCHED_IDLE), so it is put aside within microseconds, wherever in its step it is. Where the kernel
weighs sessions against each other first (autogroup), the session gets the least weight besides: a rank has one of its own.

A GPU knows no such thing; there yield points do it. Used only where this process may come back to the ordinary class, which
takes CAP_SYS_NICE or a limit for it (RLIMIT_NICE): an ordinary user's usually may not. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

_HAS_CLASSES = hasattr(os, "SCHED_IDLE")
_HAS_SESSIONS = _HAS_CLASSES and os.path.exists("/proc/self/autogroup")
_LEAST = 19  # nice
_TRIES = 20


class Priority:
    """Of this process, its threads and its children (loader workers)."""

    def __init__(self, is_fixed: bool = False) -> None:
        """`is_fixed`: it must stay as it is."""
        self.is_background = False
        self._can_return = False if is_fixed else None  # None: not tried yet

    def set_background(self, wanted: bool) -> None:
        """Threads and children in a class that somebody else chose are left alone. Does nothing where there is no way back."""
        if wanted == self.is_background or not self._has_way_back():
            return
        self.is_background = wanted
        before, after = (os.SCHED_OTHER, os.SCHED_IDLE) if wanted else (os.SCHED_IDLE, os.SCHED_OTHER)
        for thread in _threads():
            with contextlib.suppress(OSError):  # it has ended
                if os.sched_getscheduler(thread) == before:
                    os.sched_setscheduler(thread, after, os.sched_param(0))
        if os.getsid(0) == os.getpid():
            _weigh_session(_LEAST if wanted else 0)

    def _has_way_back(self) -> bool:
        if self._can_return is None:
            self._can_return = _HAS_CLASSES and _can_return()
        return self._can_return


def is_background(pid: int) -> bool:
    """Would this process be put aside as soon as somebody else wants its core?"""
    try:
        if not _HAS_CLASSES or os.sched_getscheduler(pid) != os.SCHED_IDLE:
            return False
        return not _HAS_SESSIONS or Path(f"/proc/{pid}/autogroup").read_text().split()[-1] == str(_LEAST)
    except OSError:
        return False


def _weigh_session(nice: int) -> None:
    for _ in range(_TRIES if _HAS_SESSIONS else 0):
        try:
            Path("/proc/self/autogroup").write_text(str(nice))
            return
        except BlockingIOError:  # an ordinary user's changes are allowed every 0.1 s, of all users together
            time.sleep(0.1)
        except OSError:
            return


def _threads() -> Iterator[int]:
    try:
        children = psutil.Process().children(recursive=True)
    except psutil.Error:
        children = []
    for pid in [os.getpid(), *(child.pid for child in children)]:
        with contextlib.suppress(OSError):
            yield from map(int, os.listdir(f"/proc/{pid}/task"))


def _can_return() -> bool:
    """Tried by a thread that has nothing else to do."""
    answer: list[bool] = []

    def there_and_back() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            answer.append(True)
        except OSError:
            answer.append(False)

    thread = threading.Thread(target=there_and_back, name="restow-priority")
    thread.start()
    thread.join()
    return answer[0]
