"""Gangs that train in virtual time: how fast each is, what its ranks say of it, and when it is done.

How long a step takes says the world, and stragglers.py. A gang is told of only by its rank 0 (by all ranks where one may be slower
than the others), and only when its speed changes, if reports are not asked for: `Job.steps_by` knows the steps in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from restow.cluster import Node
from restow.core.config import CoreConfig
from restow.job import Profile
from restow.messages import Event, Progressed
from restow.placement import Placement
from restow.sim.clock import Clock
from restow.sim.gang import Gang, devices
from restow.sim.rows import Row
from restow.sim.stragglers import Stragglers
from restow.sim.world import Gated, Measured, World

NOTHING = Profile()  # is measured of jobs in a world of step times
TOLD_AGAIN_S = CoreConfig().slow_s + 1.0  # after a rank was said to be slow: then the core believes it


class Training:
    """`reports` are what is said at this very moment. `report_s`: how often each gang says how far it is; 0: only when its speed
    changes."""

    def __init__(
        self, nodes: Mapping[str, Node], world: World, clock: Clock, *, knows_total: bool, stragglers: Stragglers, report_s: float
    ):  # fmt: skip
        self.reports: list[Event] = []
        self.gangs: dict[str, Gang] = {}
        self._nodes, self._world, self._clock = nodes, world, clock
        self._knows_total, self._stragglers, self._report_s = knows_total, stragglers, report_s
        self._gated = world if isinstance(world, Gated) else None
        self._measured: Callable[[Row, Placement], Profile] = world.measured if isinstance(world, Measured) else lambda *_: NOTHING
        self._training: dict[tuple[str, int], dict[str, None]] = {}  # device → jobs that train on it

    def _say(self, kind: type, job: str, generation: int, node: str, *, time_s: float | None = None, **rest: Any) -> None:
        time_s = self._clock.now_s if time_s is None else time_s
        self.reports.append(kind(time_s=time_s, job=job, generation=generation, node=node, **rest))

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

    def _pace(self, jobs: Iterable[str], *, is_told: bool = False) -> None:
        """How fast they are now, and when they will be done. `is_told`: also where a step takes as long as before."""
        for job in jobs:
            gang, now_s = self.gangs[job], self._clock.now_s
            gang.steps, gang.since_s = gang.steps_at(now_s), now_s
            gang.step_s, seen_s = self._speed(job, gang)
            gang.version += 1
            if seen_s != gang.said_step_s or is_told:
                gang.said_step_s = seen_s
                if not self._report_s:
                    self._tell_progress(job, gang)
                    self._tell_again(job, gang)
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
        times = self._hindrance(gang.placement)
        if beside and gang.sharing and gang.sharing.mode == "time-slice":
            alone_s = times * self._world.step_s(gang.row, gang.placement, self._nodes)
            return alone_s * (1 + len(beside)), alone_s
        if beside and gang.sharing and self._gated:
            step_s = self._gated.shared_step_s(gang.row, gang.placement, self._nodes, beside, gang.sharing.mode)
        else:
            step_s = self._world.step_s(gang.row, gang.placement, self._nodes, beside)
        return times * step_s, times * step_s

    def _stands_still(self, gang: Gang) -> bool:
        """For a look at another one. Without reports nobody would be told that it has been seen."""
        return self._report_s > 0 and gang.sharing is not None and gang.sharing.part == 0

    def _report(self, job: str, generation: int) -> None:
        """And again after a while, as long as it trains as this generation; nothing before its first step is done."""
        gang = self.gangs[job]
        if gang.placement and gang.generation == generation:
            if gang.steps_at(self._clock.now_s) >= gang.steps_before + 1:
                self._tell_progress(job, gang)
            self._clock.later(self._report_s, lambda: self._report(job, generation))

    def _hindrance(self, placement: Placement) -> float:
        """How many times as long a step takes there than the world says."""
        return self._stragglers.slowdown(placement)

    def _tell_progress(self, job: str, gang: Gang) -> None:
        is_said = self._knows_total and (not gang.row.past or gang.row.past.says_total)
        total = math.ceil(gang.phase.steps_total) if is_said else None
        step_s = gang.said_step_s if math.isfinite(gang.said_step_s) else 0.0
        known = self._measured(gang.row, gang.placement)
        has_gate = not (gang.sharing and gang.sharing.mode == "free")
        step = int(gang.steps_at(self._clock.now_s))
        unshared_s = known.step_s * self._hindrance(gang.placement) if known.step_s else 0.0
        for rank, part in enumerate(self._stragglers.waits(gang.placement)):
            self._say(
                Progressed, job, gang.generation, gang.placement[rank].node, rank=rank, step=step, steps_total=total,
                step_s=step_s, exposed_s=known.exposed_s + part * (unshared_s or step_s), wire_bytes=known.wire_bytes,
                memory_bytes=known.memory_bytes, valley_bytes=known.valley_bytes, data_s=known.data_s,
                waited_s=max(0.0, step_s - unshared_s) if known.step_s and has_gate else 0.0,
            )  # fmt: skip

    def _tell_again(self, job: str, gang: Gang) -> None:
        """Of ranks that are slower than others a live gang speaks all the time, and the core believes it only after a while."""
        if any(self._stragglers.waits(gang.placement)):
            version, again_s = gang.version, self._clock.now_s + TOLD_AGAIN_S
            self._clock.at(again_s, lambda: self._say_how_far(job) if gang.version == version else None, is_beside=True)

    def _say_how_far(self, job: str) -> None:
        """But for a gang that is about to stop: what it has made beyond that step, having become faster, does not count."""
        gang, now_s = self.gangs[job], self._clock.now_s
        if not gang.is_stopping:
            gang.steps, gang.since_s = gang.steps_at(now_s), now_s
            self._tell_progress(job, gang)

    def pace_on(self, device: tuple[str, int]) -> None:
        """It has become slower, or faster; the gangs there say so, also where another of their devices is as slow as it was."""
        self._pace(list(self._training.get(device, ())), is_told=True)

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
        self._done(job, generation)

    def _done(self, job: str, generation: int) -> None:
        """All steps are made."""
        raise NotImplementedError
