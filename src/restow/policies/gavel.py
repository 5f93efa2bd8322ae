"""Gavel: each job gets the part of the time on each kind of device that a linear program gives it, in rounds.

The program (max-min fairness that knows how fast each job is on each kind):

    maximise  min over jobs of  devices_j * sum over kinds of speed_jk x_jk / isolated_j
    subject to  sum over kinds of x_jk <= 1,   sum over jobs of devices_j x_jk <= devices of kind k,   x >= 0

isolated_j: its speed if every job had the same part of every kind. Rounds: jobs whose part is largest against what they have had
since the parts were found go first, kind by kind, fastest kind first; who goes on on the same kind keeps its devices. Source:
Narayanan et al., OSDI 2020, sections 4.1 and 5. What is left once the worst job has as much as it can have is not said there;
here it goes where it is used best.

It remembers how long each job has had each kind; after a restart everybody begins anew.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy
from scipy.optimize import linprog

from restow.cluster import Snapshot
from restow.job import Job
from restow.placement import Placement, Schedule
from restow.policies.ranked import is_stuck
from restow.policies.room import Room

RESET_S = 1000.0  # parts are found anew at most so often, and when jobs have come or gone
HEAD_START_S = 180.0  # half a round of six minutes, which every job is taken to have had


@dataclass(slots=True)
class Gavel:
    """To be asked in rounds. O(jobs x kinds) for a round, and a linear program of as many variables now and then."""

    _parts: dict[str, dict[str, float]] = field(default_factory=dict)  # job → kind → part of the time
    _received_s: dict[str, dict[str, float]] = field(default_factory=dict)  # the same: since the parts were found
    _running: dict[str, str] = field(default_factory=dict)  # job → kind, in the round that is over now
    _speeds: dict[str, dict[str, float]] = field(default_factory=dict)  # job → kind → steps per second
    _asked_s: float = 0.0
    _found_s: float = -math.inf
    _jobs: frozenset[str] = frozenset()

    def decide(self, snapshot: Snapshot) -> Schedule:
        kinds = _capacities(snapshot)
        jobs = [job for job in snapshot.jobs if not job.paused]
        self._account(snapshot, jobs)
        ids = frozenset(job.id for job in jobs)
        if jobs and ids != self._jobs and (snapshot.now_s - self._found_s >= RESET_S or not self._parts):
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
        passed_s = snapshot.now_s - self._asked_s
        self._asked_s = snapshot.now_s
        here = {job.id for job in jobs}
        for id, kind in self._running.items():
            if id in here:
                self._received_s[id][kind] += passed_s
        for job in jobs:
            self._received_s.setdefault(job.id, defaultdict(lambda: HEAD_START_S))
            if job.id not in self._speeds:
                self._speeds[job.id] = _speeds(snapshot, job)
        for gone in self._received_s.keys() - here:
            del self._received_s[gone], self._speeds[gone]
            self._parts.pop(gone, None)

    def _find_parts(self, snapshot: Snapshot, jobs: Sequence[Job], kinds: dict[str, int]) -> None:
        self._found_s = snapshot.now_s
        self._received_s = {job.id: defaultdict(lambda: HEAD_START_S) for job in jobs}
        names = sorted(kinds)
        speeds = numpy.array([[self._speeds[job.id].get(kind, 0.0) for kind in names] for job in jobs])
        sizes = numpy.array([job.workers for job in jobs], dtype=float)
        parts = max_min_parts(speeds, sizes, numpy.array([kinds[kind] for kind in names], dtype=float))
        self._parts = {job.id: dict(zip(names, row, strict=True)) for job, row in zip(jobs, parts.tolist(), strict=True)}

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
            total_s = sum(received[kind] for received in self._received_s.values())
            ranked = sorted(jobs, key=lambda job: (-self._priority(job, kind, total_s), job.submitted_s, job.id))
            for job in ranked:
                if job.id not in chosen and job.workers <= left and self._speeds[job.id].get(kind, 0.0) > 0:
                    chosen[job.id] = kind
                    left -= job.workers
        return chosen

    def _priority(self, job: Job, kind: str, total_s: float) -> float:
        part = self._parts.get(job.id, {}).get(kind, 0.0)
        return part * total_s / self._received_s[job.id][kind]


def max_min_parts(speeds: numpy.ndarray, sizes: numpy.ndarray, capacities: numpy.ndarray) -> numpy.ndarray:
    """(jobs, kinds): the part of the time that each job has on each kind. `speeds`: (jobs, kinds) steps per second; `sizes`:
    (jobs,) devices; `capacities`: (kinds,) devices."""
    jobs, kinds = speeds.shape
    total = capacities.sum()
    isolated_parts = numpy.minimum(1.0, total / jobs / sizes)[:, None] * (capacities / total)[None, :]
    isolated = (speeds * isolated_parts).sum(axis=1)
    worth = speeds / numpy.where(isolated > 0, isolated, 1.0)[:, None] * sizes[:, None]
    count = jobs * kinds
    rows, bounds = [], []
    for job in range(jobs):  # a job has at most all of the time, and gains at least t
        whole = numpy.zeros(count + 1)
        whole[job * kinds : (job + 1) * kinds] = 1.0
        gain = numpy.zeros(count + 1)
        gain[job * kinds : (job + 1) * kinds] = -worth[job]
        gain[count] = 1.0
        rows += [whole, gain]
        bounds += [1.0, 0.0]
    for kind in range(kinds):
        used = numpy.zeros(count + 1)
        used[kind:count:kinds] = sizes
        rows.append(used)
        bounds.append(float(capacities[kind]))
    goal = numpy.zeros(count + 1)
    goal[count] = -1.0
    first = linprog(goal, A_ub=numpy.array(rows), b_ub=bounds, method="highs")
    least = first.x[count]
    goal = numpy.append(-(worth / sizes[:, None]).ravel(), 0.0)  # what is left goes where it is used best
    limits = [(0.0, 1.0)] * count + [(least * (1 - 1e-6), None)]
    second = linprog(goal, A_ub=numpy.array(rows), b_ub=bounds, bounds=limits, method="highs")
    found = second.x if second.status == 0 else first.x
    parts: numpy.ndarray = numpy.clip(found[:count].reshape(jobs, kinds), 0.0, 1.0)
    return parts


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
