"""Even parts for tenants: whoever's tenant holds least of the devices goes next, whole gangs only.

Max-min fairness of the dominant share, which for jobs that want devices only is their part of the devices: the tenant with the
least share, by its weight, is given its next job until nothing fits. Source: Ghodsi et al., Dominant Resource Fairness, NSDI 2011,
algorithm 1. Nobody keeps a claim from times when it held less: one tenant may have all devices, and gives them back, its last jobs
suspended, when others submit. A gang that does not fit when its tenant is next is passed by: one that wants nearly the whole
cluster waits as long as others keep submitting.

Jobs without a tenant are one tenant together. Within a tenant: priority, then first come, first served.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from restow.cluster import Snapshot
from restow.job import Job
from restow.placement import Schedule, devices_held
from restow.policies.ranked import is_stuck, preemptive


@dataclass(frozen=True, slots=True)
class Fair:
    """`weights`: of tenants, 1 for those that are not named. O(jobs log jobs + devices)."""

    weights: Mapping[str, float] = field(default_factory=dict)

    def decide(self, snapshot: Snapshot) -> Schedule:
        order = {job.id: number for number, job in enumerate(self._in_turn(snapshot))}
        return preemptive(snapshot, lambda job: order[job.id])

    plan = decide

    def _in_turn(self, snapshot: Snapshot) -> list[Job]:
        """All jobs: next is always the first one of the tenant that then has least, among equals of the first that came."""
        waiting: dict[str, list[Job]] = defaultdict(list)  # tenant → its jobs, the first one last
        held: dict[str, float] = defaultdict(float)
        found: list[Job] = []
        left: float = sum(len(node.devices) for node in snapshot.nodes if node.is_alive and not node.is_cordoned)
        for job in sorted(snapshot.jobs, key=lambda job: (job.spec.priority, -job.submitted_s, job.id)):
            if is_stuck(job, snapshot.now_s):
                left -= _needs(job)
                held[job.spec.tenant] += devices_held(job.intended) / self._weight(job.spec.tenant)
                found.append(job)
            else:
                waiting[job.spec.tenant].append(job)
        heap = [(held[tenant], jobs[-1].submitted_s, tenant) for tenant, jobs in waiting.items()]
        heapq.heapify(heap)
        while heap:
            share, _, tenant = heapq.heappop(heap)
            job = waiting[tenant].pop()
            found.append(job)
            if _needs(job) <= left:
                left -= _needs(job)
                share += _needs(job) / self._weight(tenant)
            if waiting[tenant]:
                heapq.heappush(heap, (share, waiting[tenant][-1].submitted_s, tenant))
        return found

    def _weight(self, tenant: str) -> float:
        return self.weights.get(tenant, 1.0)


def _needs(job: Job) -> float:
    return devices_held(job.intended) or job.workers
