"""A training process's part in switches: which attempt there is, what guards it, who follows whom, and what comes of it.

`prepare`, `connect` and `abandon` come on threads of their own; `at_switch` and `arrive` are the training thread's. How an attempt
works is attempt.py's, what it takes to do a step again guard.py's; who this process is afterwards, worker.py's.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from restow import vault
from restow.sdk.attempt import Attempt
from restow.sdk.group import groups
from restow.sdk.guard import Guard
from restow.sdk.process import leave
from restow.sdk.shadow import Leader, Shadow, followers_of
from restow.sdk.terms import AttemptFailed, Outcome, Report, Role, Terms

if TYPE_CHECKING:
    from restow.sdk.worker import Worker


class Switches:
    def __init__(self, worker: Worker):
        self._worker = worker
        self.guard: Guard | None = None  # from `connect` until the first step after the switch is finished everywhere
        self._attempt: Attempt | None = None
        self._attempt_changed = threading.Condition()
        self._opening = threading.Lock()  # one attempt is opened at a time
        self._announced = (-1, -1)  # generation and step of the last proposal that we told the twins of
        self._leader: Leader | None = None  # present while a twin of this node shadows us
        self.is_updating = False  # an optimizer runs, or is about to

    @property
    def is_busy(self) -> bool:
        """Is one under way, or not over everywhere?"""
        return self._attempt is not None or self.guard is not None or self._leader is not None

    # ------------------------------------------------------------ every step

    def before_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Called while `is_busy`, after `is_updating` was set."""
        guard, leader = self.guard, self._leader  # an `abandon` may take them away meanwhile
        if guard:
            guard.before_update()
        if leader:
            leader.before(optimizer)

    def after_update(self) -> None:
        """Called while `is_busy`, before `is_updating` is taken back."""
        leader = self._leader
        if leader:
            leader.after()

    def refuse(self, why_not: str) -> None:
        """No save point of ours comes any more, so nobody shall wait for us."""
        attempt = self._attempt
        if attempt and attempt.is_connected:
            attempt.agreement.roll_back(f"rank {self._worker.environment.rank}: {why_not}")
            self._say_rolled_back(attempt, int(self._worker.switch_word[0]), why_not)
        self._drop_guard()

    def end_loop(self) -> None:
        """A switch that was just made is final for us."""
        guard = self.guard
        if guard:
            guard.settle()
            self._drop_guard()

    # ------------------------------------------------------------ a switch is prepared

    def _role_in(self, terms: Terms) -> Role:
        if self._worker.is_twin:
            return Role.ARRIVING
        if not terms.then:
            return Role.SUSPENDING
        return Role.LEAVING if self._worker.environment.rank in terms.moved else Role.STAYING

    def prepare(self, terms: Terms) -> None:
        """A switch is being prepared: keep what it takes to do a step again."""
        try:
            self._attempt_for(terms)
        except AttemptFailed as failure:
            self._worker.channel.tell(type="failed", generation=terms.generation, reason=str(failure))

    def connect(self, terms: Terms) -> None:
        """Connect in the background; the training thread goes on meanwhile."""
        try:
            attempt = self._attempt_for(terms)
            if attempt is None or attempt.is_begun:
                return
            attempt.is_begun = True
            if terms.fill == "shadow":
                self._open_shadow(attempt)
            attempt.connect(groups)
        except AttemptFailed as failure:
            if self.guard:
                self.guard.give_up(str(failure))
            self._worker.channel.tell(type="failed", generation=terms.generation, reason=str(failure))
            return
        with self._attempt_changed:
            self._attempt_changed.notify_all()
        self._worker.channel.tell(type="connected", generation=terms.generation)

    def _attempt_for(self, terms: Terms) -> Attempt | None:
        """The attempt at this generation, opened, and guarded where we are an old rank; None if it comes too late or too early.
        Raises AttemptFailed."""
        with self._opening:
            with self._attempt_changed:
                present = self._attempt
                if self._worker.sleep.is_asleep:
                    return None  # of a switch before: it is repeated to a new agent's processes
                if terms.generation <= self._worker.generation and not self._worker.is_twin:
                    return None  # late: we are there, or further
                if terms.present != self._worker.generation and not self._worker.is_twin:
                    return None  # we were left behind, on a node that was lost: this is no business of ours
                if present and present.terms.generation >= terms.generation:
                    return present if present.terms.generation == terms.generation else None
                if self._worker.table is None:
                    raise AttemptFailed("the script has not reached job.steps yet")
                env = self._worker.environment
                attempt = Attempt(
                    terms,
                    role=self._role_in(terms),
                    job=env.job,
                    rank=env.rank,
                    address=env.address,
                    secret=env.secret,
                    table=self._worker.table,
                    libraries=self._worker.libraries,
                )
                attempt.is_filled = self._worker.sleep.holds(terms)
                self._attempt = attempt
            self._worker.call()
            if present:
                present.close()
            if attempt.role is Role.SUSPENDING:
                return attempt  # nobody reads from us, and no step will have to be done again
            attempt.open()
            if attempt.role is not Role.ARRIVING:
                guard = self._make_guard(attempt)
                with self._attempt_changed:
                    if self._attempt is attempt:
                        self.guard = guard
            return attempt

    def _make_guard(self, attempt: Attempt) -> Guard:
        assert self._worker.table
        return Guard(
            attempt, self._worker.table, groups, on_finished=self._conclude, on_moved=self._on_moved, on_back=self._on_back,
        )  # fmt: skip

    def _open_shadow(self, attempt: Attempt) -> None:
        """A twin follows the lowest staying rank of its node; that one leads. Raises AttemptFailed."""
        assert self._worker.table
        env = self._worker.environment
        try:
            if attempt.role is Role.ARRIVING:
                attempt.shadow = Shadow(attempt, self._worker.table, env, lambda: self._say_shadowing(attempt))
            elif attempt.role is Role.STAYING and followers_of(attempt.terms.now, attempt.terms.then, env.rank):
                self._leader = attempt.leader = Leader(attempt, self._worker.table, env, lambda: self._worker.optimizer_steps)
                if not self.is_updating:  # looked at last: the update that begins now tells our leader
                    attempt.leader.follow_now()
        except OSError as error:
            raise AttemptFailed(f"rank {env.rank} has no room for a shadow: {error.strerror or error}") from error

    def _close_shadow(self, attempt: Attempt) -> None:
        if attempt.shadow:
            attempt.shadow.close()
        leader, self._leader = self._leader, None
        if leader:
            leader.close()

    def _say_shadowing(self, attempt: Attempt) -> None:
        self._worker.channel.tell(type="shadowing", generation=attempt.terms.generation)

    def abandon(self, generation: int) -> None:
        with self._attempt_changed:
            attempt = self._attempt
            if attempt is None or attempt.terms.generation != generation:
                if self._worker.is_twin and self._worker.generation == generation:
                    leave()
                return
            if self._worker.is_twin:
                leave()
            if self.guard and not self.guard.abandon("given up by the controller"):
                return
            self._attempt = self.guard = None
            self._attempt_changed.notify_all()
        self._close_shadow(attempt)
        self._close_later(attempt)

    # ------------------------------------------------------------ the switch step

    def at_switch(self, step: int, capture: Callable[[], bytes]) -> None:
        """A switch is near. Mind the guard; announce a proposed step to the twin, or, at it, take part; returns when training
        may go on.

        A leaver whose rank now lives elsewhere does not return.
        """
        self._mind_guard(step, capture)
        proposed = self._worker.switch_word[0]
        attempt = self._attempt
        if attempt is None or not attempt.is_connected or proposed < step:
            return
        if attempt.terms.generation != self._worker.page.get("switch_generation"):
            return  # abandoned meanwhile: the others find `abort`, or roll back without us
        if (attempt.terms.generation, proposed) != self._announced:  # at the step itself too: it may have come just now
            self._announced = (attempt.terms.generation, proposed)
            attempt.announce(proposed)
        if proposed != step:
            return
        began_s = time.perf_counter()
        guard = self.guard
        with attempt.busy:  # an `abandon` may come meanwhile
            report = attempt.begin(step, groups, capture)
            if report.outcome is not Outcome.ABORTED:
                self._worker.device.void_turns()
            trains_on = report.outcome is None and attempt.role is Role.STAYING and guard is not None and guard.can_save
            if report.outcome is None and not trains_on:
                attempt.finish(groups, report)
        report.paused_s = time.perf_counter() - began_s
        if trains_on:
            assert guard
            self._worker.times.forget()
            guard.finish_later(report)
        elif report.outcome is Outcome.TROUBLE and guard and guard.can_save:
            guard.trouble()
        else:
            self._conclude(attempt, step, report)
            self._worker.times.forget()

    def _conclude(self, attempt: Attempt, step: int, report: Report) -> None:
        """A switch at `step` came to this; on the guard's thread where the training went on meanwhile. A leaver that is not
        needed any more does not return."""
        generation = attempt.terms.generation
        if report.outcome is Outcome.ABORTED:  # the attempt stays: a later step may be proposed
            if self._worker.device.turns_are_void:
                self._worker.begin_turns(attempt.terms.generation, step)
            self._say_rolled_back(attempt, step, report.reason, may_retry=True)
            return
        if report.outcome is Outcome.TROUBLE:  # and no guard that could save it
            report.reason = attempt.agreement.roll_back("a leaver was lost").removeprefix("rollback ")
        self._forget_attempt(attempt)
        if report.outcome is Outcome.DONE and attempt.role is Role.SUSPENDING:
            self._suspended(attempt, step, report)
            return
        if report.outcome is Outcome.DONE:
            if attempt.role is not Role.LEAVING:
                if self.guard:
                    self.guard.switched(step)
                self._become(attempt, step, report.paused_s, report)
                return
            report.reason = attempt.agreement.await_retirement()
            if not report.reason:
                self._worker.channel.tell(type="retired", generation=generation)
                leave()
        self._drop_guard()
        self._worker.begin_turns(attempt.terms.generation, step)
        self._say_rolled_back(attempt, step, report.reason)
        self._close_later(attempt)

    def _suspended(self, attempt: Attempt, step: int, report: Report) -> None:
        """Everybody's state is in the vault: this process is not needed any more. It leaves, or sleeps where that holds nothing but
        memory of which there is enough: who is there already when the job comes back need not start and rehearse."""
        sleeps = self._worker.sleep.is_possible()
        said: dict[str, Any] = {"generation": attempt.terms.generation, "step": step, "bytes": report.kept_bytes}
        said |= {"pause_s": report.paused_s, "phases": report.phases}
        path = Path(attempt.terms.vault) / f"{vault.of_rank(self._worker.environment.rank)}.left"
        path.write_text(json.dumps(said))  # in case that no agent hears us
        if not sleeps:
            self._worker.channel.tell(type="kept", **said)
            leave()
        self._close_later(attempt)
        self._worker.sleep.fall(attempt.terms.generation, step)
        self._worker.channel.tell(type="kept", sleeps=True, **said)

    def wake(self, generation: int) -> None:
        """The job comes back. On the channel's thread."""
        with self._opening:
            if self._worker.sleep.is_asleep:
                self._worker.sleep.wake(generation)

    def _forget_attempt(self, attempt: Attempt) -> None:
        with self._attempt_changed:
            if self._attempt is attempt:
                self._attempt = None
        self._close_shadow(attempt)

    def _mind_guard(self, step: int, capture: Callable[[], bytes]) -> None:
        guard = self.guard
        if guard is None:
            return
        guard.at_save_point(step, capture)
        if guard.is_over():
            self._drop_guard()
            self._close_later(guard.attempt)

    def _drop_guard(self) -> None:
        guard, self.guard = self.guard, None
        if guard:
            guard.close()

    def _on_moved(self, attempt: Attempt, step: int, report: Report) -> None:
        """A lost leaver's rank was taken over by its twin, in the middle of a step of ours."""
        self._forget_attempt(attempt)
        if attempt.role is Role.LEAVING:
            self._worker.channel.tell(type="retired", generation=attempt.terms.generation)
            leave()
        self._become(attempt, step, sum(s for _, s in report.phases), report)
        self._worker.times.forget()

    def _on_back(self, attempt: Attempt, step: int, reason: str) -> None:
        """A twin was lost in the first step of its generation: the one before goes on, from the switch step."""
        if attempt.role is Role.ARRIVING:
            leave()
        self._worker.go_back(attempt.terms.generation, step)
        self._say_rolled_back(attempt, step, reason)

    # ------------------------------------------------------------ the twin

    def arrive(self, on_upcoming: Callable[[int], None]) -> dict[str, Any]:
        """The twin's side: park until the gang has switched; returns what the leaver handed over (`step` among it).

        `on_upcoming(step)` is called when a switch step is known, so that data can be fetched ahead. Does not return if the
        switch does not happen.
        """
        with self._attempt_changed:
            while not (self._attempt and self._attempt.is_connected):
                self._attempt_changed.wait()
            attempt = self._attempt
        assert self._worker.table
        self._worker.open_passage(self._worker.table.device())  # who slept has left the gate
        comes_back = bool(attempt.terms.kept)
        guard = None if comes_back else self._make_guard(attempt)  # from the vault nobody can go back to an old generation
        upcoming = attempt.terms.kept_step if comes_back else attempt.agreement.await_announcement()
        if upcoming < 0:
            leave()
        on_upcoming(upcoming)
        report = attempt.take_part(-1, groups, lambda: b"")
        if report.outcome is Outcome.TROUBLE:
            report = attempt.take_over(groups)
        if report.outcome is not Outcome.DONE:
            if comes_back:
                self._worker.channel.tell(type="failed", generation=attempt.terms.generation, reason=report.reason)
            leave()
        step = int(report.extra["step"])
        pause_s = max(0.0, time.time() - float(report.extra["left_at_s"]))
        if comes_back and not attempt.sources.is_resized:
            pause_s = sum(seconds for _, seconds in report.phases)  # what came before is no pause: nobody wanted it to train
        self._worker.become_rank(step, int(report.extra["optimizer_steps"]), report.is_muted)
        if guard:
            self.guard = guard
            guard.switched(step)
            guard.arm(step)
        self._become(attempt, step, pause_s, report)
        self._worker.sleep.is_over = True
        with self._attempt_changed:
            if self._attempt is attempt:
                self._attempt = None
        if guard is None:
            self._close_later(attempt)
        self._worker.times.forget()
        report.extra["is_new_rank"] = attempt.sources.is_new_rank
        return report.extra

    def _become(self, attempt: Attempt, step: int, pause_s: float, report: Report) -> None:
        generation = attempt.terms.generation
        self._worker.enter(generation, step, attempt.terms.store, tuple(slot.node for slot in attempt.terms.then))
        if attempt.role is not Role.ARRIVING:  # who arrives joins as it begins its loop
            self._worker.join_replicas()
        self._worker.channel.tell(
            type="switched", generation=generation, step=step, pause_s=pause_s, wire_bytes=report.wire_bytes, phases=report.phases
        )

    def _say_rolled_back(self, attempt: Attempt, step: int, reason: str, may_retry: bool = False) -> None:
        """`may_retry`: the attempt stays, and what it has prepared."""
        about = {"generation": attempt.terms.generation, "step": step, "reason": reason}
        self._worker.channel.tell(type="rolled_back", may_retry=may_retry, **about)

    def _close_later(self, attempt: Attempt) -> None:
        """Old communicators, ports and the shadow's memory are taken down beside the training, not in its way."""
        threading.Thread(target=attempt.close, name="restow-close", daemon=True).start()
