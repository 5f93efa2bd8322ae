"""A policy of one's own: nobody has a second job running while somebody else has none; nobody is interrupted.

    restow simulate jobs.csv --cluster 8x4 --policy fair,examples/policies/one_each.py

Who it is says `tenant` in the spec or the trace.
"""

from __future__ import annotations

from collections import Counter

from restow.cluster import Snapshot
from restow.placement import Schedule
from restow.policies.ranked import place
from restow.policies.room import Room


class OneEach:
    def decide(self, snapshot: Snapshot) -> Schedule:
        schedule = Schedule()
        running = Counter(job.spec.tenant for job in snapshot.jobs if job.intended)
        for job in snapshot.jobs:
            if job.intended:
                schedule.put(job.id, job.intended)
        room = Room.of(snapshot, schedule.placements.values())
        waiting = [job for job in snapshot.jobs if job.waits and not job.intended]
        while waiting:
            job = min(waiting, key=lambda job: (running[job.spec.tenant], job.submitted_s, job.id))
            waiting.remove(job)
            if place(snapshot, [job], room, schedule):
                running[job.spec.tenant] += 1
        return schedule

    plan = decide


policy = OneEach
