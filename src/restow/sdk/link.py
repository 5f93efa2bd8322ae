"""The gate of the link: jobs whose network is scarcer than their devices send one after the other instead of all at once.

Two collectives that share a link both end late; one after the other, the first ends in half of the time and its job computes
while the second is sent. Only rank 0 of a gang passes this gate: where it has not begun, nobody's collective goes on, so one
seat holds back the whole gang, and two gangs cannot each hold a part of what the other needs.

Collectives that have to wait are launched by a thread of ours, in the order in which they were given; the script, and
computing, go on. The gate is advice: whoever has waited for much longer than the gang that has it had it the last time, or for
PATIENCE_S, launches without it, and so does everything after that until that gang lets go: one of its ranks may be stopped, or
computes for minutes while the others wait in a collective, and sends nothing. Knows nothing of devices.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from restow.gate import Gate

PATIENCE_S = 10.0  # for a gang that hangs while it has the link ...
PATIENCE_S_MIN = 1.0  # ... and at least so long, but no longer than ...
PATIENCE_TIMES = 20  # ... so many times what it took the last time
LOOK_S = 0.5


class Link:
    """Rank 0's way to the link. `launch` is called on one thread at a time."""

    def __init__(self, gate: Gate, is_sliced: Callable[[], bool] = lambda: False):
        """`is_sliced`: do gangs take turns of many steps? Then one of them has the link alone, or is to have it."""
        self.gate, self._is_sliced = gate, is_sliced
        self._lock = threading.Lock()
        self._given_up: tuple[int, int] | None = None  # a hold of the gate that lasted for too long, see Gate.holding
        self._unfinished = 0  # given to us and not done
        self.waiting = 0  # ... and not launched
        self._waiting: queue.SimpleQueue[tuple[Callable[[], dist.Work], LateWork]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def launch(self, start: Callable[[], dist.Work], at_once: bool = False) -> dist.Work:
        """Start a collective when the link is ours: now while its gate is free, or with `at_once`, if nothing that was given
        before still waits."""
        with self._lock:
            if (at_once or self._is_open()) and not self._unfinished:
                return start()
            self._unfinished += 1
            self.waiting += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="restow-link", daemon=True)
            self._thread.start()
        late = LateWork()
        self._waiting.put((start, late))
        return late

    def _is_open(self) -> bool:
        return self.gate.is_free or self._is_sliced()

    def _await_turn(self) -> None:
        """A gang that has the link may have lost its devices to a time slice of ours meanwhile: looked at again and again."""
        began_s = time.monotonic()
        while not self._is_open():
            holding = self.gate.holding()
            if holding and holding == self._given_up:
                return
            if self.gate.acquire(LOOK_S):
                self._given_up = None
                return
            usual_s = self.gate.last_hold_s()  # 0: its first; should it be a long one, both send at once, as they would without us
            if time.monotonic() - began_s >= min(PATIENCE_S, max(PATIENCE_S_MIN, PATIENCE_TIMES * usual_s)):
                self._given_up = self.gate.holding()
                return

    def _work(self) -> None:
        while True:
            start, late = self._waiting.get()
            self._await_turn()
            with self._lock:
                self.waiting -= 1
            try:
                work = start()
                work.get_future().add_done_callback(partial(self._done, late))
            except BaseException as error:  # told to whoever waits for it, as if it had been launched there
                self._leave()
                late.fail(error)

    def _done(self, late: LateWork, future: torch.futures.Future[Any]) -> None:
        self._leave()
        try:
            late.succeed(future.value())
        except BaseException as error:  # what the collective failed with
            late.fail(error)

    def _leave(self) -> None:
        """One is done. After the last one the link is the next gang's, before our script hears of it."""
        with self._lock:
            self._unfinished -= 1
            if not self._unfinished:
                self.gate.release()

    @property
    def is_idle(self) -> bool:
        """Does nobody wait for the link, nor anything of ours on it?"""
        return self.gate.is_free and not self._unfinished

    def close(self) -> None:
        self.gate.leave()


class LateWork(dist.Work):
    """A collective that is launched later."""

    def __init__(self) -> None:
        super().__init__()
        self._future: torch.futures.Future[Any] = torch.futures.Future()
        self._has_failed = False

    def succeed(self, result: Any) -> None:
        self._future.set_result(result)

    def fail(self, error: BaseException) -> None:
        self._has_failed = True
        self._future.set_exception(error)

    def wait(self, timeout: timedelta | None = None) -> bool:
        self._future.wait()
        return True

    def is_completed(self) -> bool:
        return self._future.done()

    def is_success(self) -> bool:
        return self._future.done() and not self._has_failed

    def get_future(self) -> torch.futures.Future[Any]:
        return self._future
