"""What all ranks hold alike, as of the last two save points, copied beside the training: while a rank waits for others anyway. What
is small against a step is copied by the training thread itself: that is quicker than to wake another one.

A rank that is lost in its update leaves private state of the step before, when the others have made that update already; it shows
when the first collective of the next step fails. So the copy of the step before stays until another one is whole.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from restow.sdk.boxes import StateTable

COPY_BYTES_MAX = 1 << 30  # two copies of it are held
SMALL_BYTES_MAX = 1 << 20  # some tenths of a millisecond between two steps, which leave none of it in the caches
BLOCKED_PART_MAX = 0.01  # of a step: what takes longer is not copied by the training thread; updates that wait longer for their ...
TRY_EVERY = 64  # ... copy are made without one, but for one in so many, to see whether that has changed
LEARNING_RATE = 0.1

Tensors = dict[str, torch.Tensor]
Copied = tuple[Tensors, Tensors]  # the copies, and the live tensors that they are of: the same dict until one of them is replaced


class Copies:
    """Of one process. `step_s()`: seconds of a step."""

    def __init__(self, table: StateTable, step_s: Callable[[], float]):
        self._table, self._step_s = table, step_s
        self._blocked_s = 0.0  # how long an update waits for its copy, smoothed
        self._own_s = 0.0  # what a copy by the training thread takes, smoothed
        self._changed = threading.Condition()
        self._by_step: dict[int, Copied] = {}
        self._room: Copied | None = None  # a copy that is not needed any more
        self._bytes = 0
        self._asked_step = -1
        self._is_own = False  # the copy of that step is the training thread's
        self._is_copying = False
        self._thread: threading.Thread | None = None

    def begin(self, step: int) -> None:
        """The state of `step` does not change before `finish` has returned: copy it, if that costs little. May be asked often."""
        if self._asked_step == step:
            return
        self._asked_step = step
        self._is_own = self._is_small() and not self._is_better_beside()
        if self._is_own or not (self._is_small() or self._is_cheap()):
            return
        with self._changed:
            self._is_copying = True
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="restow-copies", daemon=True)
            self._thread.start()

    def finish(self, step: int) -> None:
        """The state of `step` may change afterwards: what was begun is whole."""
        began_s = time.perf_counter()
        if self._asked_step != step:
            self._is_own = self._is_small()  # no collective came before this update
        if self._is_own:
            self._copy(step)
            self._own_s += LEARNING_RATE * (time.perf_counter() - began_s - self._own_s)
            return
        if self._is_copying:
            with self._changed:
                self._changed.wait_for(lambda: not self._is_copying)
        self._blocked_s += LEARNING_RATE * (time.perf_counter() - began_s - self._blocked_s)

    def steps(self) -> set[int]:
        """Those whose state is here as a whole."""
        with self._changed:
            return set(self._by_step)

    def of(self, step: int) -> Tensors:
        """Raises KeyError when it is not here."""
        with self._changed:
            return self._by_step[step][0]

    def _is_small(self) -> bool:
        if not self._bytes:
            self._bytes = self._table.state_bytes()
        return self._bytes <= SMALL_BYTES_MAX

    def _is_better_beside(self) -> bool:
        """Is there time to wake another thread for what is small, and does an update then wait for less than its own copy takes?"""
        return self._own_s > BLOCKED_PART_MAX * self._step_s() and self._blocked_s < self._own_s

    def _is_cheap(self) -> bool:
        is_cheap = self._blocked_s <= BLOCKED_PART_MAX * self._step_s() or self._asked_step % TRY_EVERY == 0
        return is_cheap and self._bytes <= COPY_BYTES_MAX

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_copying)
            self._copy(self._asked_step)
            with self._changed:
                self._is_copying = False
                self._changed.notify_all()

    def _copy(self, step: int) -> None:
        with self._changed:
            room, self._room = self._room, None
        try:
            live = self._table.tensors()
            if room is None or room[1] is not live:
                room = {name: torch.empty_like(tensor) for name, tensor in live.items()}, live
            torch._foreach_copy_(list(room[0].values()), list(live.values()))
        except (MemoryError, RuntimeError):  # there is no room for it: none is made any more
            self._bytes = 1 << 62
            return
        with self._changed:
            self._by_step[step] = room
            for old in sorted(self._by_step)[:-2]:
                self._room = self._by_step.pop(old)
