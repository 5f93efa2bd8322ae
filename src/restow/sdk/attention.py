"""Which steps of a training process are seen: their collectives, gradients and times.

To see one costs Python between two steps, none of which is then in the processor's caches: some 200 microseconds for what takes
40 in a loop. So a step is seen while somebody needs it (a switch or a checkpoint is near, the device is shared, a lost rank is to
be replaced), and else one in each LOOK_S, for the profile. All others pass with a look at a clock and a few words.

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
    """Of one process. All but `call` on the training thread. `is_needed()`: must each step be seen now? `is_disturbed()`, quick:
    has something come that must be seen to? `step_s()`: seconds of a step."""

    def __init__(
        self, page: Page, groups: Sequence[SwitchGroup], watch: GradientWatch, *,
        is_needed: Callable[[], bool], is_disturbed: Callable[[], bool], step_s: Callable[[], float],
        now_s: Callable[[], float] = time.perf_counter,
    ):  # fmt: skip
        self._groups, self._watch = groups, watch
        self._is_needed, self._is_disturbed, self._step_s = is_needed, is_disturbed, step_s
        self._now_s = now_s
        self._step_word, self._switch_word = page.words["step"], page.words["switch_step"]
        self.is_away = False  # nobody sees the step that is under way
        self._until_s = 0.0  # when to look again; 0: somebody calls

    def passes(self, step: int) -> bool:
        """The save point after `step` steps. True: there is nothing to be done at it."""
        if not self.is_away:
            return False
        self._step_word[0] = step  # before the look at the word below: the agent relies on this order (page.py)
        until_s = self._until_s
        if until_s == 0.0 or self._switch_word[0] >= step or self._is_disturbed():
            self._come(is_called=True)
            return False
        if self._now_s() > until_s:
            self._come(is_called=False)
        return True

    def call(self) -> None:
        """Be there at the next save point: something is there to be done. From any thread, once `is_needed` says so, too."""
        self._until_s = 0.0

    def turn(self) -> None:
        """At the end of a save point at which there was something to be done: is the next step to be seen?"""
        if self._is_needed():
            self._watch.wake()
        elif self._step_s() < LOOK_S / 2:
            self._until_s = self._now_s() + LOOK_S
            if self._is_needed():  # whoever called just now was not heard
                self._until_s = 0.0
            self.is_away = True
            self._watch.sleep()
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
            self._watch.wake()
