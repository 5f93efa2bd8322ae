"""All nodes of a simulated cluster: agents that obey commands, in virtual time.

They say what real agents and ranks would say, in the same order, so that core/ cannot tell. How fast a gang is says training.py;
how long a start, a move, a suspension and a return take says `Delays`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from restow.cluster import Node
from restow.messages import (
    Abandon,
    Command,
    Connect,
    Decide,
    Launch,
    OpenStore,
    Prepare,
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
from restow.sim.delays import Delays
from restow.sim.gang import Gang
from restow.sim.phases import phases_of
from restow.sim.rows import Row
from restow.sim.stragglers import Stragglers
from restow.sim.training import Training
from restow.sim.world import World

STORE_PORT = 4000


class Agents(Training):
    """`tell` obeys."""

    def __init__(
        self, nodes: Mapping[str, Node], world: World, clock: Clock, delays: Delays, *,
        knows_total: bool, downtime_s: Callable[[str, Placement, Placement], float], stragglers: Stragglers, report_s: float = 0.0,
    ):  # fmt: skip
        """`downtime_s(job, now, then)`: of a move, if no delay is set."""
        super().__init__(nodes, world, clock, knows_total=knows_total, stragglers=stragglers, report_s=report_s)
        self.is_shared = False  # was anybody told yet how to share its devices?
        self._delays, self._downtime_s = delays, downtime_s
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
        if gang.placement and gang.generation < command.generation:
            gang.is_stopping = True
        left = command.step - gang.steps_at(self._clock.now_s)
        self._soon(left * gang.step_s if math.isfinite(gang.step_s) else 0.0, lambda: self._stop_at(command))

    def _stop_at(self, command: Decide) -> None:
        """The switch step is done; or the job was over before it, and its twins are told so."""
        gang = self.gangs[command.job]
        gang.is_stopping = False
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

    def _share(self, node: str, command: Share) -> None:
        gang = self.gangs[command.job]
        self.is_shared = True
        if gang.sharing != command.sharing:
            gang.sharing = command.sharing
            if gang.placement:
                self._pace([command.job, *self._beside(command.job)])

    # ------------------------------------------------------------ ending

    def _done(self, job: str, generation: int) -> None:
        self._soon(self._delays.end_s, lambda: self._exit(job, generation))

    def _exit(self, job: str, generation: int) -> None:
        for rank, node in self.gangs[job].ranks.pop(generation, {}).items():
            self._say(RankExited, job, generation, node, rank=rank, role="rank", code=0)

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
