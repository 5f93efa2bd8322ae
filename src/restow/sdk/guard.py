"""The guard: a leaver lost while a switch is near, and a twin lost right after it, cost no step.

Armed on every old rank from its first save point after `guard` (a switch is being prepared) until the first step after the
switch is finished everywhere.
While armed it keeps the collectives of this step and the one before (ledger.py), leavers keep their private state of the last
two save points in the store, and one rank near the twins keeps its state as of the last save point (takeover.py says which).

A leaver is lost (in any step, or at the switch step before its state was handed over): the survivors' collectives fail. They do
not tell the script; each writes where it stands, the twin of the lost rank writes that it is lost, and all compute the same step.
The twin takes the private state of that step from the store and everything else from a survivor, the new ring is proved and
decided as at any switch, the twin runs that step, and the survivors do its collectives again with it. Whoever had their result
already throws the second one away.

A twin is lost after the verdict, before everybody finished the first step: its leaver is still parked and sees it end. The first
word written (`retire` or `fallback`) decides. On `fallback` the old inner is put back, the leaver runs the step, and the others
do its collectives again with it. Twins of other ranks leave then, too.

What it cannot save; the job then ends with the collective's own error and one line on why:
- a leaver lost before its first save point after `guard`, or leaver and twin lost together;
- private state of more than STORED_PRIVATE_BYTES_MAX; a step with send or recv, or beyond the ledger's limits;
- groups on other libraries than gloo on the CPU: NCCL neither fails nor stops in a way that can be waited for.
What the lost process printed inside the step it was lost in is printed again by the process that repeats it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist

from restow.sdk import group as group_module
from restow.sdk.agreement import TROUBLE_PATIENCE_S
from restow.sdk.attempt import Attempt
from restow.sdk.boxes import StateTable
from restow.sdk.group import SwitchGroup
from restow.sdk.ledger import Entry, Ledger
from restow.sdk.takeover import Stuck, Takeover, choose, keepers, read_stuck, read_takeover
from restow.sdk.terms import Outcome, Report, Role

POLL_S = 0.002
SWITCH = "switch"  # the operation of an entry that stands for the second half of a switch
IN_FLIGHT_PATIENCE_S = 5.0  # for what else was under way on a failed inner: it fails as soon as the peers have closed theirs


class NotSaved(Exception):
    """The step cannot be repeated; one line says why."""


class Guard:
    """Of one process in one attempt. `run` carries every collective; `at_save_point` is called between steps."""

    def __init__(
        self,
        attempt: Attempt,
        table: StateTable,
        groups: Sequence[SwitchGroup],
        *,
        on_finished: Callable[[Attempt, int, Report], None],
        on_moved: Callable[[Attempt, int, Report], None],
        on_back: Callable[[Attempt, int, str], None],
    ):
        """All of these are called on the guard's thread:

        `on_finished(attempt, step, report)`: what `finish_later` came to;
        `on_moved(attempt, step, report)`: a lost leaver's rank was taken over (does not return where we are a leaver);
        `on_back(attempt, step, reason)`: the old generation goes on from `step`.
        """
        self.attempt = attempt
        self._table, self._groups = table, list(groups)
        self._on_finished, self._on_moved, self._on_back = on_finished, on_moved, on_back
        self._changed = threading.Condition()
        # a twin never does a step again: if another one is lost in its first step, all of them leave
        self._ledger = Ledger(keeps=attempt.role is not Role.ARRIVING)
        self._queue: deque[Entry] = deque()
        self._stuck_s = 0.0  # since when, time.perf_counter()
        self._is_held = False  # an inner failed, or will be another soon: collectives wait
        self._unfinished: Report | None = None  # of a switch that goes on beside the training, see finish_later
        self._is_broken = False  # not saved: everything fails as it would without us
        self._is_closed = False
        self._is_back = False
        self.can_save = False  # armed, and able to repeat a step
        self._step = -1  # steps finished; -1: not armed yet
        self._is_switched, self._switch_step = False, -1
        self._updated_at = -1  # the last step in which an optimizer ran
        keeps = attempt.role is not Role.ARRIVING and attempt.rank in keepers(attempt.terms.now, attempt.terms.then)
        self._keeps = keeps and attempt.is_guarded
        self._kept: dict[str, torch.Tensor] = {}
        self._kept_step = -1
        self._store: dist.Store = attempt.open_store()
        self._thread = threading.Thread(target=self._work, name="restow-guard", daemon=True)

    # ------------------------------------------------------------ the training thread

    def at_save_point(self, step: int, capture: Callable[[], bytes]) -> None:
        """`step` steps are finished. The first call arms the guard."""
        self.arm(step)
        self.settle()
        if self.attempt.role is Role.LEAVING and self.attempt.is_guarded and not self._is_switched:
            try:
                self.attempt.keep_private(self._store, step, capture())
            except dist.DistError:  # the store is gone, and with it the attempt; the training does not need it
                self.close()

    def settle(self) -> None:
        """If we are in the new generation, we have finished a step there, or have left the loop."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_held)
        if self._is_switched and not self._is_back:
            try:
                self.attempt.agreement.settle()
            except dist.DistError:  # as above
                self.close()

    def arm(self, step: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_held)
            if self._is_broken or self._is_closed:
                return
            self._ledger.turn(step)
            is_first, self._step = self._step < 0, step
            self.can_save = self.attempt.is_guarded and bool(self._groups)
        if is_first and self.can_save:
            self._thread.start()
            for group in self._groups:
                group.guard = self

    def switched(self, step: int) -> None:
        """The verdict at the switch step `step` was `done`."""
        self._is_switched, self._switch_step = True, step

    def is_over(self) -> bool:
        """Is there nothing left to guard against? Asked at save points."""
        if self._is_broken or self._is_closed or self._is_back:
            return True
        try:
            return self._is_switched and self.attempt.agreement.is_settled()
        except dist.DistError:  # the store is gone; nobody can go back without it
            return True

    def abandon(self, reason: str) -> bool:
        """The attempt is given up. False: a step is being saved by it, and the verdict says what comes of that."""
        with self._changed:
            if not self._is_held:
                self.close()
                return True
        self._store.compare_set("verdict", "", f"rollback {reason}")
        return False

    def give_up(self, reason: str) -> None:
        """The attempt cannot succeed: if a step waits for it, it waits no longer."""
        with self._changed:
            is_held = self._is_held
        if is_held:
            self._store.compare_set("verdict", "", f"rollback {reason}")

    def trouble(self) -> None:
        """A leaver was lost while we wait at the switch step. Returns when training may go on; raises if it cannot."""
        entry = Entry(self._groups[0], "", (), [])
        with self._changed:
            self._queue.append(entry)
            self._changed.notify_all()
        entry.work.wait()

    def finish_later(self, report: Report) -> None:
        """We have begun the switch at this save point, and nobody reads our state: train on. The next collective waits until it
        is known on which inner it goes, the next update too."""
        entry = Entry(self._groups[0], SWITCH, (), [])
        with self._changed:
            self._is_held, self._unfinished, self._stuck_s = True, report, time.perf_counter()
            self._queue.append(entry)
            self._changed.notify_all()

    def before_update(self) -> None:
        """An optimizer is about to run. While survivors repeat a step, the state that a twin reads must not change."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_held)
            if self._updated_at == self._step or self._step < 0:
                return
            if self._keeps and not self._is_switched:
                self._keep_state()
            self._updated_at = self._step

    def _keep_state(self) -> None:
        tensors = self._table.tensors()
        self._kept_step = -1
        try:
            if self._kept.keys() != tensors.keys():
                self._kept = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
            for name, tensor in tensors.items():
                self._kept[name].copy_(tensor)
        except (MemoryError, torch.OutOfMemoryError):  # then a leaver can be lost only before the optimizer has run
            self._kept, self._keeps = {}, False
            return
        self._kept_step = self._step

    def close(self) -> None:
        """Nothing is kept from now on. What was given to the guard's thread is still finished there, and while that has not been
        launched nothing may overtake it: two ranks would launch their collectives in different orders."""
        with self._changed:
            self._is_closed = True
            if not self._is_held:
                self._leave_groups()
            self._changed.notify_all()
        self._kept = {}

    def _leave_groups(self) -> None:
        for group in self._groups:
            if group.guard is self:
                group.guard = None

    def _let_pass(self) -> None:
        """Under the lock: all that was held back has been launched."""
        self._is_held = False
        if self._is_closed:
            self._leave_groups()
        self._changed.notify_all()

    def run(self, group: SwitchGroup, operation: str, arguments: tuple[Any, ...]) -> dist.Work:
        with self._changed:
            if (self._is_broken or self._is_closed) and not self._is_held:
                return Entry(group, operation, arguments, []).launch(arguments)
            entry = self._ledger.write(group, operation, arguments)
            if not self._is_held:
                try:
                    entry.inner_work = entry.launch(arguments)
                except Exception:  # refused at once: a mistake in the arguments, the script's to hear
                    self._ledger.strike(entry)
                    raise
            self._queue.append(entry)
            self._changed.notify_all()
        return entry.work

    # ------------------------------------------------------------ the guard's thread

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._is_closed)
                if not self._queue:
                    return
                entry = self._queue.popleft()
            if entry.operation == SWITCH:
                self._finish(entry)
                continue
            if entry.refused:
                entry.fail(entry.refused)
                continue
            try:
                if not entry.operation:
                    raise RuntimeError("a leaver was lost")
                entry.inner_work.wait()
            except Exception as error:  # gloo raises RuntimeError, and subclasses of it for time-outs
                if self._is_closed:
                    entry.fail(error)
                else:
                    self._recover(entry, error)
            else:
                entry.finish()

    def _finish(self, entry: Entry) -> None:
        """The second half of a switch; then the collectives that waited for it go off, in order."""
        assert self._unfinished
        report, step = self._unfinished, self._step
        with self.attempt.busy:
            self.attempt.finish(self._groups, report)
        if report.outcome is Outcome.TROUBLE:
            entry.operation = ""
            self._recover(entry, RuntimeError("a leaver was lost"))
            return
        self._on_finished(self.attempt, step, report)
        with self._changed:
            for waiting in self._queue:
                try:
                    waiting.inner_work = waiting.launch(waiting.arguments)
                except Exception as error:  # refused at once: the script hears of it where it waits
                    waiting.refused = error
            self._let_pass()

    def _recover(self, entry: Entry, error: Exception) -> None:
        """Find another inner and do the step's collectives again on it, or let everybody who waits have the error."""
        with self._changed:
            self._is_held, self._stuck_s = True, time.perf_counter()
            waiting = [entry, *self._queue]
        self._let_go(waiting)
        try:
            step = self._go_back() if self._is_switched else self._take_over()
            with self._changed:
                todo = deque(self._ledger.since(step))
                self._queue.clear()
            self._redo(todo)
        except Exception as failure:  # nothing of it may hang whoever waits: it ends the job as without us
            why = str(failure) if isinstance(failure, NotSaved) else f"{type(failure).__name__}: {failure}"
            self._break(waiting, RuntimeError(f"{error} (restow could not save this step: {why.splitlines()[0]})"))
            return
        if not entry.operation:
            entry.finish()

    def _let_go(self, waiting: Sequence[Entry]) -> None:
        """Close the failed inner, once nothing of it writes into our tensors any more: so the others' fail as well."""
        give_up_s = time.monotonic() + IN_FLIGHT_PATIENCE_S
        for entry in waiting:
            while entry.inner_work is not None and not entry.inner_work.is_completed() and time.monotonic() < give_up_s:
                time.sleep(POLL_S)
            entry.inner_work = None
        for group in self._groups:
            group.inner.close()

    def _redo(self, todo: deque[Entry]) -> None:
        while True:
            while todo:
                todo[0].redo()
                todo.popleft()
            with self._changed:
                todo.extend(self._queue)
                self._queue.clear()
                if not todo:
                    self._let_pass()
                    return

    def _break(self, waiting: Sequence[Entry], error: Exception) -> None:
        if group_module.sentinel is not None:
            with suppress(RuntimeError):
                group_module.sentinel.failed(error)  # does not return if the whole gang is to come back from the vault
        with self._changed:
            self._is_broken = True
            left = {id(e): e for e in [*waiting, *self._ledger.since(-1), *self._queue] if not e.is_done}
            self._queue.clear()
            self._let_pass()
        for entry in left.values():
            entry.fail(error)

    # ------------------------------------------------------------ a lost twin

    def _go_back(self) -> int:
        """Wait for the word of the leaver that lost its twin; put the old inners back. Returns the switch step."""
        self._await("after", "no leaver stepped in")
        word = self._store.get("after").decode()
        if not word.startswith("fallback "):
            raise NotSaved("the old generation has retired")
        self.attempt.swap_back(self._groups)
        self._is_back = True
        self._on_back(self.attempt, self._switch_step, word.removeprefix("fallback "))
        return self._switch_step

    # ------------------------------------------------------------ a lost leaver

    def _take_over(self) -> int:
        """Agree with the other survivors and the twins; returns the step that is to be repeated, in the new generation."""
        rank = self.attempt.rank
        if self._store.compare_set("gate", "", "trouble") != b"trouble":
            raise NotSaved("another rank is missing")
        self._await_connected()
        with self._changed:
            live = () if self._updated_at == self._step else (self._step,)
            kept = (self._kept_step,) if self._kept_step >= 0 else ()
            word = Stuck(step=self._step, first=self._ledger.first, holds=live + kept, why_not=self._ledger.why_not)
        self._store.set(f"stuck/{rank}", word.to_json())
        takeover = self._agree()
        if takeover.why_not:
            self._store.compare_set("verdict", "", f"rollback {takeover.why_not}")
            raise NotSaved(takeover.why_not)
        tensors = None
        if rank in takeover.sources.values():
            tensors = self._table.tensors() if takeover.step in live else self._kept
        report = self.attempt.join_takeover(takeover, self._groups, tensors)
        if report.outcome is not Outcome.DONE:
            raise NotSaved(report.reason)
        self._store.compare_set("after", "", "retire")  # the leaver is lost: nobody can go back
        self._is_switched, self._switch_step = True, takeover.step
        report.phases = [("stuck", time.perf_counter() - self._stuck_s)]
        self._on_moved(self.attempt, takeover.step, report)
        return takeover.step

    def _await_connected(self) -> None:
        """The leaver may have been lost while its twin still rehearsed."""
        give_up_s = time.monotonic() + TROUBLE_PATIENCE_S
        while not self.attempt.await_connected(0.05):
            if self._store.check(["verdict"]):
                raise NotSaved(self._store.get("verdict").decode())
            if time.monotonic() > give_up_s:
                raise NotSaved(f"its twin was not there within {TROUBLE_PATIENCE_S:g} s")

    def _agree(self) -> Takeover:
        terms = self.attempt.terms
        give_up_s = time.monotonic() + TROUBLE_PATIENCE_S
        while not self._store.check(["takeover"]):
            if self._store.check(["verdict"]):
                raise NotSaved(self._store.get("verdict").decode())
            ranks = range(len(terms.now))
            stuck = {rank: read_stuck(self._store.get(key)) for rank in ranks if self._store.check([key := f"stuck/{rank}"])}
            missing = [rank for rank in ranks if rank not in stuck and not self._is_lost(rank)]
            if not missing:
                chosen = choose(terms.now, terms.then, stuck, self.attempt.kept_private(self._store))
                self._store.compare_set("takeover", "", chosen.to_json())
            elif time.monotonic() > give_up_s:
                raise NotSaved(f"no word of rank {', '.join(map(str, missing))} for {TROUBLE_PATIENCE_S:g} s")
            else:
                time.sleep(POLL_S)
        return read_takeover(self._store.get("takeover"))

    def _is_lost(self, rank: int) -> bool:
        return rank in self.attempt.terms.moved and bool(self._store.check([f"lost/{rank}"]))

    def _await(self, key: str, otherwise: str) -> None:
        give_up_s = time.monotonic() + TROUBLE_PATIENCE_S
        while not self._store.check([key]):
            if time.monotonic() > give_up_s:
                raise NotSaved(f"{otherwise} within {TROUBLE_PATIENCE_S:g} s")
            time.sleep(POLL_S)
