"""What jobs want of one machine, all their workers together: jobs that want the same are placed alike and counted together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from restow.cluster import Snapshot
from restow.job import Job
from restow.placement import Slot

PARTS = 1_000_000  # of a device; whole numbers, so that what is taken and given back adds up


class Want(NamedTuple):
    """`parts` of each of `workers` devices; cores and memory of all workers. `name`: what its speed is known by."""

    workers: int
    parts: int
    cores: float
    host_bytes: int
    name: str

    @property
    def devices(self) -> float:
        """In all, parts counted as such."""
        return self.workers * self.parts / PARTS


def want_of(job: Job) -> Want:
    demand = job.spec.demand
    parts = math.ceil(demand.share * PARTS - 1e-3)
    return Want(job.workers, parts, job.workers * demand.cores, job.workers * demand.host_bytes, job.spec.name)


class Mix:
    """How often what is wanted: each want's part of all jobs that say what they want."""

    def __init__(self, counts: Counter[Want]):
        total = sum(counts.values())
        self.parts: dict[Want, float] = {want: count / total for want, count in sorted(counts.items())}

    @classmethod
    def of(cls, jobs: Iterable[Job]) -> Mix:
        return cls(Counter(want_of(job) for job in jobs if job.spec.demand.is_declared))

    def per_device(self, resource: str) -> float:
        """Cores, or bytes, that go with a whole device on average, over those that want devices."""
        wanting = [(want, part) for want, part in self.parts.items() if want.parts]
        devices = sum(want.devices * part for want, part in wanting)
        return sum(getattr(want, resource) * part for want, part in wanting) / devices if devices else 0.0


class Kinds:
    """On which kinds of devices a job can run, as it is believed; asked once for each name and number of workers."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], frozenset[str]] = {}

    def of(self, job: Job, snapshot: Snapshot) -> frozenset[str]:
        key = job.spec.name, job.workers
        if key not in self._known:
            self._known[key] = self._find(job, snapshot)
        return self._known[key]

    def _find(self, job: Job, snapshot: Snapshot) -> frozenset[str]:
        found: dict[str, bool] = {}
        for node in snapshot.nodes:
            kind = node.devices[0].kind if node.devices else ""
            if len(node.devices) < job.workers or found.get(kind):
                continue
            there = tuple(Slot(node.name, device.index) for device in node.devices[: job.workers])
            found[kind] = snapshot.forecast is None or math.isfinite(snapshot.forecast.step_s(job, there))
        return frozenset(kind for kind, runs in found.items() if runs)
