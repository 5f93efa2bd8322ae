"""What a job is worth, per second, on some devices: the part of what is left of it that is done there in a second.

    worth = speed there, of its best anywhere / seconds that it would still take at its best

Added up over all jobs it is how many jobs get done per second, if everything stayed as it is: what is largest for the shortest
job on the device that suits it best is what makes jobs wait least on average (Schrage, 1968: shortest remaining time first, here
with devices of several kinds and several jobs on one).

How long a job still takes is what it says; of one that does not say, as long as it has taken already, which for lifetimes spread
evenly over orders of magnitude, as those of training jobs are, is the best single guess (Gu et al., Tiresias, NSDI 2019).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from restow.cluster import Forecast, Node, Snapshot
from restow.job import Job
from restow.placement import Placement, is_scattered
from restow.policies.room import Room
from restow.policies.worth.urgency import Urgency

Key = tuple[object, ...]
LEAST_LEFT_S = 30.0  # of a job that is nearly done: a shorter one could not be told from it


@dataclass(slots=True)
class Speeds:
    """What is believed of each model, asked once for each gang size and kind of device; kept from decision to decision."""

    _alone: dict[Key, float] = field(default_factory=dict)
    _beside: dict[Key, float] = field(default_factory=dict)
    _best: dict[Key, float] = field(default_factory=dict)


class Valuation:
    """Of one snapshot. `first_s`: what is left of a job that does not say how long it is, at least; `power`: how much the shorter
    one goes first (1: as is best for the average; less: long ones wait less)."""

    def __init__(self, snapshot: Snapshot, forecast: Forecast, speeds: Speeds, *, first_s: float, power: float, urgency: Urgency):
        self._snapshot, self._forecast, self._speeds = snapshot, forecast, speeds
        self._kind = snapshot.kinds()
        self._left_s = {job.id: self._estimated_s(job, first_s) for job in snapshot.jobs}
        known = [job for job in snapshot.jobs if job.steps_wanted is not None and math.isfinite(self.left_s(job))]
        usual_s = {job.id: self._usual_s(job) for job in known}
        work_s = [usual_s[job.id] * job.workers for job in known]
        factors = urgency.factors(usual_s, work_s, len(self._kind))
        self._weights: dict[str, float] = {id: left_s**-power * factors.get(id, 1.0) for id, left_s in self._left_s.items()}

    def kind(self, placement: Placement) -> str:
        """Of its devices, which are all of one."""
        return self._kind[placement[0][:2]]

    # ------------------------------------------------------------ how much is left

    def left_s(self, job: Job) -> float:
        """Seconds at its best speed; infinite if it can run nowhere."""
        return self._left_s[job.id]

    def _estimated_s(self, job: Job, first_s: float) -> float:
        best_s = self.best_s(job)
        if not math.isfinite(best_s):
            return math.inf
        done = job.steps_by(self._snapshot.now_s)
        if job.steps_wanted is None:
            return max(first_s, done * best_s)
        return max(LEAST_LEFT_S, (job.steps_wanted - done) * best_s)

    def _usual_s(self, job: Job) -> float:
        """How long it still takes if it has each kind for as much of the time as there is of it."""
        key: Key = (self._forecast.alike(job), "usual")
        if key not in self._speeds._best:
            counts = Counter(self._kind.values())
            mean = sum(count * self.together(job, kind) for kind, count in counts.items()) / len(self._kind)
            self._speeds._best[key] = mean or 1.0
        return self.left_s(job) / self._speeds._best[key]

    def weight(self, job: Job) -> float:
        """One by what is left of it, more where it is urgent; 0 if it can run nowhere."""
        return self._weights[job.id]

    # ------------------------------------------------------------ how fast

    def best_s(self, job: Job) -> float:
        key: Key = (self._forecast.alike(job),)
        if key not in self._speeds._best:
            self._speeds._best[key] = self._forecast.alone_s(job)
        return self._speeds._best[key]

    def speed(self, job: Job, placement: Placement, beside: Sequence[Job] = ()) -> float:
        """Part of its best speed; 0 where it cannot run. `beside`: at most one other, which has the very same devices."""
        key: Key = (self._forecast.alike(job), len(placement), self.kind(placement), is_scattered(placement))
        if not beside:
            found = self._speeds._alone
            seconds = found.get(key)
            if seconds is None:
                seconds = found[key] = self._forecast.step_s(job, placement)
        else:
            key, found = (*key, self._forecast.alike(beside[0])), self._speeds._beside
            seconds = found.get(key)
            if seconds is None:
                seconds = found[key] = self._forecast.step_s(job, placement, [(other, placement) for other in beside])
        return self.best_s(job) / seconds if 0 < seconds < math.inf else 0.0

    def worth(self, jobs: Sequence[Job], placement: Placement) -> float:
        """Of one or two that are there together."""
        return sum(
            self.weight(job) * self.speed(job, placement, [other for other in jobs if other is not job]) for job in jobs
        )

    def together(self, job: Job, kind: str) -> float:
        """Its speed on this kind if it has the fewest machines of it that can hold it; 0 if there are not so many devices."""
        key: Key = (self._forecast.alike(job), kind)
        if key not in self._speeds._best:
            placement = Room(self._of_kind(kind)).find(job.workers, kind)
            self._speeds._best[key] = self.speed(job, placement) if placement else 0.0
        return self._speeds._best[key]

    def _of_kind(self, kind: str) -> list[Node]:
        return [node for node in self._snapshot.nodes if any(device.kind == kind for device in node.devices)]
