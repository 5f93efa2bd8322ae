"""Virtual time: what is to happen, in the order of its time, and for equal times in the order in which it was said."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

Happening = Callable[[], None]


class Clock:
    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s
        self._numbers = itertools.count()
        self._heap: list[tuple[float, int, Happening, bool]] = []
        self._beside = 0

    def at(self, time_s: float, happening: Happening, *, is_beside: bool = False) -> None:
        """Not before now: what lies in the past happens at once. `is_beside`: it would happen for ever, and nobody waits for it."""
        self._beside += is_beside
        heapq.heappush(self._heap, (max(time_s, self.now_s), next(self._numbers), happening, is_beside))

    def later(self, delay_s: float, happening: Happening) -> None:
        self.at(self.now_s + delay_s, happening)

    @property
    def is_empty(self) -> bool:
        """But for what happens beside."""
        return len(self._heap) == self._beside

    @property
    def next_s(self) -> float:
        """Of the next happening. Raises IndexError if there is none."""
        return self._heap[0][0]

    def advance(self) -> None:
        """To the time of the next happening; everything that is said for that time happens."""
        self.now_s = self.next_s
        while self._heap and self._heap[0][0] <= self.now_s:
            _, _, happening, is_beside = heapq.heappop(self._heap)
            self._beside -= is_beside
            happening()
