"""A process of a suspended job that stays: what it gives up, what it still holds, and how it becomes a twin again.

It is asleep until the agent calls, and gone for everybody else (docs/design/003-vault.md). Its state lies in the vault; what it
holds of it counts only if nobody has written to it since. Knows nothing of how a switch is agreed on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from restow.sdk import group as groups_module
from restow.sdk.group import SoloInner
from restow.sdk.process import may_sleep
from restow.sdk.terms import Terms

if TYPE_CHECKING:
    from restow.sdk.worker import Worker

_NOTHING = (-1, -1, -1)


class Sleep:
    """Of one process. All but `wake` on the training thread, or before it begins."""

    def __init__(self, worker: Worker):
        self._worker = worker
        self.is_asleep = False  # not wanted back so far
        self.is_over = True  # not asleep, and the rank again; the training thread's alone
        self._holds = _NOTHING  # generation and step of the state, as the vaults know it, and its version here
        self._step_s = 0.0  # of a step before

    def is_possible(self) -> bool:
        """Would this process hold nothing but memory, of which there is enough?"""
        worker = self._worker
        assert worker.table
        return worker.libraries == {"cpu": "gloo"} and worker.table.device().type == "cpu" and may_sleep()

    def fall(self, generation: int, step: int) -> None:
        """We are no rank any more, and hold neither device nor communicators; our state is in the vault of `generation`."""
        worker = self._worker
        assert worker.table
        assert worker.snapshots
        self._step_s = worker.times.usual_step_s
        worker.is_twin = True
        worker.snapshots.cancel()
        worker.device.close()
        for group in groups_module.groups:
            group.swap(SoloInner()).close()
        self._holds = (generation, step, worker.table.version())
        self.is_asleep, self.is_over = True, False

    def wake(self, generation: int) -> None:
        """The job comes back, and we are a twin in `generation` that has rehearsed. On the channel's thread."""
        worker = self._worker
        worker.generation = generation
        worker.page.set("last_step_ns", 0)  # of another life: it has not stood still since
        worker.channel.forget()
        worker.channel.change_hello(generation=generation, role="twin")
        worker.channel.tell(type="parked", signature=worker.signature, rehearsal_step_s=self._step_s)
        self.is_asleep = False

    def holds(self, terms: Terms) -> bool:
        """Is what we hold the state that these terms are about? Asked once, for the first attempt after the sleep."""
        assert self._worker.table
        held, self._holds = self._holds, _NOTHING
        return held == (terms.kept_generation, terms.kept_step, self._worker.table.version())
