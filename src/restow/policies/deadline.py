"""Earliest deadline first; with a test of admission, so that who is let in keeps its deadline and nobody else spoils it.

A job that comes is admitted if it can be done in time together with all that were admitted before it: each takes, in the order of
their deadlines, the earliest devices that those before it leave (progressive filling). Admitted jobs go first; who is not admitted
waits with that reason and runs when devices are left over, suspended again when they are needed. Source: Gu et al., ElasticFlow,
ASPLOS 2023, section 4.1: the minimum satisfactory share, here of gangs that have one size; how more devices speed up a job whose
size may change, and which of them gains most by them, is not decided here.

What a job still takes is believed to be as at its best speed, anywhere: on several kinds of devices, or spread, the promise may be
broken. Then it, and every job whose deadline has passed, is done like those that are not admitted. A job of which nobody knows how
long it is is not admitted; one without a deadline needs no admission, and neither has it a place before others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from restow.cluster import Snapshot
from restow.job import Job
from restow.placement import Schedule
from restow.policies.ranked import preemptive, remaining_s

SLACK_S = 1e-3  # a job that is done so much too late is on time: sums of seconds are rounded


@dataclass(frozen=True, slots=True)
class Edf:
    """Earliest deadline first, whoever can still keep it or not (Liu and Layland, 1973). O(jobs log jobs + devices)."""

    def decide(self, snapshot: Snapshot) -> Schedule:
        return preemptive(snapshot, due_s)

    plan = decide


@dataclass(slots=True)
class Deadline:
    """O(jobs^2) for each job that comes, in the worst case; O(jobs log jobs) else. It remembers whom it admitted; after a restart
    that is decided anew, in the order of submission."""

    _admitted: dict[str, bool] = field(default_factory=dict)

    def decide(self, snapshot: Snapshot) -> Schedule:
        now_s = snapshot.now_s
        present = {job.id: job for job in snapshot.jobs}
        self._admitted = {id: is_in for id, is_in in self._admitted.items() if id in present}
        devices = sum(len(node.devices) for node in snapshot.nodes if node.is_alive and not node.is_cordoned)
        left_s: dict[str, float] = {}
        for job in snapshot.jobs:
            if job.id not in self._admitted:
                left_s = left_s or {id: remaining_s(snapshot, present[id]) for id in present}
                before = [present[id] for id, is_in in self._admitted.items() if is_in and due_s(present[id]) > now_s]
                is_possible = job.spec.deadline_s > 0 and now_s + left_s[job.id] <= due_s(job) + SLACK_S
                self._admitted[job.id] = is_possible and keeps_all([*before, job], left_s, devices, now_s)

        def rank(job: Job) -> tuple[bool, float]:
            is_promised = self._admitted[job.id] and due_s(job) > now_s
            return not is_promised, due_s(job) if is_promised else -job.spec.priority

        schedule = preemptive(snapshot, rank)
        for job in snapshot.jobs:
            if not job.intended and not schedule.placement(job.id) and job.spec.deadline_s and not self._admitted[job.id]:
                words = "its deadline cannot be kept beside those admitted before it: runs when devices are left over"
                schedule.explain(job.id, words)
        return schedule

    plan = decide


def due_s(job: Job) -> float:
    """When it should be done; infinite if it has no deadline."""
    return job.submitted_s + job.spec.deadline_s if job.spec.deadline_s else math.inf


def keeps_all(jobs: Sequence[Job], left_s: dict[str, float], devices: int, now_s: float) -> bool:
    """Are all of these done in time, if each in the order of their deadlines takes the earliest devices that are left to it? They
    may be suspended and go on as often as need be."""
    free = [(now_s, devices), (math.inf, 0)]  # from this time on so many devices are free
    for job in sorted(jobs, key=lambda job: (due_s(job), job.submitted_s, job.id)):
        done_s = _fill(free, job.workers, left_s[job.id])
        if done_s > due_s(job) + SLACK_S:
            return False
    return True


def _fill(free: list[tuple[float, int]], workers: int, seconds: float) -> float:
    """Take so many devices for so many seconds in all, as early as there are; returns when that is over. O(parts of the time)."""
    if math.isinf(seconds):
        return math.inf
    for at in range(len(free) - 1):
        (from_s, count), (to_s, _) = free[at], free[at + 1]
        if count < workers:
            continue
        ends_s = from_s + seconds
        if ends_s <= to_s:
            if from_s < ends_s < to_s:
                free.insert(at + 1, (ends_s, count))
            if from_s < ends_s:
                free[at] = from_s, count - workers
            return ends_s
        free[at] = from_s, count - workers
        seconds -= to_s - from_s
    return math.inf
