"""How fast jobs are on some devices: what is believed where anything is (Snapshot.forecast), else what was measured of them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from restow.cluster import Snapshot
from restow.job import Job
from restow.perf import predict_step_s
from restow.placement import Placement
from restow.policies.gandiva.units import Unit
from restow.policies.room import Room


class Speeds:
    """Of one snapshot. Seconds of a step; infinite where a job cannot run, 0 where nobody knows."""

    def __init__(self, snapshot: Snapshot):
        self._snapshot = snapshot
        self._empty = Room(snapshot.nodes)
        self._kind = snapshot.kinds()
        self._places: dict[tuple[int, str], Placement] = {}
        self._together_s: dict[Hashable, float] = {}

    @property
    def is_forecast(self) -> bool:
        return self._snapshot.forecast is not None

    @property
    def kinds(self) -> list[str]:
        return self._empty.kinds

    def kind(self, placement: Placement) -> str:
        """Of its devices, which are all of one."""
        return self._kind[placement[0][:2]]

    def devices(self, kind: str = "") -> int:
        return self._empty.free(kind)

    def alone_s(self, job: Job, placement: Placement) -> float:
        if self._snapshot.forecast:
            return self._snapshot.forecast.step_s(job, placement)
        if job.intended and len(placement) == len(job.intended) and job.profile.step_s > 0:
            return predict_step_s(job.profile, job.intended, placement, self._snapshot)
        return job.profile.alone_step_s

    def together_s(self, job: Job, kind: str) -> float:
        """On the fewest machines of a kind."""
        forecast = self._snapshot.forecast
        key = (forecast.alike(job) if forecast else job.id), job.workers, kind
        if key not in self._together_s:
            place = self.place(job.workers, kind)
            self._together_s[key] = self.alone_s(job, place) if place else math.inf
        return self._together_s[key]

    def best_s(self, job: Job) -> float:
        return min((self.together_s(job, kind) for kind in self.kinds), default=0.0)

    def fastest_first(self, jobs: Sequence[Job]) -> list[str]:
        """The kinds, by how fast these jobs are there on average, each by its best."""
        if len(self.kinds) < 2:
            return self.kinds
        parts = dict.fromkeys(self.kinds, 0.0)
        for job in jobs:
            seconds = {kind: self.together_s(job, kind) for kind in self.kinds}
            best_s = min(seconds.values())
            for kind, s in seconds.items():
                parts[kind] += best_s / s if 0 < s < math.inf else 0.0
        return sorted(parts, key=lambda kind: (-parts[kind], kind))

    def fits(self, unit: Unit, kind: str) -> bool:
        """Is it known to run there, beside each other if it is a pair? Without a forecast everything is thought to."""
        place, forecast = self.place(unit.workers, kind), self._snapshot.forecast
        if not place or not forecast:
            return bool(place)
        for job in unit.jobs:
            beside = [(other, place) for other in unit.jobs if other is not job]
            if not math.isfinite(forecast.step_s(job, place, beside)):
                return False
        return True

    def place(self, workers: int, kind: str) -> Placement:
        """One of this kind, as if nobody were there; empty: there are not so many devices."""
        if (workers, kind) not in self._places:
            self._places[workers, kind] = self._empty.find(workers, kind) or ()
        return self._places[workers, kind]
