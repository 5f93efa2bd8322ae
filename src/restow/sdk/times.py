"""What the steps of this process take, as its page shows it. On the training thread: one append per step that is seen (see
attention.py), medians four times a second. Knows nothing of who reads the page.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping
from statistics import median

from restow.page import Page
from restow.sdk import group as group_module
from restow.sdk.footprint import MemoryWatch
from restow.sdk.group import groups
from restow.sdk.passage import Passage

RECENT_STEPS = 15  # the page shows medians over these: one odd step (a checkpoint, a log line) moves nothing
RECENT_WORDS = ("step_s", "exposed_s", "data_s", "waited_s", "held_s")
SLOW_WORDS_S = 0.25  # how often the page's dearer words (memory, reported values) are renewed


class StepTimes:
    """Of one process. `memory` is set once it is known what the process computes on."""

    def __init__(self, page: Page):
        self._page = page
        self.memory: MemoryWatch | None = None
        self._last_s = self._slow_s = 0.0
        # seconds of each step that was seen: in all (the mean with those before it that were not), exposed, waiting for the batch,
        # waiting at the gate, holding it
        self._recent: deque[tuple[float, ...]] = deque(maxlen=RECENT_STEPS)
        self._gate_before = (0.0, 0.0)  # seconds waited and held at the last save point
        self._exposed_s = 0.0
        self._waited_before_s = 0.0  # for collectives one by one, until the step began
        self._given_before = self._seen = 0  # bytes, up to the page's last word; steps seen since then
        self._last_step = 0  # finished steps at `_last_s`

    @property
    def last_step_s(self) -> float:
        """0 if there was none yet."""
        return self._recent[-1][0] if self._recent else 0.0

    @property
    def is_settled(self) -> bool:
        """Are the page's medians over as many steps as they can be?"""
        return len(self._recent) == RECENT_STEPS

    @property
    def usual_step_s(self) -> float:
        """The mean of the last steps; 1 hour if there was none yet."""
        return sum(times[0] for times in self._recent) / len(self._recent) if self._recent else 3600.0

    def begin(self, step: int) -> None:
        """The loop starts, or goes on after a move, with `step` steps finished."""
        self._last_s, self._last_step = time.perf_counter(), step
        self.look()

    def look(self, is_called: bool = False) -> None:
        """The next step is seen, and those before it were not; `is_called`: `after_step` is still told of the last of these."""
        self._given_before, self._seen = sum(group.bytes_given for group in groups), -1 if is_called else 0
        self._waited_before_s = group_module.waited_s

    def before_update(self) -> None:
        """The last collective was launched when the last gradient was there; since then we only waited for it. Before it we waited
        for others one by one: DDP's broadcast of buffers, say."""
        if groups:
            waited_s = groups[0].waited_at_launch_s - self._waited_before_s
            self._exposed_s = time.perf_counter() - groups[0].last_launch_s + max(0.0, waited_s)

    def after_step(self, step: int, passage: Passage | None, values: Mapping[str, float]) -> None:
        """A step that was seen has ended, `step` all in all; `values` is what the script reported last."""
        now_s = time.perf_counter()
        step_s, self._last_s = (now_s - self._last_s) / max(1, step - self._last_step), now_s
        self._last_step = step
        self._seen += 1
        self._waited_before_s = group_module.waited_s
        if self.memory:
            self.memory.step()
        self._recent.append((step_s, self._exposed_s, *self._gate_times(passage)))
        if now_s - self._slow_s > SLOW_WORDS_S:
            self._slow_s = now_s
            self._publish(values)

    def forget(self) -> None:
        """After a move the old step time means nothing."""
        self._recent.clear()
        self._slow_s = 0.0
        self._last_s = time.perf_counter()

    def _gate_times(self, passage: Passage | None) -> tuple[float, float, float]:
        """Seconds of the step that has ended: for its batch, waiting at the gate, holding it."""
        if passage is None:
            return 0.0, 0.0, 0.0
        now = (passage.waited_s, passage.held_s)
        before, self._gate_before = self._gate_before, now
        return passage.fetched_s, now[0] - before[0], now[1] - before[1]

    def _publish(self, values: Mapping[str, float]) -> None:
        page, given = self._page, sum(group.bytes_given for group in groups)
        if self._seen > 0:
            page.set("wire_bytes", (given - self._given_before) // self._seen)
            self._given_before, self._seen = given, 0
        for word, times in zip(RECENT_WORDS, zip(*self._recent, strict=True), strict=True):
            page.set(word, median(times))
        page.set("last_step_ns", time.monotonic_ns())
        if self.memory:
            page.set("memory_bytes", self.memory.peak_bytes)
            page.set("valley_bytes", self.memory.valley_bytes)
        if values:
            page.write_text(json.dumps(values))
