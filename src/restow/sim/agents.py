"""All nodes of a simulated cluster: agents that obey commands, and gangs that train, in virtual time.

They say what real agents and ranks would say, in the same order, so that core/ cannot tell. How fast a gang is says the world; how
long a start, a move, a suspension and a return take says `Delays`. A gang is told of only by its rank 0 while it trains, and only
when its speed changes, if reports are not asked for: `Job.steps_by` knows the steps in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from restow.cluster import Node
from restow.job import Profile, Sharing
from restow.messages import (
    Abandon,
    Command,
    Connect,
    Decide,
    Event,
    Launch,
    OpenStore,
    Prepare,
    Progressed,
    Propose,
    RankConnected,
    RankExited,
    RankKept,
    RankReady,
    RankStarted,
    RankSwitched,
    ShadowReady,
    Share,
    StepAccepted,
    StepRefused,
    Stop,
    StoreOpened,
    TwinParked,
)
from restow.placement import Placement, moved_ranks
from restow.sim.clock import Clock
from restow.sim.phases import Phase, phases_of
from restow.sim.rows import Row
from restow.sim.world import Gated, Measured, World

STORE_PORT = 4000
NOTHING = Profile()  # is measured of jobs in a world of step times


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """Seconds."""

    start_s: float = 0.0  # from a launch to the first step
    standby_s: float = 0.0  # until the twins of a move have parked, while the gang trains on
    move_s: float | None = None  # that a gang stands still for a move; None: what perf.py predicts
    resume_s: float = 0.0  # from its devices to the first step, for a job that comes back
    suspend_s: float = 0.0  # from its last step until its devices are free
    end_s: float = 0.0  # the same of a job that is done


@dataclass(slots=True)
class Gang:
    """One job on the machines."""

    phases: Sequence[Phase]
    phase: Phase  # the present one
    until: float  # steps in all when it ends
    steps: float = 0.0  # made at since_s
    steps_before: float = 0.0  # made when this generation began
    since_s: float = 0.0
    step_s: float = math.inf  # infinite: it stands still
    said_step_s: float = 0.0  # what was told last
    sharing: Sharing | None = None  # what it was told of how to share its devices; counts while there are others
    generation: int = 0
    placement: Placement = ()
    placements: dict[int, Placement] = field(default_factory=dict)  # generation → where its ranks are to be; empty: nowhere
    ranks: dict[int, dict[int, str]] = field(default_factory=dict)  # generation → rank or twin that lives → its node
    version: int = 0  # of its speed: what was foreseen with another one does not happen

    @classmethod
    def of(cls, phases: Sequence[Phase]) -> Gang:
        first, *later = phases
        return cls(phases=later, phase=first, until=first.steps)

    @property
    def row(self) -> Row:
        """As which it trains now."""
        return self.phase.row

    def steps_at(self, now_s: float) -> float:
        made = (now_s - self.since_s) / self.step_s if math.isfinite(self.step_s) else 0.0
        return min(self.until, self.steps + made)

    def change(self) -> None:
        """The next phase begins."""
        self.steps = max(self.steps, self.until)
        self.phase, *self.phases = self.phases
        self.until += self.phase.steps
        self.said_step_s = 0.0


class Agents:
    """`tell` obeys; `reports` are what is said at this very moment. `downtime_s(job, now, then)`: of a move, if no delay is set.
    `report_s`: how often each gang says how far it is; 0: only when its speed changes."""

    def __init__(
        self, nodes: Mapping[str, Node], world: World, clock: Clock, delays: Delays, *,
        knows_total: bool, downtime_s: Callable[[str, Placement, Placement], float], report_s: float = 0.0,
    ):  # fmt: skip
        self.reports: list[Event] = []
        self.gangs: dict[str, Gang] = {}
        self._nodes, self._world, self._clock, self._delays = nodes, world, clock, delays
        self._knows_total, self._downtime_s, self._report_s = knows_total, downtime_s, report_s
        self.is_shared = False  # was anybody told yet how to share its devices?
        self._gated = world if isinstance(world, Gated) else None
        self._measured: Callable[[Row, Placement], Profile] = world.measured if isinstance(world, Measured) else lambda *_: NOTHING
        self._training: dict[tuple[str, int], dict[str, None]] = {}  # device → jobs that train on it
        self._obey: dict[type[Command], Callable[[str, Any], None]] = {
            OpenStore: self._open_store, Launch: self._launch, Prepare: self._prepare, Connect: self._connect,
            Propose: self._propose, Decide: self._decide, Stop: self._stop, Abandon: self._abandon, Share: self._share,
        }  # fmt: skip

    def add(self, row: Row) -> None:
        """A job that will be submitted. Raises TraceError if the world does not know it."""
        self.gangs[row.id] = Gang.of(phases_of(self._world, row))
        if row.past:
            self.gangs[row.id].steps = row.past.steps

    def tell(self, node: str, command: Command) -> None:
        """What is not here (Guard, Discard and the like) has no answer and changes nothing that could be seen."""
        if obey := self._obey.get(type(command)):
            obey(node, command)

    def _say(self, kind: type, job: str, generation: int, node: str, *, time_s: float | None = None, **rest: Any) -> None:
        time_s = self._clock.now_s if time_s is None else time_s
        self.reports.append(kind(time_s=time_s, job=job, generation=generation, node=node, **rest))

    # ------------------------------------------------------------ starting

    def _open_store(self, node: str, command: OpenStore) -> None:
        self._say(StoreOpened, command.job, command.generation, node, host=node, port=STORE_PORT)

    def _launch(self, node: str, command: Launch) -> None:
        gang = self.gangs[command.job]
        gang.placements[command.generation] = command.placement
        ranks = gang.ranks.setdefault(command.generation, {})
        for rank, slot in enumerate(command.placement):
            if slot.node == node:
                ranks[rank] = node
                since_s = gang.row.past.started_s if gang.row.past and command.generation == 1 else None
                self._say(RankStarted, command.job, command.generation, node, time_s=since_s, rank=rank, pid=1)
        if len(ranks) == len(command.placement):
            delay_s = self._start_s(gang, command.generation)
            self._soon(delay_s, lambda: self._begin(command.job, command.generation))

    def _start_s(self, gang: Gang, generation: int) -> float:
        """None for a gang that stands when the simulation begins; one that has made steps comes back."""
        past = gang.row.past
        if past and past.placement and generation == 1:
            return 0.0
        return gang.row.start_s + (self._delays.resume_s if gang.steps else self._delays.start_s)

    def _soon(self, delay_s: float, what: Callable[[], None]) -> None:
        """At once where there is no delay: nobody is told anything in between."""
        if delay_s > 0:
            self._clock.later(delay_s, what)
        else:
            what()

    def _begin(self, job: str, generation: int) -> None:
        """The first steps are made, if nobody has stopped it meanwhile."""
        ranks = self.gangs[job].ranks.get(generation, {})
        if len(ranks) == len(self.gangs[job].placements[generation]):
            for rank, node in ranks.items():
                self._say_ready(job, generation, node, rank)
            self._train(job, generation)

    def _say_ready(self, job: str, generation: int, node: str, rank: int) -> None:
        """No trace says how large a model's state is; not known is 0 here, as in a live cluster."""
        gang = self.gangs[job]
        past, known = gang.row.past, self._measured(gang.row, gang.placements[generation])
        self._say(
            RankReady, job, generation, node, rank=rank, signature="", state_bytes=known.state_bytes,
            private_bytes=known.private_bytes, movable=not past or past.is_movable, why_not=past.why_not if past else "",
        )  # fmt: skip

    def _train(self, job: str, generation: int) -> None:
        """From now on the gang makes steps as this generation."""
        gang = self.gangs[job]
        placement = gang.placements[generation]
        gang.generation, gang.placement, gang.since_s = generation, placement, self._clock.now_s
        gang.steps_before = gang.steps
        for device in devices(placement):
            self._training.setdefault(device, {})[job] = None
        self._pace([job, *self._beside(job)])
        if self._report_s:
            self._clock.later(self._report_s, lambda: self._report(job, generation))

    def _halt(self, job: str) -> None:
        """It makes no step any more; the others on its devices are faster now."""
        gang = self.gangs[job]
        if not gang.placement:
            return
        others = self._beside(job)
        gang.steps, gang.since_s = gang.steps_at(self._clock.now_s), self._clock.now_s
        for device in devices(gang.placement):
            self._training[device].pop(job, None)
        gang.placement, gang.step_s, gang.said_step_s = (), math.inf, 0.0
        gang.version += 1
        self._pace(others)

    def _beside(self, job: str) -> list[str]:
        """Who trains on its devices, too."""
        found = dict.fromkeys(other for device in devices(self.gangs[job].placement) for other in self._training.get(device, ()))
        found.pop(job, None)
        return list(found)

    def _pace(self, jobs: Iterable[str]) -> None:
        """How fast they are now, and when they will be done."""
        for job in jobs:
            gang, now_s = self.gangs[job], self._clock.now_s
            gang.steps, gang.since_s = gang.steps_at(now_s), now_s
            gang.step_s, seen_s = self._speed(job, gang)
            gang.version += 1
            if seen_s != gang.said_step_s:
                gang.said_step_s = seen_s
                if not self._report_s:
                    self._tell_progress(job, gang)
            if math.isfinite(gang.step_s):
                left_s = max(0.0, gang.until - gang.steps) * gang.step_s
                self._clock.later(left_s, lambda job=job, version=gang.version: self._end(job, version))  # type: ignore[misc]

    def _speed(self, job: str, gang: Gang) -> tuple[float, float]:
        """Seconds from step to step, and those that are measured of a step: the wait for the others' turns of a time slice is in
        none of them, and who stands still shows what it did before."""
        others = self._beside(job)
        if others and self._stands_still(gang):
            return math.inf, gang.said_step_s
        beside = [(self.gangs[id].row, self.gangs[id].placement) for id in others if not self._stands_still(self.gangs[id])]
        if beside and gang.sharing and gang.sharing.mode == "time-slice":
            alone_s = self._world.step_s(gang.row, gang.placement, self._nodes)
            return alone_s * (1 + len(beside)), alone_s
        if beside and gang.sharing and self._gated:
            step_s = self._gated.shared_step_s(gang.row, gang.placement, self._nodes, beside, gang.sharing.mode)
        else:
            step_s = self._world.step_s(gang.row, gang.placement, self._nodes, beside)
        return step_s, step_s

    def _stands_still(self, gang: Gang) -> bool:
        """For a look at another one. Without reports nobody would be told that it has been seen."""
        return self._report_s > 0 and gang.sharing is not None and gang.sharing.part == 0

    def _share(self, node: str, command: Share) -> None:
        gang = self.gangs[command.job]
        self.is_shared = True
        if gang.sharing != command.sharing:
            gang.sharing = command.sharing
            if gang.placement:
                self._pace([command.job, *self._beside(command.job)])

    def _report(self, job: str, generation: int) -> None:
        """And again after a while, as long as it trains as this generation; nothing before its first step is done."""
        gang = self.gangs[job]
        if gang.placement and gang.generation == generation:
            if gang.steps_at(self._clock.now_s) >= gang.steps_before + 1:
                self._tell_progress(job, gang)
            self._clock.later(self._report_s, lambda: self._report(job, generation))

    def _tell_progress(self, job: str, gang: Gang) -> None:
        is_said = self._knows_total and (not gang.row.past or gang.row.past.says_total)
        total = math.ceil(gang.phase.steps_total) if is_said else None
        step_s = gang.said_step_s if math.isfinite(gang.said_step_s) else 0.0
        known = self._measured(gang.row, gang.placement)
        has_gate = not (gang.sharing and gang.sharing.mode == "free")
        self._say(
            Progressed, job, gang.generation, gang.placement[0].node, rank=0, step=int(gang.steps_at(self._clock.now_s)),
            steps_total=total,
            step_s=step_s, exposed_s=known.exposed_s, wire_bytes=known.wire_bytes, memory_bytes=known.memory_bytes,
            valley_bytes=known.valley_bytes, data_s=known.data_s,
            waited_s=max(0.0, step_s - known.step_s) if known.step_s and has_gate else 0.0,
        )  # fmt: skip

    def _end(self, job: str, version: int) -> None:
        gang = self.gangs[job]
        if version != gang.version:
            return  # it became faster or slower, or stands still
        if gang.phases:
            gang.since_s = self._clock.now_s
            gang.change()
            self._pace([job, *self._beside(job)])
            return
        generation = gang.generation
        self._halt(job)
        gang.steps = gang.until
        self._soon(self._delays.end_s, lambda: self._exit(job, generation))

    def _exit(self, job: str, generation: int) -> None:
        for rank, node in self.gangs[job].ranks.pop(generation, {}).items():
            self._say(RankExited, job, generation, node, rank=rank, role="rank", code=0)

    # ------------------------------------------------------------ moving, suspending, coming back

    def _prepare(self, node: str, command: Prepare) -> None:
        gang = self.gangs[command.job]
        gang.placements[command.generation] = command.placement
        twins = gang.ranks.setdefault(command.generation, {})
        for rank in command.ranks:
            twins[rank] = node
        self._soon(self._delays.standby_s if gang.placement else 0.0, lambda: self._park(node, command))

    def _park(self, node: str, command: Prepare) -> None:
        """Those twins that were not given up meanwhile."""
        for rank in sorted({*command.ranks} & self.gangs[command.job].ranks.get(command.generation, {}).keys()):
            self._say(TwinParked, command.job, command.generation, node, rank=rank, signature="", rehearsal_step_s=0.0)

    def _connect(self, node: str, command: Connect) -> None:
        gang = self.gangs[command.job]
        gang.placements[command.generation] = command.then
        for rank, there in gang.ranks.get(command.present, {}).items() if command.now else ():
            if there == node:
                self._say(RankConnected, command.job, command.generation, node, rank=rank, role="rank")
        for rank, there in gang.ranks.get(command.generation, {}).items():
            if there == node:
                self._say(RankConnected, command.job, command.generation, node, rank=rank, role="twin")
                if command.fill == "shadow":
                    self._say(ShadowReady, command.job, command.generation, node, rank=rank)
        if command.kept and node == command.then[-1].node:  # the last one hears of it at the same moment as the first
            self._clock.later(self._delays.resume_s + gang.row.start_s, lambda: self._come_back(command.job, command.generation))

    def _come_back(self, job: str, generation: int) -> None:
        gang = self.gangs[job]
        ranks = gang.ranks.get(generation, {})
        if len(ranks) < len(gang.placements.get(generation, ())):
            return  # it was taken away again
        for rank, node in ranks.items():
            self._say(RankSwitched, job, generation, node, rank=rank, step=int(gang.steps), pause_s=0.0, wire_bytes=0)
            self._say_ready(job, generation, node, rank)
        self._train(job, generation)

    def _propose(self, node: str, command: Propose) -> None:
        """Nobody was told of the steps since the last change of its speed, so the first proposal is often behind them."""
        step = int(self.gangs[command.job].steps_at(self._clock.now_s))
        if step < command.step:
            self._say(StepAccepted, command.job, command.generation, node, step=command.step)
        else:
            self._say(StepRefused, command.job, command.generation, node, step=command.step, at=step)

    def _decide(self, node: str, command: Decide) -> None:
        gang = self.gangs[command.job]
        if not command.go or gang.generation == command.generation:
            return
        left = command.step - gang.steps_at(self._clock.now_s)
        self._soon(left * gang.step_s if math.isfinite(gang.step_s) else 0.0, lambda: self._stop_at(command))

    def _stop_at(self, command: Decide) -> None:
        """The switch step is done; or the job was over before it, and its twins are told so."""
        gang = self.gangs[command.job]
        if not gang.placement:
            return
        now, then = gang.placement, gang.placements[command.generation]
        self._halt(command.job)
        gang.steps = max(gang.steps, float(command.step))  # a neighbour may have slowed it down in between
        if then:
            delay_s = self._delays.move_s
            if delay_s is None:
                delay_s = self._downtime_s(command.job, now, then)
            self._soon(delay_s + gang.row.start_s, lambda: self._switch(command, now, then))
        else:
            self._soon(self._delays.suspend_s, lambda: self._suspend(command))

    def _switch(self, command: Decide, now: Placement, then: Placement) -> None:
        job, gang = command.job, self.gangs[command.job]
        old = gang.ranks.pop(gang.generation, {})
        twins = gang.ranks.setdefault(command.generation, {})
        moved = moved_ranks(now, then)
        for rank, node in old.items():
            twins.setdefault(rank, node)
        before = gang.generation
        for rank, node in sorted(twins.items()):
            self._say(
                RankSwitched, job, command.generation, node, rank=rank, step=max(command.step, int(gang.steps)), pause_s=0.0,
                wire_bytes=0,
            )  # fmt: skip
        for rank in moved:
            self._say(RankExited, job, before, old[rank], rank=rank, role="leaver", code=0)
        self._train(job, command.generation)

    def _suspend(self, command: Decide) -> None:
        gang = self.gangs[command.job]
        for rank, node in gang.ranks.pop(gang.generation, {}).items():
            step = max(command.step, int(gang.steps))
            self._say(RankKept, command.job, command.generation, node, rank=rank, step=step, bytes=0)
            self._say(RankExited, command.job, gang.generation, node, rank=rank, role="leaver", code=0)

    # ------------------------------------------------------------ ending

    def _stop(self, node: str, command: Stop) -> None:
        gang = self.gangs[command.job]
        if gang.generation == command.generation:
            self._halt(command.job)
        self._leave(command.job, command.generation, node, "rank")

    def _abandon(self, node: str, command: Abandon) -> None:
        if self.gangs[command.job].generation != command.generation:
            self._leave(command.job, command.generation, node, "twin")

    def _leave(self, job: str, generation: int, node: str, role: str) -> None:
        ranks = self.gangs[job].ranks.get(generation, {})
        for rank in [rank for rank, there in ranks.items() if there == node]:
            del ranks[rank]
            self._say(RankExited, job, generation, node, rank=rank, role=role, code=-15)


def devices(placement: Placement) -> dict[tuple[str, int], None]:
    return dict.fromkeys(slot[:2] for slot in placement)
