"""A policy of one's own: the smallest gangs first, on the tightest machines; nobody is interrupted.

    restow simulate jobs.csv --cluster 8x4 --policy fifo,examples/policies/smallest_first.py
"""

from __future__ import annotations

from restow.cluster import Snapshot
from restow.placement import Schedule
from restow.policies.room import Room


class SmallestFirst:
    def decide(self, snapshot: Snapshot) -> Schedule:
        schedule = Schedule()
        for job in snapshot.jobs:
            if job.intended:  # it has devices, or was promised some
                schedule.put(job.id, job.intended)
        room = Room.of(snapshot, schedule.placements.values())
        waiting = [job for job in snapshot.jobs if job.waits and not job.intended]
        for job in sorted(waiting, key=lambda job: (job.workers, job.submitted_s, job.id)):
            place = next(filter(None, (room.find(job.workers, kind) for kind in room.kinds)), None)
            if place:
                schedule.put(job.id, place, "the smallest one that fits")
                room.take(place)
            else:
                schedule.explain(job.id, f"needs {job.workers} devices, {room.free()} are free")
        return schedule

    plan = decide


policy = SmallestFirst
