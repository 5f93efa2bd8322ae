"""What all ranks hold alike, as of the last two save points, copied beside the training: while a rank waits for others anyway. What
is small is copied by the training thread itself, always: that is quicker than to wake another one.

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
SMALL_BYTES_MAX = 1 << 20  # 80 us for 67 KB in 32 tensors, 130 us for 0.8 MB
BLOCKED_PART_MAX = 0.01  # of a step: updates that wait longer for their copy are made without one ...
TRY_EVERY = 64  # ... but for one in so many, to see whether that has changed
LEARNING_RATE = 0.1

Tensors = dict[str, torch.Tensor]
Copied = tuple[Tensors, Tensors]  # the copies, and the live tensors that they are of: the same dict until one of them is replaced


class Copies:
    """Of one process. `step_s()`: seconds of a step."""

    def __init__(self, table: StateTable, step_s: Callable[[], float]):
        self._table, self._step_s = table, step_s
        self._blocked_s = 0.0  # how long an update waits for its copy, smoothed
        self._changed = threading.Condition()
        self._by_step: dict[int, Copied] = {}
        self._room: Copied | None = None  # a copy that is not needed any more
        self._bytes = 0
        self._asked_step = -1
        self._is_copying = False
        self._thread: threading.Thread | None = None

    def begin(self, step: int) -> None:
        """The state of `step` does not change before `finish` has returned: copy it, if that costs little. May be asked often."""
        if self._asked_step == step:
            return
        self._asked_step = step
        if self._is_small() or not self._is_cheap():
            return
        with self._changed:
            self._is_copying = True
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="restow-copies", daemon=True)
            self._thread.start()

    def finish(self, step: int) -> None:
        """The state of `step` may change afterwards: what was begun is whole."""
        if self._is_small():
            self._copy(step)
            return
        began_s = time.perf_counter()
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
