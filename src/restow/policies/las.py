"""Least attained service first, whole gangs only: a job's service is the device seconds that it has held so far.

Service counts in levels, so that two equal jobs do not take turns at every decision; within a level the first come, first served.
Source: Gu et al., Tiresias (NSDI 2019), discretized two-dimensional LAS with queues at 1 and 16 device hours by default.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from restow.cluster import Snapshot
from restow.placement import Schedule
from restow.policies.ranked import preemptive

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Las:
    """`levels_s`: service at which a job falls to the next level, ascending; empty: service itself."""

    levels_s: tuple[float, ...] = (HOUR_S, 16 * HOUR_S)

    def decide(self, snapshot: Snapshot) -> Schedule:
        def level(service_s: float) -> float:
            return bisect_right(self.levels_s, service_s) if self.levels_s else service_s

        return preemptive(snapshot, lambda job: (-job.spec.priority, level(job.service_s(snapshot.now_s))))

    plan = decide
