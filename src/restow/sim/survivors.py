"""Agents of machines that may fail: what is gone with one, and what those that are left say of it.

A gang that has lost ranks stands still. Those that are left hold all that data-parallel ranks hold alike, and a replica of what
each lost rank alone held (sdk/replicas.py), so they answer Halt and Keep for the lost, too. Where ranks are missing at a switch
step, the others wait for them in vain and roll back. Not simulated: a twin that takes over for a lost rank in the middle of a step
(sdk/guard.py); the core waits for that in vain and then goes on without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from restow.job import Kept
from restow.messages import (
    Command,
    Connect,
    Decide,
    Halt,
    Keep,
    Launch,
    RankExited,
    RankHalted,
    RankKept,
    RankRolledBack,
    SwitchFailed,
)
from restow.placement import Placement, devices_held, moved_ranks
from restow.sim.gang import Gang
from restow.sim.phases import phases_of
from restow.sim.rows import Row
from restow.sim.saving import Saving
from restow.sim.world import Measured

ALMOST = 1e-6  # of a step: what is left of one by rounding


class Survivors(Saving):
    """See the module."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.lost_steps = 0  # made again
        self.lost_device_s = 0.0  # that they took, at the speed which each gang had when it was lost
        self._may_take_turns = False  # have gangs lost devices, in a world that does not know how fast the rest is?
        self._rows: dict[str, Row] = {}
        self._down: set[str] = set()  # nodes
        self._torn: dict[str, float] = {}  # jobs whose latest gang has lost ranks → device seconds that a step of it took
        self._kept: dict[tuple[str, int], Kept] = {}  # job, generation that comes back → from what
        self._obey |= {Halt: self._stand, Keep: self._keep}

    def add(self, row: Row) -> None:
        super().add(row)
        self._rows[row.id] = row

    def tell(self, node: str, command: Command) -> None:
        if node not in self._down:
            super().tell(node, command)
        elif isinstance(command, Decide) and command.go:
            self._roll_back(command)  # nobody hears what was decided

    def _hindrance(self, placement: Placement) -> float:
        """A gang that has lost devices may go on with fewer, ranks in turns: of that tables know nothing, perf.py does."""
        if not self._may_take_turns:
            return super()._hindrance(placement)
        held: dict[tuple[str, int], float] = {}
        for slot in placement:
            held[slot[:2]] = held.get(slot[:2], 0.0) + slot.share
        return super()._hindrance(placement) * max(1.0, max(held.values(), default=1.0))

    # ------------------------------------------------------------ machines

    def fail(self, node: str, jobs: Iterable[str]) -> None:
        """All processes on it are gone, and nobody has said so. `jobs`: those that are not over."""
        self._down.add(node)
        self._may_take_turns = not isinstance(self._world, Measured)
        for job in jobs:
            gang = self.gangs[job]
            hit = {generation for generation, ranks in gang.ranks.items() if node in ranks.values()}
            if gang.generation in hit:
                self._tear(job)
            for generation in hit:
                gang.ranks[generation] = {rank: there for rank, there in gang.ranks[generation].items() if there != node}

    def _tear(self, job: str) -> None:
        """What it says last is what a live gang, which speaks twice a second, had said by then."""
        gang = self.gangs[job]
        self._torn.setdefault(job, 0.0)
        if gang.placement:
            self._torn[job] = gang.step_s * devices_held(gang.placement) if math.isfinite(gang.step_s) else 0.0
            self._say_how_far(job)
            self._halt(job)
        gang.steps = float(math.floor(gang.steps + ALMOST))

    def repair(self, node: str) -> None:
        """Its agent starts anew, and nothing runs there."""
        self._down.remove(node)

    def processes(self, node: str, jobs: Iterable[str]) -> list[dict[str, Any]]:
        """What its agent would say runs there, of these jobs."""
        return [
            {"job": job, "generation": generation, "rank": rank, "pid": 1,
             "role": "rank" if generation == gang.generation else "twin"}
            for job in jobs for gang in [self.gangs[job]]
            for generation, ranks in gang.ranks.items() for rank, there in ranks.items() if there == node
        ]  # fmt: skip

    # ------------------------------------------------------------ starting and coming back

    def _launch(self, node: str, command: Launch) -> None:
        if command.job in self._torn:
            self._go_back_to(command.job, 0)
        super()._launch(node, command)

    def _connect(self, node: str, command: Connect) -> None:
        if command.kept:
            self._kept[command.job, command.generation] = command.kept
        super()._connect(node, command)

    def _come_back(self, job: str, generation: int) -> None:
        """What vaults on lost machines keep cannot be had until they are back."""
        gang, kept = self.gangs[job], self._kept[job, generation]
        missing = [] if kept.checkpoint else sorted({slot.node for slot in kept.placement} & self._down)
        twins = gang.ranks.get(generation, {})
        if missing and twins:
            rank = min(twins)
            self._say(SwitchFailed, job, generation, twins[rank], rank=rank, reason=f"the vault of {missing[0]} does not answer")
            return
        if job in self._torn and len(twins) == len(gang.placements.get(generation, ())):
            self._go_back_to(job, kept.step)
        super()._come_back(job, generation)

    def _train(self, job: str, generation: int) -> None:
        super()._train(job, generation)
        self._torn.pop(job, None)

    def _go_back_to(self, job: str, step: int) -> None:
        """The steps after it are made again; they may have been those of a later phase."""
        gang = self.gangs[job]
        if int(gang.steps) <= step:
            return
        self.lost_steps += int(gang.steps) - step
        self.lost_device_s += (int(gang.steps) - step) * self._torn.get(job, 0.0)
        anew = Gang.of(phases_of(self._world, self._rows[job]))
        while anew.phases and step >= anew.until:
            anew.change()
        gang.phases, gang.phase, gang.until, gang.steps = anew.phases, anew.phase, anew.until, float(step)

    # ------------------------------------------------------------ switches of gangs that are torn

    def _stop_at(self, command: Decide) -> None:
        gang = self.gangs[command.job]
        gang.is_stopping = False
        if gang.generation >= command.generation:
            return  # it was started anew meanwhile
        if command.job in self._torn:
            self._roll_back(command)
        else:
            super()._stop_at(command)

    def _switch(self, command: Decide, now: Placement, then: Placement) -> None:
        gang = self.gangs[command.job]
        old, twins = gang.ranks.get(gang.generation, {}), gang.ranks.get(command.generation, {})
        if gang.generation >= command.generation:
            return
        if len(old) == len(now) and set(twins) == set(moved_ranks(now, then)):
            super()._switch(command, now, then)
        else:
            self._roll_back(command)

    def _suspend(self, command: Decide) -> None:
        if self.gangs[command.job].generation >= command.generation:
            return
        if command.job in self._torn:
            self._roll_back(command)
        else:
            super()._suspend(command)

    def _roll_back(self, command: Decide) -> None:
        """The old gang goes on where it is whole."""
        gang = self.gangs[command.job]
        if gang.generation >= command.generation:
            return
        old = gang.ranks.get(gang.generation, {})
        for rank, node in sorted(old.items()):
            self._say(
                RankRolledBack, command.job, command.generation, node, rank=rank, step=command.step, reason="no answer"
            )  # fmt: skip
        for rank, node in sorted(gang.ranks.pop(command.generation, {}).items()):
            self._say(RankExited, command.job, command.generation, node, rank=rank, role="twin", code=1, reason="rolled back")
        if old and not gang.placement and command.job not in self._torn:
            self._train(command.job, gang.generation)

    # ------------------------------------------------------------ what is left of a gang

    def _stand(self, node: str, command: Halt) -> None:
        self._halt(command.job)
        gang = self.gangs[command.job]
        step = int(gang.steps)
        for rank, there in sorted(gang.ranks.get(command.generation, {}).items()):
            if there == node:
                self._say(RankHalted, command.job, command.generation, node, rank=rank, step=step, holds=(step,), privates=(step,))
        for rank in command.lost:
            self._say(RankHalted, command.job, command.generation, node, rank=rank, step=step, holds=(), privates=(step,))

    def _keep(self, node: str, command: Keep) -> None:
        ranks = self.gangs[command.job].ranks.get(command.generation, {})
        here = sorted(rank for rank, there in ranks.items() if there == node)
        for rank in (*here, *command.lost):
            self._say(RankKept, command.job, command.vault, node, rank=rank, step=command.step, bytes=0)
        for rank in here:
            del ranks[rank]
            self._say(RankExited, command.job, command.generation, node, rank=rank, role="leaver", code=0)
