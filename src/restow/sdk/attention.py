"""Which steps of a training process are seen: their collectives, gradients and times.

To see one costs Python between two steps, none of which is then in the processor's caches: some 200 microseconds for what takes
40 in a loop. So a step is seen while somebody needs it (a switch or a checkpoint is near, the device is shared), and else one in
each LOOK_S, for the profile. All others pass with a look at a clock and a few words. Where a lost rank is to be replaced,
collectives and gradients are seen in these, too: what that needs is the sentinel's business.

Ranks need not agree on it: nothing that one rank does depends on whether another one sees. Knows nothing of why it is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from restow.page import Page
from restow.sdk.gradients import GradientWatch
from restow.sdk.group import SwitchGroup

LOOK_S = 0.25


class Attention:
    """Of one process. All but `call` on the training thread.

    `is_replaceable`: does a sentinel watch over the collectives? `is_needed()`: must each step be seen now? `gates()`: words that
    are 0 while nobody else uses a device or link of ours. `step_s()`: seconds of a step. `on_come(is_called)`: the
    next step is seen and those before it were not; `is_called`: this save point is seen to, too."""

    def __init__(
        self, page: Page, groups: Sequence[SwitchGroup], watch: GradientWatch, *, is_replaceable: bool,
        is_needed: Callable[[], bool], gates: Callable[[], tuple[memoryview, ...]], step_s: Callable[[], float],
        on_come: Callable[[bool], None], now_s: Callable[[], float] = time.perf_counter,
    ):  # fmt: skip
        self._groups, self._watch, self._is_replaceable = groups, watch, is_replaceable
        self._is_needed, self._gates, self._step_s = is_needed, gates, step_s
        self._on_come, self._now_s = on_come, now_s
        self._step_word, self._switch_word = page.words["step"], page.words["switch_step"]
        self.is_away = False  # nobody sees the step that is under way
        self._gate_words: tuple[memoryview, ...] = ()
        self._until_s = 0.0  # when to look again; 0: somebody calls

    def passes(self, step: int) -> bool:
        """The save point after `step` steps. True: there is nothing to be done at it."""
        self._step_word[0] = step  # before the look at the word below: the agent relies on this order (page.py)
        if not self.is_away:
            return False
        until_s = self._until_s
        if until_s == 0.0 or self._switch_word[0] >= step:
            self._come(is_called=True)
            return False
        for word in self._gate_words:
            if word[0]:
                self._come(is_called=True)
                return False
        if self._now_s() > until_s:
            self._come(is_called=False)
        return True

    def call(self) -> None:
        """Be there at the next save point: something is there to be done. From any thread, once `is_needed` says so, too."""
        self._until_s = 0.0

    def turn(self) -> None:
        """At the end of a save point at which there was something to be done: must the next step be seen?"""
        if self._is_needed():
            self._watch.open()
        elif self._step_s() < LOOK_S / 2:
            self._gate_words = self._gates()
            self._until_s = self._now_s() + LOOK_S
            if self._is_needed():  # whoever called just now was not heard
                self._until_s = 0.0
            self.is_away = True
            if not self._is_replaceable:
                self._watch.close()
                for group in self._groups:
                    group.overlook()

    def stay(self) -> None:
        """No save point comes any more: see everything."""
        self._come(is_called=True)

    def _come(self, is_called: bool) -> None:
        self.is_away = False
        for group in self._groups:
            group.see()
        if is_called:
            self._watch.open()
        self._on_come(is_called)
