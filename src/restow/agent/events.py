"""Numbered events, kept until the controller has acknowledged them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Any

from restow.codec import to_json
from restow.messages import Event, Progressed

BATCH_MAX = 1000


class EventLog:
    """Numbers start at the wall clock's microseconds, so a later agent's are above an earlier one's; `epoch` tells them apart.

    Progress is worth only its latest: an unread older one of the same rank is dropped, so memory stays bounded while nobody
    reads.
    """

    def __init__(self, on_acknowledged: Callable[[int], None]):
        self.epoch = secrets.token_hex(8)
        self._last = time.time_ns() // 1000
        self._events: dict[int, dict[str, Any]] = {}  # number → wire form, ascending
        self._progress: dict[tuple[str, int, int], int] = {}
        self._arrived = asyncio.Event()
        self._on_acknowledged = on_acknowledged

    def put(self, event: Event) -> int:
        """Append; returns the number."""
        self._last += 1
        if isinstance(event, Progressed):
            key = (event.job, event.generation, event.rank)
            self._events.pop(self._progress.pop(key, -1), None)
            self._progress[key] = self._last
        self._events[self._last] = to_json(event)
        self._arrived.set()
        return self._last

    async def read(self, after: int, wait_s: float) -> dict[str, Any]:
        """Events numbered above `after`; waits up to `wait_s` for the first. What is not above it is forgotten."""
        after = after if after <= self._last else 0  # a number of another life: nothing of ours was read
        self._acknowledge(after)
        deadline = time.monotonic() + wait_s
        while not self._events and (left_s := deadline - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left_s)
            except TimeoutError:
                break
        events = [[number, wire] for number, wire in self._events.items() if number > after][:BATCH_MAX]
        return {"epoch": self.epoch, "events": events}

    def _acknowledge(self, after: int) -> None:
        for number in [number for number in self._events if number <= after]:
            wire = self._events.pop(number)
            if wire["type"] == "Progressed":
                self._progress.pop((wire["job"], wire["generation"], wire["rank"]), None)
            self._on_acknowledged(number)
