"""What policies that rank their jobs have in common: the first ones that fit run, whoever runs already stays where it is.

A gang lies on devices of one kind: the one on which it is believed to be fastest, of those that have room.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from restow.cluster import Snapshot
from restow.job import Job, JobState
from restow.placement import Placement, Schedule, devices_held
from restow.policies.board import why_not_back
from restow.policies.room import Room

Rank = Callable[[Job], Any]
"""What jobs are sorted by, the least first; ids break ties."""


def preemptive(snapshot: Snapshot, rank: Rank) -> Schedule:
    """The first ones that fit together, by number of devices; others that run are suspended. O(jobs log jobs + devices)."""
    ordered = sorted(snapshot.jobs, key=lambda job: (rank(job), job.submitted_s, job.id))
    left: float = sum(len(node.devices) for node in snapshot.nodes if node.is_alive and not node.is_cordoned)
    chosen: list[Job] = []
    schedule = Schedule()
    for job in ordered:
        needs = devices_held(job.intended) or job.workers
        if is_stuck(job, snapshot.now_s):
            left -= needs
            if job.intended:
                schedule.put(job.id, job.intended)
        elif not job.intended and (why_not := why_not_back(job, snapshot)):
            schedule.explain(job.id, why_not)
        elif needs <= left:
            left -= needs
            chosen.append(job)
        else:
            schedule.explain(job.id, _waits(job, int(left)))
    room = Room.of(snapshot, schedule.placements.values())
    for job in chosen:
        if job.intended:
            schedule.put(job.id, job.intended)
            room.take(job.intended)
    place(snapshot, [job for job in chosen if not job.intended], room, schedule)
    return schedule


def in_order(snapshot: Snapshot, rank: Rank, *, backfill: bool) -> Schedule:
    """Whoever runs stays; of those that wait the first ones that fit are started. `backfill`: not only up to the first one that
    does not fit."""
    schedule = Schedule()
    for job in snapshot.jobs:
        if job.intended:
            schedule.put(job.id, job.intended)
    room = Room.of(snapshot, schedule.placements.values())
    waiting = [job for job in snapshot.jobs if job.waits and not job.intended]
    for job in sorted(waiting, key=lambda job: (rank(job), job.submitted_s, job.id)):
        if why_not := why_not_back(job, snapshot):
            schedule.explain(job.id, why_not)
        elif not place(snapshot, [job], room, schedule) and not backfill:
            break
    return schedule


def place(snapshot: Snapshot, jobs: Sequence[Job], room: Room, schedule: Schedule) -> bool:
    """Each on devices of one kind; true if all have some."""
    is_whole = True
    for job in jobs:
        found = {placement: step_s(snapshot, job, placement) for kind in room.kinds if (placement := room.find(job.workers, kind))}
        best = min(found, key=lambda placement: found[placement], default=())
        if best and math.isfinite(found[best]):
            schedule.put(job.id, best, "starts, since it is its turn")
            room.take(best)
        elif best:
            is_whole = False
            schedule.explain(job.id, "waits for devices on which it is known to run")
        else:
            is_whole = False
            schedule.explain(job.id, _waits(job, room.free()))
    return is_whole


def step_s(snapshot: Snapshot, job: Job, placement: Placement) -> float:
    """What a step is believed to take there; the same everywhere where nothing is believed."""
    return snapshot.forecast.step_s(job, placement) if snapshot.forecast else 1.0


def remaining_s(snapshot: Snapshot, job: Job) -> float:
    """Until it ends, at its best speed, or at what it had last where only that is known; infinite where nobody knows. Not at its
    present speed: a job would rank otherwise when it runs than when it waits, and two could suspend each other for ever."""
    if job.steps_wanted is None:
        return math.inf
    seconds = snapshot.forecast.alone_s(job) if snapshot.forecast else job.profile.alone_step_s or job.profile.step_s or 1.0
    return max(0.0, job.steps_wanted - job.steps_by(snapshot.now_s)) * seconds


def is_stuck(job: Job, now_s: float) -> bool:
    """Is it in the middle of something, or did the last attempt fail a short while ago, so that it stays where it is for now?"""
    is_between = job.state in (JobState.STARTING, JobState.STOPPING) or bool(job.exited) or now_s < job.not_before_s
    return is_between or job.switch is not None or (job.state is JobState.RUNNING and not job.movable)


def _waits(job: Job, free: int) -> str:
    return f"waits for {job.workers} devices, {free} are left by those before it"
