"""A policy of one's own: first come, first served, but the first gang that does not fit has devices put aside for it, so that small
jobs which came later cannot keep it waiting for ever; until then only jobs that are over soon enough may have them.

    restow simulate jobs.csv --cluster 8x4 --policy fifo,examples/policies/no_waiting_gangs.py

Known as EASY backfilling: Lifka, The ANL/IBM SP Scheduling System, 1995.
"""

from __future__ import annotations

from restow.cluster import Snapshot
from restow.job import Job
from restow.placement import Schedule
from restow.policies.ranked import place, remaining_s
from restow.policies.room import Room


class NoWaitingGangs:
    def decide(self, snapshot: Snapshot) -> Schedule:
        schedule = Schedule()
        running = [job for job in snapshot.jobs if job.intended]
        for job in running:
            schedule.put(job.id, job.intended)
        room = Room.of(snapshot, schedule.placements.values())
        spare_s = float("inf")  # until the first one that did not fit has its devices
        for job in (job for job in snapshot.jobs if job.waits and not job.intended):
            if remaining_s(snapshot, job) > spare_s:
                schedule.explain(job.id, "would keep a gang waiting that came before it")
            elif not place(snapshot, [job], room, schedule) and spare_s == float("inf"):
                spare_s = self._frees_s(snapshot, running, job.workers - room.free())
        return schedule

    plan = decide

    def _frees_s(self, snapshot: Snapshot, running: list[Job], wanted: int) -> float:
        """Until so many more devices are free."""
        for left_s, devices in sorted((remaining_s(snapshot, job), len(job.intended)) for job in running):
            wanted -= devices
            if wanted <= 0:
                return left_s
        return float("inf")


policy = NoWaitingGangs
