"""Gavel: each job gets the part of the time on each kind of device that a linear program gives it (programs.py), in rounds.

Jobs whose part is largest against what they have had since the parts were found go first (turns.py), kind by kind, fastest kind
first; who goes on on the same kind keeps its devices. Source: Narayanan et al., OSDI 2020, section 5.

It remembers how long each job has had each kind; after a restart everybody begins anew.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy

from restow.cluster import Snapshot
from restow.job import Job
from restow.placement import Placement, Schedule
from restow.policies.gavel.programs import Program, Question, max_min
from restow.policies.gavel.turns import Turns
from restow.policies.ranked import is_stuck
from restow.policies.room import Room

RESET_S = 1000.0  # parts are found anew at most so often, and when jobs have come or gone


@dataclass(slots=True)
class Owned:
    """How long a job would have taken, for what it has done, with its even number of devices all to itself."""

    steps: float = 0.0
    seconds: float = 0.0
    rate: float = 0.0  # steps per second there, since `steps`

    def pass_to(self, steps: float) -> None:
        if self.rate > 0:
            self.seconds += (steps - self.steps) / self.rate
        self.steps = steps


@dataclass(slots=True)
class Gavel:
    """To be asked in rounds. O(jobs x kinds) for a round, and a linear program of as many variables now and then."""

    program: Program = max_min
    _turns: Turns = field(default_factory=Turns)
    _running: dict[str, str] = field(default_factory=dict)  # job → kind, in the round that is over now
    _speeds: dict[str, dict[str, float]] = field(default_factory=dict)  # job → kind → steps per second
    _known: dict[Hashable, dict[str, float]] = field(default_factory=dict)  # the same: of jobs that are alike
    _owned: dict[str, Owned] = field(default_factory=dict)
    _found_s: float = -math.inf
    _jobs: frozenset[str] = frozenset()

    def decide(self, snapshot: Snapshot) -> Schedule:
        kinds = _capacities(snapshot)
        jobs = [job for job in snapshot.jobs if not job.paused]
        self._account(snapshot, jobs)
        ids = frozenset(job.id for job in jobs)
        if jobs and ids != self._jobs and (snapshot.now_s - self._found_s >= RESET_S or not self._jobs):
            self._jobs = ids
            self._find_parts(snapshot, jobs, kinds)
        order = sorted(kinds, key=lambda kind: (-self._mean_speed(kind, jobs), kind))
        chosen = self._choose(jobs, kinds, order)
        schedule = _placed(snapshot, jobs, chosen)
        kind_of = snapshot.kinds()
        self._running = {id: kind_of[there[0][:2]] for id, there in schedule.placements.items() if there}
        return schedule

    plan = decide

    # ------------------------------------------------------------ parts

    def _account(self, snapshot: Snapshot, jobs: Sequence[Job]) -> None:
        here = {job.id for job in jobs}
        self._turns.pass_to(snapshot.now_s, self._running, here)
        self._speeds = {job.id: self._find_speeds(snapshot, job) for job in jobs}
        for gone in self._owned.keys() - here:
            del self._owned[gone]

    def _find_speeds(self, snapshot: Snapshot, job: Job) -> dict[str, float]:
        alike = snapshot.forecast.alike(job) if snapshot.forecast else job.workers
        if alike not in self._known:
            self._known[alike] = _speeds(snapshot, job)
        return self._known[alike]

    def _find_parts(self, snapshot: Snapshot, jobs: Sequence[Job], kinds: dict[str, int]) -> None:
        self._found_s = snapshot.now_s
        names = sorted(kinds)
        made = numpy.array([job.steps_by(snapshot.now_s) for job in jobs])
        wanted = numpy.array([math.nan if job.steps_wanted is None else job.steps_wanted for job in jobs])
        owned = [self._owned.setdefault(job.id, Owned()) for job in jobs]
        for each, steps in zip(owned, made.tolist(), strict=True):
            each.pass_to(steps)
        question = Question(
            speeds=numpy.array([[self._speeds[job.id].get(kind, 0.0) for kind in names] for job in jobs]),
            sizes=numpy.array([job.workers for job in jobs], dtype=float),
            capacities=numpy.array([kinds[kind] for kind in names], dtype=float),
            left=numpy.maximum(0.0, numpy.where(numpy.isnan(wanted), made, wanted - made)),
            since_s=numpy.array([snapshot.now_s - job.submitted_s for job in jobs]),
            owned_s=numpy.array([each.seconds for each in owned]),
        )
        for each, rate in zip(owned, question.own_rates.tolist(), strict=True):
            each.rate = rate
        rows = self.program(question).tolist()
        parts = {job.id: dict(zip(names, row, strict=True)) for job, row in zip(jobs, rows, strict=True)}
        self._turns.begin(parts, snapshot.now_s)

    # ------------------------------------------------------------ rounds

    def _mean_speed(self, kind: str, jobs: Sequence[Job]) -> float:
        """Against each job's best."""
        found = [self._speeds[job.id].get(kind, 0.0) / max(self._speeds[job.id].values(), default=1.0) for job in jobs]
        return sum(found) / len(found) if found else 0.0

    def _choose(self, jobs: Sequence[Job], kinds: dict[str, int], order: Sequence[str]) -> dict[str, str]:
        """Job → kind, for those that run in this round."""
        chosen: dict[str, str] = {}
        for kind in order:
            left = kinds[kind]
            claim = self._turns.claim(kind, len(jobs))
            claims = {job.id: claim(job.id) for job in jobs}
            for job in sorted(jobs, key=lambda job: (-claims[job.id][0], -claims[job.id][1], job.submitted_s, job.id)):
                if job.id not in chosen and job.workers <= left and self._speeds[job.id].get(kind, 0.0) > 0:
                    chosen[job.id] = kind
                    left -= job.workers
        return chosen


def _capacities(snapshot: Snapshot) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for node in snapshot.nodes:
        for device in node.devices if node.is_alive and not node.is_cordoned else ():
            found[device.kind] += 1
    return dict(found)


def _speeds(snapshot: Snapshot, job: Job) -> dict[str, float]:
    """Steps per second on each kind, together if one machine has so many."""
    room = Room(snapshot.nodes)
    found: dict[str, float] = {}
    for kind in room.kinds:
        placement = room.find(job.workers, kind)
        seconds = snapshot.forecast.step_s(job, placement) if placement and snapshot.forecast else 1.0
        if placement and math.isfinite(seconds):
            found[kind] = 1.0 / seconds
    return found


def _placed(snapshot: Snapshot, jobs: Sequence[Job], chosen: dict[str, str]) -> Schedule:
    """Who stays on its kind keeps its devices; the others, the largest first, get what is left. Who changes its kind and would have
    to wait for devices of others that change theirs gives its own back, and comes in the next round: nobody waits in a circle."""
    schedule = Schedule()
    kind_of = snapshot.kinds()
    changing: list[Job] = []
    coming: list[Job] = []
    for job in jobs:
        here = kind_of[job.intended[0][:2]] if job.intended else ""
        if is_stuck(job, snapshot.now_s) or (here and chosen.get(job.id) == here):
            if job.intended:
                schedule.put(job.id, job.intended)
        elif job.id in chosen:
            (changing if here else coming).append(job)
        else:
            schedule.explain(job.id, "it is the turn of others")
    steps: tuple[tuple[list[Job], list[Placement]], ...] = ((changing, [job.intended for job in changing]), (coming, []))
    for waiting, others in steps:
        room = Room.of(snapshot, [*schedule.placements.values(), *others])
        for job in sorted(waiting, key=lambda job: (-job.workers, job.submitted_s, job.id)):
            placement = room.find(job.workers, chosen[job.id])
            if placement:
                schedule.put(job.id, placement, "its turn in this round")
                room.take(placement)
            else:
                schedule.explain(job.id, "its devices are not free yet")
    return schedule
