"""How many devices each job gets, of those whose gangs may have several sizes: as many as bring most in all.

A job's worth per second on k devices is its weight times its speed there. Sizes are chosen together, so that the sum over all
jobs is as large as the devices allow (a knapsack with one choice for each job, which dynamic programming solves), and what a
change costs is taken off: a job that changes stands still for a while, which it pays from what it will have made until things
change again. So a job that waits gets in as far as others have much more than it, running ones grow into devices that are free,
and nothing changes while nothing is new.

The weight is rank^power, where the shortest of n jobs has rank n and the longest rank 1: were speed k^p and power p, and all jobs
there from the start, this would be how gangs share devices such that jobs wait least on average (heSRPT: Berg, Vesilo and
Harchol-Balter, Performance Evaluation 2020).

Where a gang lies: who keeps its size stays; the others get, the largest first, the place that is believed to be fastest of those
that are free.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy

from restow.cluster import Forecast, Node, Snapshot
from restow.job import Job
from restow.placement import Placement, Schedule, Slot
from restow.policies.board import why_not_back
from restow.policies.room import Room

Numbers = numpy.ndarray[Any, Any]

LEAST_WORTH = 1e-12  # less is no difference
EACH = (1, 2, 3)  # devices of each machine of a gang that is spread evenly
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizingConfig:
    power: float = 1.3  # how much more a job counts than those that are longer; 0.7 to 2 and any horizon give the same but for 7 %
    change_s: float = 30.0  # that a gang stands still for a change
    horizon_s: float = 200.0  # over which what a change costs is spread, at most: then others have come or gone


@dataclass(slots=True)
class Fastest:
    """Seconds of a step on so many devices, the best of all shapes if all were free; kept from decision to decision."""

    _nodes: tuple[Node, ...] = ()
    _shapes: dict[int, list[Placement]] = field(default_factory=dict)
    _seconds: dict[tuple[Hashable, int], float] = field(default_factory=dict)

    def look_at(self, nodes: tuple[Node, ...]) -> None:
        if nodes is not self._nodes and nodes != self._nodes:
            self._nodes, self._shapes, self._seconds = nodes, {}, {}

    def step_s(self, job: Job, size: int, forecast: Forecast) -> float:
        key = forecast.alike(job), size
        if key not in self._seconds:
            if size not in self._shapes:
                room = Room(self._nodes)
                self._shapes[size] = [there for kind in room.kinds for there in _places(room, size, kind)]
            self._seconds[key] = min((forecast.step_s(job, there) for there in self._shapes[size]), default=math.inf)
        return self._seconds[key]


class Sizing:
    """Of one snapshot. `room`: what nobody has; `fixed`: jobs that stay as they are."""

    def __init__(
        self, config: SizingConfig, snapshot: Snapshot, forecast: Forecast, fastest: Fastest, room: Room, fixed: set[str]
    ):  # fmt: skip
        self._config, self._snapshot, self._forecast, self._room, self._fixed = config, snapshot, forecast, room, fixed
        self._fastest_s = fastest
        fastest.look_at(snapshot.nodes)

    def plan(self, rigid: Sequence[Job], schedule: Schedule) -> dict[str, Placement]:
        """Job → where it is to be, of those that are to be somewhere. `rigid`: others that wait, each for as many as it wants."""
        jobs = [job for job in self._snapshot.jobs if job.is_resizable and job.id not in self._fixed and not job.pinned]
        running = [job for job in jobs if job.intended and not job.paused]
        waiting = [job for job in (*jobs, *rigid) if not job.intended and job.waits and not self._why_not(job, schedule)]
        free = self._room.free() + sum(len(job.intended) for job in running)
        sizes = self._choose([*running, *waiting], free)
        return self._place([*running, *waiting], sizes, schedule)

    def _why_not(self, job: Job, schedule: Schedule) -> str:
        why_not = why_not_back(job, self._snapshot)
        if why_not:
            schedule.explain(job.id, why_not)
        return why_not

    # ------------------------------------------------------------ how many

    def _choose(self, jobs: Sequence[Job], free: int) -> dict[str, int]:
        """Job → devices, such that the sum of their worths is largest. O(jobs x sizes x free)."""
        weights = self._weights(jobs)
        best = numpy.zeros(free + 1)  # devices → the largest sum so far
        chosen: list[Numbers] = []
        for job in jobs:
            then, sizes = best.copy(), numpy.zeros(free + 1, dtype=int)
            for size, worth in self._worths(job, weights[job.id], free):
                total = best[: free + 1 - size] + worth
                is_more = total > then[size:] + LEAST_WORTH
                then[size:][is_more], sizes[size:][is_more] = total[is_more], size
            best = then
            chosen.append(sizes)
        found: dict[str, int] = {}
        for job, sizes in zip(reversed(jobs), reversed(chosen), strict=True):
            found[job.id] = int(sizes[free])
            free -= found[job.id]
        return found

    def _weights(self, jobs: Sequence[Job]) -> dict[str, float]:
        ordered = sorted(jobs, key=lambda job: (-self._left_s(job, self._one_s(job)), job.submitted_s, job.id))
        return {job.id: rank**self._config.power for rank, job in enumerate(ordered, 1)}

    def _left_s(self, job: Job, step_s: float) -> float:
        """With steps of this length."""
        done = job.steps_by(self._snapshot.now_s)
        return (max(1.0, job.steps_wanted - done) if job.steps_wanted is not None else max(1.0, done)) * step_s

    def _worths(self, job: Job, weight: float, free: int) -> Iterator[tuple[int, float]]:
        """Number of devices, and its worth there, of those that bring more than fewer do."""
        one_s, most = self._one_s(job), 0.0
        for size in sizes_for(job):
            is_here = size == len(job.intended)
            step_s = self._forecast.step_s(job, job.intended) if is_here else self._step_s(job, size)
            worth = weight * one_s / step_s * (1.0 if is_here else self._paid(job, step_s))
            if worth > most and size <= free:
                yield size, worth
                most = worth

    def _paid(self, job: Job, step_s: float) -> float:
        """The part of what it would make that is left when a change is paid."""
        config = self._config
        return 1.0 - config.change_s / (config.change_s + min(config.horizon_s, self._left_s(job, step_s)))

    def _one_s(self, job: Job) -> float:
        """On one device; up to the fewest on which it can run it is taken to gain in proportion. Infinite if it can nowhere."""
        steps_s = ((size, self._step_s(job, size)) for size in sizes_for(job))
        return next((size * step_s for size, step_s in steps_s if math.isfinite(step_s)), math.inf)

    def _step_s(self, job: Job, size: int) -> float:
        """At its fastest on so many devices, if all were free."""
        return self._fastest_s.step_s(job, size, self._forecast)

    # ------------------------------------------------------------ where

    def _place(self, jobs: Sequence[Job], sizes: dict[str, int], schedule: Schedule) -> dict[str, Placement]:
        placed: dict[str, Placement] = {}
        for job in jobs:
            if job.intended and sizes[job.id] == len(job.intended):
                placed[job.id] = job.intended
            else:
                self._room.give(job.intended)
        for job in sorted(jobs, key=lambda job: (-sizes[job.id], job.submitted_s, job.id)):
            size, have = sizes[job.id], len(job.intended)
            if job.id in placed:
                continue
            found = self._fastest(job, size) if size else None
            if found is None:
                words = "suspended: its devices are worth more to others" if have else "waits: devices are worth more to others"
                schedule.explain(job.id, words)
                continue
            placed[job.id] = found
            self._room.take(found)
            what = f"goes from {have} to {size} workers" if have else f"starts with {size} workers"
            schedule.explain(job.id, f"{what}, which brings most in all")
        return placed

    def _fastest(self, job: Job, size: int) -> Placement | None:
        found = [there for kind in self._room.kinds for there in _places(self._room, size, kind)]
        return min(found, key=lambda there: self._forecast.step_s(job, there), default=None)


def sizes_for(job: Job) -> list[int]:
    """The world sizes that are looked at, ascending."""
    return [size for size in reversed(job.sizes) if size in SIZES or len(job.sizes) <= len(SIZES) or size == len(job.intended)]


def _places(room: Room, size: int, kind: str) -> Iterator[Placement]:
    """On the fewest machines; and on as many as it takes with three, two or one on each, the fullest first."""
    if together := room.find(size, kind):
        yield together
    for each in EACH:
        if size % each == 0 and (spread := _spread(room, size, kind, each)):
            yield spread


def _spread(room: Room, size: int, kind: str, each: int) -> Placement | None:
    free: dict[str, list[Slot]] = {}
    for slot in room.all_free(kind):
        free.setdefault(slot.node, []).append(slot)
    fits = sorted((slots for slots in free.values() if len(slots) >= each), key=len)[: size // each]
    picked = tuple(slot for slots in fits for slot in slots[:each])
    return picked if len(picked) == size else None
