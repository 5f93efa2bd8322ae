"""Shortest remaining time first, or remaining service (time by devices): whoever is done soonest runs, others are suspended.

Best for the average completion time on one machine; on several, gangs that are large wait long. It needs to know how long jobs are:
those that nobody knows come last, by service.
"""

from __future__ import annotations

from dataclasses import dataclass

from restow.cluster import Snapshot
from restow.job import Job
from restow.placement import Schedule
from restow.policies.ranked import preemptive, remaining_s


@dataclass(frozen=True, slots=True)
class Srtf:
    """`counts_devices`: remaining service instead of remaining time (SRSF)."""

    counts_devices: bool = False

    def decide(self, snapshot: Snapshot) -> Schedule:
        def rank(job: Job) -> tuple[float, float]:
            left_s = remaining_s(snapshot, job) * (job.workers if self.counts_devices else 1)
            return left_s, job.service_s(snapshot.now_s)

        return preemptive(snapshot, rank)

    plan = decide
