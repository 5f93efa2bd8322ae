"""Pollux: all jobs' gangs are chosen anew in each round, such that the power mean of their speed-ups is largest.

    maximise  (mean over jobs of speed-up_j^p)^(1/p),  p = -1

speed-up_j: goodput on its devices by goodput with an even part of the cluster, of a job that is moved times
(age - restarts x 30 s) / (age + 30 s). A job's gang may have twice as many devices as it has had at most, the first time one;
before it has run it is taken to gain in proportion. Jobs with least service go first where devices are short; on each machine there
is at most one gang of several machines. Source: Qiao et al., OSDI 2021, section 4.2 and the scheduler of its artifact; the search
is search.py's.

It remembers its last population, how often each job was moved and how many devices it has had. The same seed, the same decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy

from restow.cluster import Forecast, Snapshot
from restow.job import Job
from restow.placement import Placement, Schedule, Slot, count_by_node, rearranged
from restow.policies.board import why_not_back
from restow.policies.pollux.search import Problem, Search
from restow.policies.pollux.speedups import Goodputs
from restow.policies.ranked import is_stuck
from restow.policies.room import Room

Numbers = numpy.ndarray[Any, Any]

LEAST = 1e-3  # added to each speed-up: jobs without devices have none


@dataclass(frozen=True, slots=True, kw_only=True)
class PolluxConfig:
    population: int = 100
    generations: int = 100
    power: float = -1.0  # of the mean: the lower, the more even
    restart_s: float = 30.0  # that a gang stands still when it is moved
    seed: int = 0


@dataclass(slots=True)
class Past:
    """Of one job."""

    devices: int = 0  # that it has had at most
    placements: int = 0  # that it was given


@dataclass(slots=True)
class Pollux:
    """To be asked in rounds of a minute. O(generations x population x jobs x machines)."""

    config: PolluxConfig = field(default_factory=PolluxConfig)
    _past: dict[str, Past] = field(default_factory=dict)
    _goodputs: Goodputs | None = None
    _states: Numbers | None = None  # (P, J, N) the last population ...
    _jobs: tuple[str, ...] = ()  # ... of these jobs
    _random: numpy.random.Generator | None = None

    def decide(self, snapshot: Snapshot) -> Schedule:
        schedule, jobs = Schedule(), list[Job]()
        for job in snapshot.jobs:
            if is_stuck(job, snapshot.now_s) or job.pinned or snapshot.forecast is None:
                if job.intended:
                    schedule.put(job.id, job.intended)
            elif why_not := why_not_back(job, snapshot):
                schedule.explain(job.id, why_not)
            elif not job.paused:
                jobs.append(job)
        room = Room.of(snapshot, schedule.placements.values())
        if jobs and snapshot.forecast:
            jobs.sort(key=lambda job: (job.service_s(snapshot.now_s), job.submitted_s, job.id))
            state = self._search(snapshot, snapshot.forecast, jobs, room)
            self._place(snapshot, jobs, state, schedule)
        return schedule

    plan = decide

    # ------------------------------------------------------------ how many, and on which machines

    def _search(self, snapshot: Snapshot, forecast: Forecast, jobs: Sequence[Job], room: Room) -> Numbers:
        nodes = tuple(node for node in snapshot.nodes if node.is_alive and not node.is_cordoned)
        if self._goodputs is None or self._goodputs.nodes != nodes:
            self._goodputs, self._states, self._jobs = Goodputs(nodes), None, ()
        if self._random is None:
            self._random = numpy.random.default_rng(self.config.seed)
        goodputs = self._goodputs
        now = numpy.array([[count_by_node(job.intended).get(node.name, 0) for node in nodes] for job in jobs])
        free = [sum(len(room.free_on(node.name, kind)) for kind in room.kinds) for node in nodes]
        problem = Problem(
            now=now, capacity=numpy.array(free), allowed=numpy.array([self._allowed(job, goodputs.devices) for job in jobs]),
            score=self._score(snapshot, forecast, jobs, now, goodputs),
        )  # fmt: skip
        search = Search(problem, self._random, population=self.config.population, generations=self.config.generations)
        best, self._states = search.run(self._seeds(jobs, now))
        self._jobs = tuple(job.id for job in jobs)
        return best

    def _allowed(self, job: Job, devices: int) -> list[bool]:
        most = max(2 * self._past.setdefault(job.id, Past()).devices, job.sizes[-1])
        return [size == 0 or (size in job.sizes and size <= most) for size in range(devices + 1)]

    def _seeds(self, jobs: Sequence[Job], now: Numbers) -> Numbers:
        """The last population, as far as its jobs are still there, and what is now."""
        if self._states is None:
            return now[None]
        seeds = numpy.zeros((len(self._states), *now.shape), dtype=now.dtype)
        before = {id: at for at, id in enumerate(self._jobs)}
        for at, job in enumerate(jobs):
            if job.id in before:
                seeds[:, at] = self._states[:, before[job.id]]
        return numpy.concatenate([seeds, now[None]])

    def _score(self, snapshot: Snapshot, forecast: Forecast, jobs: Sequence[Job], now: Numbers, goodputs: Goodputs) -> Any:
        config, count = self.config, len(jobs)
        even = -(-goodputs.devices // count)
        fair = numpy.array([goodputs.fair(job, even, forecast) for job in jobs])
        is_known = numpy.array([self._past[job.id].devices > 0 for job in jobs])
        age_s = numpy.array([snapshot.now_s - job.submitted_s for job in jobs])
        restarts = numpy.array([max(0, self._past[job.id].placements - 1) for job in jobs])
        paid = numpy.maximum(age_s - restarts * config.restart_s, 0.0) / (age_s + config.restart_s)
        width = len(goodputs.nodes) / goodputs.devices  # so that a machine of its own is a speed-up of one

        def score(states: Numbers) -> tuple[Numbers, Numbers]:
            machines, devices = numpy.count_nonzero(states, axis=2), states.sum(axis=2)
            goodputs_there = goodputs.look_up(jobs, machines, devices, forecast)
            speedups = numpy.where(is_known, goodputs_there / fair, devices / even)
            is_moved = (states != now).any(axis=2)
            worth = speedups * width * numpy.where(is_moved, paid, 1.0)
            mean = (((worth + LEAST) ** config.power).sum(axis=1) / count) ** (1.0 / config.power)
            active = ((states.sum(axis=1) > 0) * numpy.array([len(node.devices) for node in goodputs.nodes])).sum(axis=1)
            return mean, speedups.sum(axis=1) / numpy.maximum(active, 1)

        return score

    # ------------------------------------------------------------ on which devices

    def _place(self, snapshot: Snapshot, jobs: Sequence[Job], state: Numbers, schedule: Schedule) -> None:
        assert self._goodputs is not None
        names = [node.name for node in self._goodputs.nodes]
        wanted = {job.id: {name: int(count) for name, count in zip(names, row, strict=True) if count}
                  for job, row in zip(jobs, state, strict=True)}  # fmt: skip
        changing = [job for job in jobs if wanted[job.id] != count_by_node(job.intended)]
        for job in jobs:
            if job not in changing and job.intended:
                schedule.put(job.id, job.intended)
        room = Room.of(snapshot, schedule.placements.values())
        found: dict[str, list[Slot]] = {}
        for job in changing:  # first of all what it has there already
            found[job.id] = [slot for name, count in wanted[job.id].items()
                             for slot in [mine for mine in job.intended if mine.node == name][:count]]  # fmt: skip
            room.take(tuple(found[job.id]))
        for job in changing:
            for name, count in wanted[job.id].items():
                missing = count - sum(slot.node == name for slot in found[job.id])
                free = [slot for kind in room.kinds for slot in room.free_on(name, kind)][:missing]
                found[job.id] += free
                room.take(tuple(free))
        placements = {job.id: _in_order(job, found[job.id]) for job in changing}
        left_out = _in_circles({job.id: (job.intended, placements[job.id]) for job in changing})
        for job in changing:
            past, then = self._past[job.id], placements[job.id]
            if not then or job.id in left_out:
                schedule.explain(job.id, "its devices are others' in this round" if job.intended else "waits for its turn")
                continue
            past.placements += 1
            past.devices = max(past.devices, len(then))
            schedule.put(job.id, then, f"{len(then)} devices on {len(wanted[job.id])} machines in this round")


def _in_order(job: Job, slots: list[Slot]) -> Placement:
    """Ranks that can stay do, where there are as many of them as before."""
    return rearranged(job.intended, slots) if len(slots) == len(job.intended) else tuple(slots)


def _in_circles(ways: dict[str, tuple[Placement, Placement]]) -> set[str]:
    """Jobs (id → placement now, then) that have to be suspended for a round, so that no others wait for each other's devices. Who
    gets another number of devices is suspended anyhow, and waits for nobody."""
    left = {id: way for id, way in ways.items() if len(way[0]) == len(way[1])}
    suspended: set[str] = set()
    while left:
        held = {slot[:2]: id for id, (now, _) in left.items() for slot in now}
        free = [id for id, (_, then) in left.items() if all(held.get(slot[:2], id) == id for slot in then)]
        if not free:
            free = [min(left)]
            suspended.add(free[0])
        for id in free:
            del left[id]
    return suspended
