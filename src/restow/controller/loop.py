"""The controller: one task that owns the state, and the only place where events become decisions and commands.

    inbox → journal → observe → (rate-limited) decide → adopt, journalled first → commands → agents → followers

Everything that changes the state goes through `take`, so there is no lock and the journal's order is the state's order.
Does not know sockets (rpc.py), processes (daemon.py) or how nodes are reached (agents.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from restow.cluster import Snapshot
from restow.controller.agents import Agents
from restow.controller.deciding import Deciding
from restow.controller.journal import Journal
from restow.controller.measure import Measurer
from restow.core import comparison
from restow.core.state import ClusterState
from restow.engine.base import Engine
from restow.errors import IllegalTransition
from restow.job import JobState
from restow.messages import Event, MoveMeasured, MovePredicted, PolicyFailed, Progressed, SharingMeasured
from restow.placement import Schedule
from restow.policies.base import Policy
from restow.policies.pairs import Pairs

log = logging.getLogger(__name__)

PAIRS_KEPT = 1000  # measured pairs that `explain` can tell of


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    decide_s_min: float = 0.2  # between two decisions; events come in bursts
    decide_s_max: float = 2.0  # a decision at least so often: predictions change with what is measured
    tick_s: float = 0.25  # how often time-outs are looked at
    keep_progress_s: float = 3.0  # how often the last progress goes to the journal
    silence_s: float = 15.0  # without any answer, before a node counts as lost


class Controller:
    """`await run()` until cancelled; everything else may be called meanwhile from tasks of the same event loop."""

    def __init__(
        self, *, state: ClusterState, policy: Policy, journal: Journal, engine: Engine,
        config: LoopConfig = LoopConfig(), now: Callable[[], float] = time.time,
    ):  # fmt: skip
        self.state = state
        self.deciding = Deciding(policy)
        self.journal = journal
        self.config = config
        self.now = now
        self.measurer = Measurer()
        self.pairs = Pairs()
        self.measured_pairs: deque[SharingMeasured] = deque(maxlen=PAIRS_KEPT)
        self.progress: dict[str, dict[int, Progressed]] = {}  # job → rank → last word
        self.agents = Agents(engine, take=self.take, compare=self._compare, silence_s=config.silence_s)
        self.last_schedule = Schedule()
        self._inbox: asyncio.Queue[tuple[Sequence[Event], asyncio.Future[None]]] = asyncio.Queue()
        self._changed = asyncio.Event()  # set at every journalled event, then replaced
        self._unkept: dict[tuple[str, int], Progressed] = {}
        self._kept_s = self._decided_s = 0.0
        self._undecided = True  # something happened that no decision has seen
        self._replay()

    async def take(self, events: Sequence[Event]) -> None:
        """Journal and observe; returns when both are done and the commands that follow are on their way."""
        if events:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._inbox.put_nowait((events, done))
            await done

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next journalled event or adopted schedule. Take it before you look, wait on it after."""
        return self._changed

    async def run(self) -> None:
        """Own the state until cancelled. An error here is a bug: it ends the daemon, the journal brings us back."""
        alive = [node.name for node in self.state.snapshot(self.now()).nodes if node.is_alive]
        async with asyncio.TaskGroup() as group:
            group.create_task(self.agents.run(expected=alive))
            group.create_task(self._turns())

    # -------------------------------------------------------- one turn

    async def _turns(self) -> None:
        while True:
            batches = await self._next_batches()
            self._observe([event for events, _ in batches for event in events])
            self._observe(self.state.tick(self.now()))
            self._observe(list(self.pairs.observe(self.state.active_jobs, self.now())))
            self._decide()
            self._send()
            for _, done in batches:
                if not done.done():
                    done.set_result(None)

    async def _next_batches(self) -> list[tuple[Sequence[Event], asyncio.Future[None]]]:
        try:
            async with asyncio.timeout(self.config.tick_s):  # not wait_for: in 3.11 it can swallow a cancellation
                batches = [await self._inbox.get()]
        except TimeoutError:
            return []
        while not self._inbox.empty():
            batches.append(self._inbox.get_nowait())
        return batches

    def _observe(self, events: Sequence[Event]) -> None:
        self.journal.append([event for event in events if not isinstance(event, Progressed)])
        measured: list[MoveMeasured] = []
        for event in events:
            measured += self._apply(event)
        self.journal.append(measured)
        for event in measured:
            self._apply(event)
        if any(not isinstance(event, Progressed) for event in events) or measured:
            self._undecided = True
            self._wake()
        if self._unkept and self.now() - self._kept_s >= self.config.keep_progress_s:
            self.keep_progress()

    def _apply(self, event: Event) -> list[MoveMeasured]:
        """Into the state and the measurer; returns what is now measured, not yet journalled."""
        measured = list(self.measurer.observe(event))
        if isinstance(event, Progressed):
            self.progress.setdefault(event.job, {})[event.rank] = event
            self._unkept[event.job, event.rank] = event
        if isinstance(event, SharingMeasured):
            self.measured_pairs.append(event)
        if not isinstance(event, (MovePredicted, MoveMeasured, PolicyFailed)):
            self.state.observe(event)
        for job in [self.state.records[id].job for id in self.state.touched]:
            if job.switch and job.switch.placement:
                self.measurer.expect(job.id, job.switch.generation, job.placement, job.switch.placement)
            elif job.kept and self.measurer.is_resize(job.id, job.kept.placement, job.placement):
                self.measurer.expect(job.id, job.generation, job.kept.placement, job.placement)
        return measured

    def _decide(self) -> None:
        now_s = self.now()
        wait_s = self.config.decide_s_min if self._undecided else self.config.decide_s_max
        if now_s - self._decided_s >= wait_s:
            self.decide(now_s)

    def decide(self, now_s: float) -> Schedule:
        """Ask the policy and adopt its answer, if it differs from what was adopted."""
        self._decided_s = now_s
        self._undecided = False
        snapshot, known = self.state.snapshot(now_s), self.deciding.failure
        schedule = self.deciding.decide(snapshot)
        try:
            adopted = self.state.adoption(schedule, now_s) if _differs(snapshot, schedule) else None
        except IllegalTransition as error:
            schedule = self.deciding.failed(f"it breaks a rule: {error}", snapshot)
            adopted = self.state.adoption(schedule, now_s) if _differs(snapshot, schedule) else None
        self.last_schedule = schedule
        if self.deciding.failure not in ("", known):
            self._observe([PolicyFailed(time_s=now_s, reason=self.deciding.failure)])
        if adopted:
            predicted = [MovePredicted(time_s=now_s, move=move) for move in schedule.moves.values()]
            self._observe([*predicted, adopted])
            self._undecided = False
        return schedule

    def _send(self) -> None:
        for node, command in self.state.commands():
            self.agents.send(node, command)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # -------------------------------------------------------- after being away

    def _replay(self) -> None:
        for _, event in self.journal.events():
            self._apply(event)
        for progress in self.journal.progress():
            self._apply(progress)
        self._unkept.clear()

    async def _compare(self, status: dict[str, Any], is_new: bool, was_lost: bool) -> None:
        if is_new:  # what the agent's former life was told may not have been done
            self.state.ask_again(status["node"])
        events, commands = comparison.compare(self.state.jobs, status, self.now(), was_lost=was_lost)
        for event in events:
            log.warning("%s: %s", status["node"], event)
        await self.take(events)
        for command in commands:
            log.warning("%s: ended, since it should not run: %s", status["node"], command)
            self.agents.send(status["node"], command)

    def keep_progress(self) -> None:
        self.journal.keep_progress(self._unkept.values())
        self._unkept.clear()
        self._kept_s = self.now()


def _differs(snapshot: Snapshot, schedule: Schedule) -> bool:
    """Would adopting change where a job should be, or why a pending one waits?

    Reasons of running jobs hold figures that change all the time; `last_schedule` has them for whoever asks.
    """
    return any(
        job.intended != (schedule.placement(job.id) or ())
        or job.sharing != schedule.sharing.get(job.id)
        or (job.state is JobState.PENDING and schedule.reasons.get(job.id, job.reason) != job.reason)
        for job in snapshot.jobs
    )
