"""A cluster in virtual time: the driver that gives a trace to the very same core and policies as the live controller does.

    clock → reports → state.observe → state.tick → (when something happened, or a round is over) policy.decide → state.adopt
          → state.commands → agents → clock

Decisions are made once for each moment at which something happened, or at the ends of rounds only. Everything is a function of the
rows, the machines, the world and the policy: the same run twice gives the same events.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from restow.cluster import Node
from restow.core.config import CoreConfig
from restow.core.state import ClusterState
from restow.errors import IllegalTransition, Refused, TraceError
from restow.faults import place_of, words_of
from restow.job import Demand, JobSpec, JobState
from restow.messages import (
    CheckpointAsked,
    CheckpointProposed,
    CheckpointWritten,
    Event,
    JobSubmitted,
    Progressed,
    SnapshotRefused,
)
from restow.perf import move_cost
from restow.placement import Placement, Schedule
from restow.policies.base import Policy
from restow.policies.pairs import Pairs
from restow.sim.beginning import joining, schedules, submissions
from restow.sim.clock import Clock
from restow.sim.delays import Delays
from restow.sim.forecast import Believed
from restow.sim.losses import TRIES_MAX, LossConfig, Losses
from restow.sim.machines import Machines
from restow.sim.outcome import Decisions, Outcome, outcome_of
from restow.sim.phases import whole_s
from restow.sim.recorder import Recorder
from restow.sim.rows import Row
from restow.sim.stragglers import StragglerConfig, Stragglers
from restow.sim.survivors import Survivors
from restow.sim.troubles import Trouble
from restow.sim.world import World

COMMAND = ("simulated",)
QUIET = (Progressed, CheckpointAsked, CheckpointProposed, SnapshotRefused, CheckpointWritten)  # nobody is to be elsewhere for these
TURNS_MAX = 10_000  # at one moment; more is a state that never becomes quiet


@dataclass(frozen=True, slots=True, kw_only=True)
class SimConfig:
    round_s: float = 0.0  # between two decisions; 0: whenever something happened
    look_s: float = 0.0  # a decision at least so often while jobs are there; 0: only when something happened
    report_s: float = 0.0  # how often each gang says how far it is; 0: only when its speed changes
    knows_total: bool = True  # do jobs say how many steps they will make?
    delays: Delays = field(default_factory=Delays)
    error: float = 0.0  # policies believe speeds that are wrong by up to this part
    losses: LossConfig = field(default_factory=LossConfig)
    stragglers: StragglerConfig = field(default_factory=StragglerConfig)
    seed: int = 0  # of the errors, the losses and the stragglers
    begins_s: float = 0.0  # when a simulation of a live cluster's snapshot begins, see standing.py


class Simulation:
    """One run. Raises TraceError for a job that the world does not know or that is larger than the cluster. `recorder`: is shown
    everything that happens."""

    def __init__(
        self, rows: Sequence[Row], machines: Machines, world: World, policy: Policy, config: SimConfig | None = None,
        recorder: Recorder | None = None,
    ):  # fmt: skip
        self.config = config or SimConfig()
        self.policy = policy
        self.clock = Clock(self.config.begins_s)
        self.state = ClusterState("simulated", _patience(self.config.delays))
        self.nodes: dict[str, Node] = {node.name: node for node in machines.nodes}
        self.events = 0
        self.decisions = Decisions()
        self._recorder = recorder
        self._rows = {row.id: row for row in rows}
        self._machines, self._world = machines, world
        self._pairs = Pairs()
        self.stragglers = Stragglers(self.config.stragglers, self.config.seed, self.nodes, self.clock)
        self.agents = Survivors(
            self.nodes, world, self.clock, self.config.delays, knows_total=self.config.knows_total, downtime_s=self._downtime_s,
            stragglers=self.stragglers, checkpoint_s=self.config.losses.checkpoint_s,
            report_s=self.config.report_s,
        )  # fmt: skip
        self.losses = Losses(
            self.config.losses, self.config.seed, self.nodes, self.clock, self.agents, self.state, look=self._look
        )
        largest = max(rows, key=lambda row: row.workers, default=None)
        if largest is None:
            raise TraceError("the trace holds no jobs")
        if largest.workers > machines.devices and not (largest.past and largest.past.placement):
            raise TraceError(
                f"job {largest.id} wants {largest.workers} devices, the cluster has {machines.devices}; give a larger one"
            )
        for row in rows:
            self.agents.add(row)
            if not row.past or row.submitted_s > self.config.begins_s:
                self.clock.at(row.submitted_s, lambda row=row: self._submit(row))  # type: ignore[misc]
        self.forecast = Believed(world, self._row_now, self.nodes, error=self.config.error, seed=self.config.seed)
        self._check_kinds(rows)
        self._is_undecided = False
        self._decide_at_s = 0.0
        self._planned_s = -1.0

    def _check_kinds(self, rows: Sequence[Row]) -> None:
        """Every job can run somewhere, if it has the place to itself."""
        seen: set[tuple[str, int]] = set()
        for row in rows:
            if (row.model or row.id, row.workers) in seen:
                continue
            seen.add((row.model or row.id, row.workers))
            places = self._places(row)
            if all(math.isinf(self._world.step_s(row, place, self.nodes)) for place in places):
                kinds = ", ".join(sorted({device.kind for node in self._machines.nodes for device in node.devices}))
                known = f"; the table has {', '.join(found)}" if (found := getattr(self._world, "kinds", None)) else ""
                what = f"job {row.id} ({row.model or 'no model'}, {row.workers} workers)"
                raise TraceError(f"{what} is not known to run on any kind of this cluster ({kinds}){known}")

    def _places(self, row: Row) -> list[Placement]:
        """One of each kind, and where it stands."""
        return self.forecast.places(row.workers) + ([row.past.placement] if row.past and row.past.placement else [])

    def _submit(self, row: Row) -> None:
        if row.past:
            spec = self.config.losses.borne(row.past.spec)
            self.agents.reports.append(JobSubmitted(time_s=self.clock.now_s, job=row.id, spec=spec))
            return
        steps = math.ceil(self.agents.gangs[row.id].phase.steps_total) if self.config.knows_total else 0
        deadline_s = row.deadline_s - row.submitted_s if math.isfinite(row.deadline_s) else 0.0
        least, most = row.elastic
        spec = JobSpec(
            command=COMMAND, name=row.model, workers=min(most, self._machines.devices) or row.workers, workers_min=least,
            adapts_batch=most > 0, priority=row.priority, max_pause_s=1e9, steps=steps, recover=False,
            demand=Demand(share=row.share, cores=row.cores, host_bytes=row.host_bytes),
            deadline_s=deadline_s, tenant=row.tenant,
        )  # fmt: skip
        spec = self.config.stragglers.borne(self.config.losses.borne(spec))
        self.agents.reports.append(JobSubmitted(time_s=self.clock.now_s, job=row.id, spec=spec))

    def _downtime_s(self, job: str, now: Placement, then: Placement) -> float:
        return move_cost(self.state.records[job].job, now, then, self.state.snapshot(self.clock.now_s)).downtime_s

    # ------------------------------------------------------------ running

    def run(self, on_progress: Callable[[int, float], None] | None = None) -> Outcome:
        """Until every job has ended. `on_progress(jobs that ended, virtual seconds)` now and then. Raises Refused when nothing can
        happen any more although jobs wait, when a job fails, or the policy breaks a rule."""
        began_s = time.perf_counter()
        self.run_until(math.inf, on_progress)
        waiting = [self.state.records[id].job for id in self.state.active_ids]
        if waiting:
            job = waiting[0]
            raise Refused(
                f"the policy leaves {len(waiting)} jobs waiting for ever, first {job.id} ({job.workers} devices): "
                f"{job.reason or 'it gave no reason'}"
            )
        failed = [record.job for record in self.state.records.values() if record.job.state is JobState.FAILED]
        if failed:
            raise Refused(f"job {failed[0].id} never comes to its end: {failed[0].reason}")
        wall_s = time.perf_counter() - began_s
        outcome = outcome_of(
            self.state, self._rows, self._machines, self._alone_s, self.decisions, self.events, wall_s, self.config.begins_s
        )
        return replace(
            outcome, failures=len(self.losses.outages), stragglers=len(self.stragglers.spells), lost_steps=self.agents.lost_steps,
            lost_device_s=self.agents.lost_device_s,
        )

    @property
    def troubles(self) -> list[Trouble]:
        """Of machines and devices, so far."""
        return [*self.losses.outages, *self.stragglers.spells]

    def _alone_s(self, job: str) -> float:
        row = self._rows[job]
        return min(whole_s(self._world, row, place, self.nodes) for place in self._places(row))

    def _row_now(self, job: str) -> Row:
        return self.agents.gangs[job].row

    def run_until(self, time_s: float, on_progress: Callable[[int, float], None] | None = None) -> None:
        """Everything that happens up to this moment."""
        if not self.state.nodes:
            self._begin()
        while not self._is_over() and self.clock.next_s <= time_s:
            self.clock.advance()
            self._turn()
            self._plan_next_decision()
            if on_progress:
                on_progress(len(self.state.records) - len(self.state.active_ids), self.clock.now_s)

    def _is_over(self) -> bool:
        """Nothing will happen by itself, and nobody waits for a moment that was named."""
        if self.clock.is_empty:
            later = [s for id in self.state.active_ids if (s := self.state.records[id].job.not_before_s) > self.clock.now_s]
            if later:
                self.clock.at(min(later), self._look)
        return self.clock.is_empty

    def _begin(self) -> None:
        self.losses.begin()
        self.stragglers.begin(self.agents.pace_on)
        for event in (*joining(self._machines), *submissions(self._rows.values(), self.config.begins_s, self.config.losses.borne)):
            self._observe(event)
        for time_s, schedule in schedules(self._rows.values(), self.config.begins_s):
            try:
                adopted = self.state.adoption(schedule, time_s)
            except IllegalTransition as error:
                raise TraceError(f"jobs cannot stand as the snapshot has it: {error}") from None
            assert adopted
            self._observe(adopted)
        if self.state.records:
            self.clock.at(self.config.begins_s, self._look)

    def _turn(self) -> None:
        """All that happens at this moment, until nothing does any more."""
        for _ in range(TURNS_MAX):
            reports, self.agents.reports = self.agents.reports, []
            for event in reports:
                self._observe(event)
            due = self.state.tick(self.clock.now_s)
            if self.agents.is_shared:
                due += self._pairs.observe(self.state.active_jobs, self.clock.now_s)
            for event in due:
                self._observe(event)
            commands = self.state.commands()
            for node, command in commands:
                self.agents.tell(node, command)
            if reports or due or commands:
                continue
            if not self._is_due():
                return
            if not self._decide():
                return
        raise Refused(f"at {self.clock.now_s:.0f} s the cluster does not become quiet: the policy changes its mind again and again")

    def _observe(self, event: Event) -> None:
        self.events += 1
        if not isinstance(event, QUIET):
            self._is_undecided = True
        self.state.observe(event)
        if self._recorder:
            self._recorder.observe(event, self.state)

    # ------------------------------------------------------------ deciding

    def _is_due(self) -> bool:
        return self._is_undecided and (not self.config.round_s or self.clock.now_s >= self._decide_at_s)

    def _decide(self) -> bool:
        """Ask the policy; true if its answer changes anything."""
        self._is_undecided = False
        now_s, config = self.clock.now_s, self.config
        if config.round_s:
            self._decide_at_s = (now_s // config.round_s + 1) * config.round_s
        snapshot = replace(self.state.snapshot(now_s), forecast=self.forecast)
        began_s = time.perf_counter()
        try:
            schedule: Any = self.policy.decide(snapshot)
        except (Exception, SystemExit) as error:  # a policy of the user's own may be wrong in any way
            raise Refused(f"at {now_s:.0f} s the policy raised {words_of(error)} ({place_of(error)})") from error
        if not isinstance(schedule, Schedule):
            what = type(schedule).__name__
            raise Refused(f"at {now_s:.0f} s the policy answered with a {what}; decide(snapshot) returns a Schedule")
        self.decisions.add(time.perf_counter() - began_s, len(snapshot.jobs))
        try:
            adopted = self.state.adoption(schedule, now_s)
        except IllegalTransition as error:
            raise Refused(f"at {now_s:.0f} s the policy breaks a rule: {error}") from None
        if adopted:
            self._observe(adopted)
            self._is_undecided = False
        return adopted is not None

    def _plan_next_decision(self) -> None:
        """While jobs are there, the clock goes on also when nothing happens by itself."""
        step_s = self.config.round_s or self.config.look_s
        if not step_s or not self.state.active_ids:
            return
        at_s = (self.clock.now_s // step_s + 1) * step_s
        if at_s > self._planned_s:
            self._planned_s = at_s
            self.clock.at(at_s, self._look)

    def _look(self) -> None:
        self._is_undecided = True


def _patience(delays: Delays) -> CoreConfig:
    """The core gives nobody up who only takes as long as is simulated."""
    usual = CoreConfig()
    return CoreConfig(
        start_s=max(usual.start_s, 2 * delays.start_s),
        standby_s=max(usual.standby_s, 2 * delays.resume_s, 2 * delays.standby_s),
        keep_s=max(usual.keep_s, 2 * delays.suspend_s), losses_max=TRIES_MAX,
    )  # fmt: skip
