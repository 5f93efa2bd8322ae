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
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from restow.cluster import Forecast, Node, Snapshot
from restow.job import Job
from restow.placement import Placement
from restow.policies.room import Room
from restow.policies.worth.floor import Group
from restow.policies.worth.urgency import Urgency

LEAST_LEFT_S = 30.0  # of a job that is nearly done: a shorter one could not be told from it


@dataclass(slots=True)
class Speeds:
    """What is believed, asked once for jobs that are alike and places that are; kept from decision to decision."""

    best_s: dict[Hashable, float] = field(default_factory=dict)
    alone: dict[Hashable, float] = field(default_factory=dict)
    beside: dict[Hashable, float] = field(default_factory=dict)
    together: dict[Hashable, float] = field(default_factory=dict)
    usual: dict[Hashable, float] = field(default_factory=dict)
    pairs: dict[Hashable, tuple[float, float]] = field(default_factory=dict)
    places: dict[Placement, Hashable] = field(default_factory=dict)  # only those of the last decision


class Valuation:
    """Of one snapshot. `first_s`: what is left of a job that does not say how long it is, at least; `power`: how much the shorter
    one goes first (1: as is best for the average; less: long ones wait less)."""

    def __init__(self, snapshot: Snapshot, forecast: Forecast, speeds: Speeds, *, first_s: float, power: float, urgency: Urgency):
        self._snapshot, self._forecast, self._speeds = snapshot, forecast, speeds
        self._kind = snapshot.kinds()
        self._alike: dict[str, Hashable] = {job.id: (forecast.alike(job), job.workers) for job in snapshot.jobs}
        self._places_before, speeds.places = speeds.places, {}
        self._left_s = {job.id: self._estimated_s(job, first_s) for job in snapshot.jobs}
        known = [job for job in snapshot.jobs if job.steps_wanted is not None and math.isfinite(self.left_s(job))]
        usual_s = {job.id: self._usual_s(job) for job in known}
        work_s = [usual_s[job.id] * job.workers for job in known]
        factors = urgency.factors(usual_s, work_s, len(self._kind))
        self._weights: dict[str, float] = {id: left_s**-power * factors.get(id, 1.0) for id, left_s in self._left_s.items()}

    def kind(self, placement: Placement) -> str:
        """Of its devices, which are all of one."""
        return self._kind[placement[0][:2]]

    def alike(self, job: Job) -> Hashable:
        """The same for gangs of a size that are equally fast wherever they are."""
        return self._alike[job.id]

    def place(self, placement: Placement) -> Hashable:
        """The same for placements on which everybody is equally fast."""
        places = self._speeds.places
        found = places.get(placement)
        if found is None:
            found = places[placement] = self._places_before.get(placement) or self._forecast.place(placement)
        return found

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
        key = self._alike[job.id]
        found = self._speeds.usual.get(key)
        if found is None:
            counts = Counter(self._kind.values())
            mean = sum(count * self.together(job, kind) for kind, count in counts.items()) / len(self._kind)
            found = self._speeds.usual[key] = mean or 1.0
        return self._left_s[job.id] / found

    def weight(self, job: Job) -> float:
        """One by what is left of it, more where it is urgent; 0 if it can run nowhere."""
        return self._weights[job.id]

    # ------------------------------------------------------------ how fast

    def best_s(self, job: Job) -> float:
        key = self._alike[job.id]
        found = self._speeds.best_s.get(key)
        if found is None:
            found = self._speeds.best_s[key] = self._forecast.alone_s(job)
        return found

    def speed(self, job: Job, placement: Placement, beside: Sequence[Job] = ()) -> float:
        """Part of its best speed; 0 where it cannot run. `beside`: at most one other, which has the very same devices."""
        key: Hashable = self._alike[job.id], self.place(placement)
        if not beside:
            found = self._speeds.alone.get(key)
            if found is None:
                found = self._speeds.alone[key] = self._part_of_best(job, self._forecast.step_s(job, placement))
            return found
        key = key, self._alike[beside[0].id]
        found = self._speeds.beside.get(key)
        if found is None:
            seconds = self._forecast.step_s(job, placement, [(other, placement) for other in beside])
            found = self._speeds.beside[key] = self._part_of_best(job, seconds)
        return found

    def pair(self, job: Job, other: Job, placement: Placement) -> tuple[float, float]:
        """Beside the other, which is there: the part of its best speed that it would have (0 if either could not run), and the
        part that the other would lose."""
        key = self._alike[job.id], self._alike[other.id], self.place(placement)
        found = self._speeds.pairs.get(key)
        if found is None:
            here, there = self.speed(job, placement, [other]), self.speed(other, placement, [job])
            found = (here if there > 0 else 0.0), self.speed(other, placement) - there
            self._speeds.pairs[key] = found
        return found

    def _part_of_best(self, job: Job, seconds: float) -> float:
        return self.best_s(job) / seconds if 0 < seconds < math.inf else 0.0

    def worth(self, group: Group) -> float:
        """Of the one or two that are there together."""
        if len(group.jobs) == 1:
            return self._weights[group.jobs[0].id] * self.speed(group.jobs[0], group.placement)
        one, other = group.jobs
        return self.weight(one) * self.speed(one, group.placement, [other]) + self.weight(other) * self.speed(
            other, group.placement, [one]
        )

    def together(self, job: Job, kind: str) -> float:
        """Its speed on this kind if it has the fewest machines of it that can hold it; 0 if there are not so many devices."""
        key = self._alike[job.id], kind
        found = self._speeds.together.get(key)
        if found is None:
            placement = Room(self._of_kind(kind)).find(job.workers, kind)
            found = self._speeds.together[key] = self.speed(job, placement) if placement else 0.0
        return found

    def _of_kind(self, kind: str) -> list[Node]:
        return [node for node in self._snapshot.nodes if any(device.kind == kind for device in node.devices)]
