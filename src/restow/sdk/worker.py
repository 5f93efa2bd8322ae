"""A training process under restow: its page, its line to the agent, and its part in switches.

The training thread calls `after_step` at every save point: one store, one load, a clock. Everything slow happens on other
threads or at a switch step. Knows nothing of the user's loop (session.py) and nothing of how an attempt works (attempt.py).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from restow import vault
from restow.errors import ScriptError
from restow.page import Page, open_page
from restow.sdk import group as groups_module
from restow.sdk.attempt import Attempt
from restow.sdk.boxes import StateTable
from restow.sdk.channel import Channel
from restow.sdk.environment import Environment
from restow.sdk.footprint import MemoryWatch, limit_memory
from restow.sdk.group import NetInner, SoloInner, collective_libraries, groups
from restow.sdk.guard import Guard
from restow.sdk.memory import KEPT_BYTES, keep_touched_memory, touch_ahead
from restow.sdk.passage import Passage
from restow.sdk.replicas import Replicas
from restow.sdk.sentinel import Sentinel
from restow.sdk.shadow import Leader, Shadow, followers_of
from restow.sdk.shared_device import SharedDevice
from restow.sdk.snapshots import Snapshots
from restow.sdk.terms import AttemptFailed, Outcome, Report, Role, Terms, read_terms
from restow.sdk.times import StepTimes
from restow.sdk.whereabouts import whereabouts

ASK_AGAIN_S = 0.2  # while no agent listens
SPARE_BYTES = 64 << 20  # beyond its gradients: temporaries of an optimizer, activations of small batches


class Worker:
    """One rank or twin. `table` is set by `register`, once the script has prepared what it trains."""

    def __init__(self, environment: Environment):
        self.environment = environment
        self.generation = environment.generation
        self._libraries = collective_libraries(environment.cuda_collectives)
        self.is_twin = environment.role == "twin"
        self.page: Page = open_page(Path(environment.page))
        self.table: StateTable | None = None
        self.values: dict[str, float] = {}
        self._replicas: Replicas | None = None  # as the sentinel
        self.snapshots: Snapshots | None = None  # from `register` on
        self.sentinel: Sentinel | None = None  # from `register` on, where lost ranks are replaced
        self.optimizer_steps = 0
        self._is_updating = False  # an optimizer runs, or is about to
        self._attempt: Attempt | None = None
        self._attempt_changed = threading.Condition()
        self._opening = threading.Lock()  # one attempt is opened at a time
        self._announced = (-1, -1)  # generation and step of the last proposal that we told the twins of
        self._guard: Guard | None = None  # from `connect` until the first step after the switch is finished everywhere
        self._left_generation = self.generation  # where a fallback goes to
        self._is_muted = False  # a twin that repeats a step whose lines are printed already
        self._leader: Leader | None = None  # present while a twin of this node shadows us
        self._step_word = self.page.words["step"]
        self._switch_word = self.page.words["switch_step"]
        keep_touched_memory()
        if environment.memory_bytes:
            limit_memory(environment.memory_bytes, "cuda" if torch.cuda.is_available() else "cpu")
        self.times = StepTimes(self.page)
        self.device = SharedDevice(environment, self.page)
        self._store_at = self._store_before = environment.store  # of the present generation, and of the one before
        self.page.set("pid", os.getpid())
        self.page.set("generation", self.generation)
        hello = {
            "job": environment.job,
            "generation": environment.generation,
            "rank": environment.rank,
            "role": environment.role,
            "pid": os.getpid(),
            "secret": environment.secret.hex(),
        }
        self.channel = Channel(environment.agent, hello, self._on_message)
        self.channel.start()
        self._hear_signal()

    def _hear_signal(self) -> None:
        """SIGUSR1 asks for a checkpoint of the job, unless the script wants the signal itself."""
        is_free = signal.getsignal(signal.SIGUSR1) in (signal.SIG_DFL, None)
        if is_free and threading.current_thread() is threading.main_thread():
            def ask() -> None:
                while not self.channel.say(type="checkpoint_asked"):  # once: a fact would be told to every later agent again
                    time.sleep(ASK_AGAIN_S)

            def asked(*_: object) -> None:  # the main thread may hold the channel's lock
                threading.Thread(target=ask, name="restow-asks", daemon=True).start()

            signal.signal(signal.SIGUSR1, asked)

    # ------------------------------------------------------------ before the loop

    def join_gang(self) -> None:
        """Make torch's default group: the real one for a rank, a solo one for a twin. One rank alone has none."""
        env = self.environment
        if env.world_size == 1:
            return
        if self.is_twin:
            store: dist.Store = dist.HashStore()
            groups_module.install(lambda name, rank, size: SoloInner())
        else:
            host, port = env.store
            store = dist.PrefixStore("gang", dist.TCPStore(host, port, is_master=False, wait_for_workers=False))

            def connect(name: str, rank: int, size: int) -> NetInner:
                return NetInner(dist.PrefixStore(f"inner/{name}", store), rank, size, self._libraries)

            groups_module.install(connect)
        dist.init_process_group(groups_module.BACKEND, store=store, rank=env.rank, world_size=env.world_size)

    def register(self, table: StateTable) -> None:
        """What travels. Hooks the optimizers: how long each step waited for others, and how many updates were made."""
        self.table = table
        self.times.memory = MemoryWatch(table.device())
        for optimizer in table.optimizers():
            optimizer.register_step_pre_hook(self._before_update)
            optimizer.register_step_post_hook(self._after_update)
        self.open_passage(table.device())
        env = self.environment
        self.snapshots = Snapshots(
            job=env.job, rank=env.rank, world_size=env.world_size, secret=env.secret, table=table, channel=self.channel,
            store=lambda: (self.generation, self._store_at),
        )  # fmt: skip
        if env.slots and self._libraries == {"cpu": "gloo"}:
            self._replicas = Replicas(env)
            self.sentinel = Sentinel(
                job=env.job, rank=env.rank, slots=env.slots, table=table, channel=self.channel, replicas=self._replicas,
                step_s=lambda: self.times.usual_step_s, leave=_leave,
            )  # fmt: skip
            groups_module.sentinel = self.sentinel

    @property
    def passage(self) -> Passage | None:
        return self.device.passage

    def open_passage(self, device: torch.device) -> Passage | None:
        """Become a member at the gate of our device. None where there is no gate."""
        return self.device.open(device, self.table, self.is_twin)

    def save_point(self, step: int) -> None:
        self.device.save_point(step, self.times.last_step_s, self.table)

    def _begin_turns(self, attempt: Attempt, step: int) -> None:
        self.device.begin_turns(attempt.terms.generation, step, self._store_at)

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._is_updating = True
        guard, leader = self._guard, self._leader  # an `abandon` may take them away meanwhile
        if guard:
            guard.before_update()
        if leader:
            leader.before(optimizer)
        if self.snapshots:
            self.snapshots.before_update()
        if self.sentinel and not self.is_twin:
            self.sentinel.before_update()
        self.times.before_update()

    def _after_update(self, *_: Any) -> None:
        self.optimizer_steps += 1
        leader = self._leader
        if leader:
            leader.after()
        self._is_updating = False

    def say_ready(self, signature: str, why_not: str) -> None:
        assert self.table
        self.channel.tell(
            type="ready",
            signature=signature,
            state_bytes=self.table.state_bytes(),
            private_bytes=self.table.private_bytes(),
            movable=not why_not,
            why_not=why_not,
        )

    def stay(self, signature: str, why_not: str) -> None:
        """The script has begun a second loop: from here on its position is not ours, so it cannot move any more."""
        self.say_ready(signature, why_not)
        attempt = self._attempt
        if attempt and attempt.is_connected:
            attempt.agreement.roll_back(f"rank {self.environment.rank}: {why_not}")  # nobody shall wait for us
            step = int(self._switch_word[0])
            self.channel.tell(type="rolled_back", generation=attempt.terms.generation, step=step, reason=why_not)
        self._drop_guard()  # no save point of ours comes any more

    # ------------------------------------------------------------ every step

    def begin(self, step: int, total: int | None) -> None:
        """The loop starts (or goes on after a move) with `step` steps finished."""
        self.page.set("steps_total", -1 if total is None else total)
        self._step_word[0] = step
        self.times.begin(step)
        if self._replicas:
            self._replicas.join(self.generation, self._store_at)

    def after_step(self, step: int) -> bool:
        """The save point after `step` finished steps. True if a switch is near: then call `at_switch`."""
        self._step_word[0] = step  # before the load below: the agent relies on this order (page.py)
        self.times.after_step(self.device.passage, self.values)
        self._unmute()
        return self._guard is not None or self._switch_word[0] >= step

    def end_loop(self) -> None:
        """No save point comes any more: a switch that was just made is final for us, one that is near will not be made."""
        if self.passage:
            self.passage.lend()
        if self.sentinel:
            self.sentinel.end_loop()
        guard = self._guard
        if guard:
            guard.settle()
            self._drop_guard()
        self._unmute()

    def _unmute(self) -> None:
        if self._is_muted:
            self._is_muted = False
            _speak(self.environment.log)

    # ------------------------------------------------------------ switches

    def _on_message(self, message: dict[str, Any]) -> None:
        """From the agent, on the channel's thread."""
        if message["type"] in ("guard", "connect"):
            begin = self._begin_guard if message["type"] == "guard" else self._begin_attempt
            threading.Thread(target=begin, args=(read_terms(message),), name="restow-connect", daemon=True).start()
        elif message["type"] == "where":
            self.channel.say(type="where", **whereabouts())
        elif message["type"] == "snapshot":
            if self.snapshots and not self.is_twin and message["generation"] == self.generation:
                self.snapshots.ask(int(message["step"]), Path(message["folder"]))
        elif message["type"] in ("halt", "keep", "let_go"):
            self._on_loss(message)
        elif message["type"] == "abandon":
            self._abandon(int(message["generation"]))

    def _on_loss(self, message: dict[str, Any]) -> None:
        """Another rank of the gang was lost, or (let_go) the job ends."""
        sentinel = self.sentinel
        if sentinel is None or self.is_twin:
            return
        does = {"halt": sentinel.halt, "let_go": sentinel.let_go, "keep": lambda: sentinel.keep(message)}[message["type"]]
        threading.Thread(target=does, name="restow-loss", daemon=True).start()

    def _role_in(self, terms: Terms) -> Role:
        if self.is_twin:
            return Role.ARRIVING
        if not terms.then:
            return Role.SUSPENDING
        return Role.LEAVING if self.environment.rank in terms.moved else Role.STAYING

    def _begin_guard(self, terms: Terms) -> None:
        """A switch is being prepared: keep what it takes to do a step again."""
        try:
            self._attempt_for(terms)
        except AttemptFailed as failure:
            self.channel.tell(type="failed", generation=terms.generation, reason=str(failure))

    def _begin_attempt(self, terms: Terms) -> None:
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
            if self._guard:
                self._guard.give_up(str(failure))
            self.channel.tell(type="failed", generation=terms.generation, reason=str(failure))
            return
        with self._attempt_changed:
            self._attempt_changed.notify_all()
        self.channel.tell(type="connected", generation=terms.generation)

    def _attempt_for(self, terms: Terms) -> Attempt | None:
        """The attempt at this generation, opened, and guarded where we are an old rank; None if it comes too late or too early.
        Raises AttemptFailed."""
        with self._opening:
            with self._attempt_changed:
                present = self._attempt
                if terms.generation <= self.generation and not self.is_twin:
                    return None  # late: we are there, or further
                if terms.present != self.generation and not self.is_twin:
                    return None  # we were left behind, on a node that was lost: this is no business of ours
                if present and present.terms.generation >= terms.generation:
                    return present if present.terms.generation == terms.generation else None
                if self.table is None:
                    raise AttemptFailed("the script has not reached job.steps yet")
                env = self.environment
                attempt = Attempt(
                    terms,
                    role=self._role_in(terms),
                    job=env.job,
                    rank=env.rank,
                    address=env.address,
                    secret=env.secret,
                    table=self.table,
                    libraries=self._libraries,
                )
                self._attempt = attempt
            if present:
                present.close()
            if attempt.role is Role.SUSPENDING:
                return attempt  # nobody reads from us, and no step will have to be done again
            attempt.open()
            if attempt.role is not Role.ARRIVING:
                guard = self._make_guard(attempt)
                with self._attempt_changed:
                    if self._attempt is attempt:
                        self._guard = guard
            return attempt

    def _make_guard(self, attempt: Attempt) -> Guard:
        assert self.table
        return Guard(
            attempt, self.table, groups, on_finished=self._conclude, on_moved=self._on_moved, on_back=self._on_back,
        )  # fmt: skip

    def park(self) -> None:
        """A twin has rehearsed: whatever its first step allocates shall be memory that was touched before."""
        assert self.table
        if self._libraries == {"cpu": "gloo"}:
            ahead_bytes = self.table.parameter_bytes() + SPARE_BYTES
            if keep_touched_memory(kept_bytes=max(KEPT_BYTES, 2 * ahead_bytes)):
                touch_ahead(ahead_bytes)

    def _open_shadow(self, attempt: Attempt) -> None:
        """A twin follows the lowest staying rank of its node; that one leads. Raises AttemptFailed."""
        assert self.table
        env = self.environment
        try:
            if attempt.role is Role.ARRIVING:
                attempt.shadow = Shadow(attempt, self.table, env, lambda: self._say_shadowing(attempt))
            elif attempt.role is Role.STAYING and followers_of(attempt.terms.now, attempt.terms.then, env.rank):
                self._leader = attempt.leader = Leader(attempt, self.table, env, lambda: self.optimizer_steps)
                if not self._is_updating:  # looked at last: the update that begins now tells our leader
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
        self.channel.tell(type="shadowing", generation=attempt.terms.generation)

    def _abandon(self, generation: int) -> None:
        with self._attempt_changed:
            attempt = self._attempt
            if attempt is None or attempt.terms.generation != generation:
                if self.is_twin and self.generation == generation:
                    _leave()
                return
            if self.is_twin:
                _leave()
            if self._guard and not self._guard.abandon("given up by the controller"):
                return
            self._attempt = self._guard = None
            self._attempt_changed.notify_all()
        self._close_shadow(attempt)
        self._close_later(attempt)

    def at_switch(self, step: int, capture: Callable[[], bytes]) -> None:
        """A switch is near. Mind the guard; announce a proposed step to the twin, or, at it, take part; returns when training
        may go on.

        A leaver whose rank now lives elsewhere does not return.
        """
        self._mind_guard(step, capture)
        proposed = self._switch_word[0]
        attempt = self._attempt
        if attempt is None or not attempt.is_connected or proposed < step:
            return
        if attempt.terms.generation != self.page.get("switch_generation"):
            return  # abandoned meanwhile: the others find `abort`, or roll back without us
        if (attempt.terms.generation, proposed) != self._announced:  # at the step itself too: it may have come just now
            self._announced = (attempt.terms.generation, proposed)
            attempt.announce(proposed)
        if proposed != step:
            return
        began_s = time.perf_counter()
        guard = self._guard
        with attempt.busy:  # an `abandon` may come meanwhile
            report = attempt.begin(step, groups, capture)
            if report.outcome is not Outcome.ABORTED:
                self.device.void_turns()
            trains_on = report.outcome is None and attempt.role is Role.STAYING and guard is not None and guard.can_save
            if report.outcome is None and not trains_on:
                attempt.finish(groups, report)
        report.paused_s = time.perf_counter() - began_s
        if trains_on:
            assert guard
            self.times.forget()
            guard.finish_later(report)
        elif report.outcome is Outcome.TROUBLE and guard and guard.can_save:
            guard.trouble()
        else:
            self._conclude(attempt, step, report)
            self.times.forget()

    def _conclude(self, attempt: Attempt, step: int, report: Report) -> None:
        """A switch at `step` came to this; on the guard's thread where the training went on meanwhile. A leaver that is not
        needed any more does not return."""
        generation = attempt.terms.generation
        if report.outcome is Outcome.ABORTED:  # the attempt stays: a later step may be proposed
            if self.device.turns_are_void:
                self._begin_turns(attempt, step)
            self.channel.tell(type="rolled_back", generation=generation, step=step, reason=report.reason)
            return
        if report.outcome is Outcome.TROUBLE:  # and no guard that could save it
            report.reason = attempt.agreement.roll_back("a leaver was lost").removeprefix("rollback ")
        self._forget_attempt(attempt)
        if report.outcome is Outcome.DONE and attempt.role is Role.SUSPENDING:
            self._suspended(attempt, step, report)
        if report.outcome is Outcome.DONE:
            if attempt.role is not Role.LEAVING:
                if self._guard:
                    self._guard.switched(step)
                self._become(attempt, step, report.paused_s, report)
                return
            report.reason = attempt.agreement.await_retirement()
            if not report.reason:
                self.channel.tell(type="retired", generation=generation)
                _leave()
        self._drop_guard()
        self._begin_turns(attempt, step)
        self.channel.tell(type="rolled_back", generation=generation, step=step, reason=report.reason)
        self._close_later(attempt)

    def _suspended(self, attempt: Attempt, step: int, report: Report) -> NoReturn:
        """Everybody's state is in the vault: this process is not needed any more."""
        said: dict[str, Any] = {"generation": attempt.terms.generation, "step": step, "bytes": report.kept_bytes}
        said |= {"pause_s": report.paused_s, "phases": report.phases}
        path = Path(attempt.terms.vault) / f"{vault.of_rank(self.environment.rank)}.left"
        path.write_text(json.dumps(said))  # in case that no agent hears us
        self.channel.tell(type="kept", **said)
        _leave()

    def _forget_attempt(self, attempt: Attempt) -> None:
        with self._attempt_changed:
            if self._attempt is attempt:
                self._attempt = None
        self._close_shadow(attempt)

    def _mind_guard(self, step: int, capture: Callable[[], bytes]) -> None:
        guard = self._guard
        if guard is None:
            return
        guard.at_save_point(step, capture)
        if guard.is_over():
            self._drop_guard()
            self._close_later(guard.attempt)

    def _drop_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard:
            guard.close()

    def _on_moved(self, attempt: Attempt, step: int, report: Report) -> None:
        """A lost leaver's rank was taken over by its twin, in the middle of a step of ours."""
        self._forget_attempt(attempt)
        if attempt.role is Role.LEAVING:
            self.channel.tell(type="retired", generation=attempt.terms.generation)
            _leave()
        self._become(attempt, step, sum(s for _, s in report.phases), report)
        self.times.forget()

    def _on_back(self, attempt: Attempt, step: int, reason: str) -> None:
        """A twin was lost in the first step of its generation: the one before goes on, from the switch step."""
        if attempt.role is Role.ARRIVING:
            _leave()
        self.generation, self._store_at = self._left_generation, self._store_before
        self._begin_turns(attempt, step)
        self.page.set("generation", self.generation)
        self.channel.change_hello(generation=self.generation)
        self.channel.tell(type="rolled_back", generation=attempt.terms.generation, step=step, reason=reason)

    def arrive(self, on_upcoming: Callable[[int], None]) -> dict[str, Any]:
        """The twin's side: park until the gang has switched; returns what the leaver handed over (`step` among it).

        `on_upcoming(step)` is called when a switch step is known, so that data can be fetched ahead. Does not return if the
        switch does not happen.
        """
        with self._attempt_changed:
            while not (self._attempt and self._attempt.is_connected):
                self._attempt_changed.wait()
            attempt = self._attempt
        comes_back = bool(attempt.terms.kept)
        guard = None if comes_back else self._make_guard(attempt)  # from the vault nobody can go back to an old generation
        upcoming = attempt.terms.kept_step if comes_back else attempt.agreement.await_announcement()
        if upcoming < 0:
            _leave()
        on_upcoming(upcoming)
        report = attempt.take_part(-1, groups, lambda: b"")
        if report.outcome is Outcome.TROUBLE:
            report = attempt.take_over(groups)
        if report.outcome is not Outcome.DONE:
            if comes_back:
                self.channel.tell(type="failed", generation=attempt.terms.generation, reason=report.reason)
            _leave()
        step = int(report.extra["step"])
        pause_s = max(0.0, time.time() - float(report.extra["left_at_s"]))
        if comes_back and not attempt.is_resized:
            pause_s = sum(seconds for _, seconds in report.phases)  # what came before is no pause: nobody wanted it to train
        self.optimizer_steps = int(report.extra["optimizer_steps"])
        self._step_word[0] = step
        self.is_twin = False
        self.channel.change_hello(role="rank")
        self.device.open_link()
        self._is_muted = report.is_muted
        if not self._is_muted:
            _speak(self.environment.log)
        if guard:
            self._guard = guard
            guard.switched(step)
            guard.arm(step)
        self._become(attempt, step, pause_s, report)
        self.times.forget()
        report.extra["is_new_rank"] = attempt.is_new_rank
        return report.extra

    def _become(self, attempt: Attempt, step: int, pause_s: float, report: Report) -> None:
        generation = attempt.terms.generation
        self._store_before, self._store_at = self._store_at, attempt.terms.store
        self._left_generation, self.generation = self.generation, generation
        self._begin_turns(attempt, step)
        if self._replicas and attempt.role is not Role.ARRIVING:  # who arrives joins as it begins its loop
            self._replicas.join(generation, self._store_at)
        self.page.set("generation", generation)
        self.channel.change_hello(generation=generation)
        self.channel.tell(
            type="switched",
            generation=generation,
            step=step,
            pause_s=pause_s,
            wire_bytes=report.wire_bytes,
            phases=report.phases,
        )

    def _close_later(self, attempt: Attempt) -> None:
        """Old communicators, ports and the shadow's memory are taken down beside the training, not in its way."""
        threading.Thread(target=attempt.close, name="restow-close", daemon=True).start()


def _leave() -> NoReturn:
    """End this process now: its rank lives elsewhere, or the twin is not needed. The script's own clean-up must not run:
    it would save, log or destroy what now belongs to another process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _speak(log: str) -> None:
    """From now on what the script prints is the rank's: the rehearsal's file is left."""
    sys.stdout.flush()
    sys.stderr.flush()
    if not log:
        return
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def no_table() -> ScriptError:
    return ScriptError(
        "job.steps was called before job.prepare; call model, optimizer = job.prepare(model, optimizer) first"
    )
