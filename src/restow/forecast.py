"""What is believed of the jobs' speeds in a live cluster: what was measured of each of them, carried over to other devices by
perf.py. The other forecast is the simulator's, from tables."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import median

from restow.cluster import Snapshot
from restow.job import Job
from restow.perf import predict_step_s
from restow.placement import Placement, count_by_node

USUAL_S = 1.0  # of a step, where nothing was measured of any job


class FromProfiles:
    """Of one snapshot. A job that has not run yet is believed to be equally fast everywhere, with steps as long as the others'.

    It knows nothing of jobs that share devices: who shares, and what it cost them, the default policy learns by itself.
    """

    def __init__(self, snapshot: Snapshot):
        self._snapshot = snapshot
        self._kinds = snapshot.kinds()
        self._usual_s = median([job.profile.step_s for job in snapshot.jobs if job.profile.step_s > 0] or [USUAL_S])
        self._best_s: dict[str, float] = {}

    def step_s(self, job: Job, placement: Placement, beside: Sequence[tuple[Job, Placement]] = ()) -> float:
        if beside:
            return math.inf
        here = job.placement or (job.kept.placement if job.kept else ())
        measured_s = job.profile.alone_step_s or job.profile.step_s
        if not here or measured_s <= 0:
            return measured_s or self._usual_s
        return predict_step_s(job.profile, here, placement, self._snapshot)

    def alone_s(self, job: Job) -> float:
        """On the best of one machine of each sort, or of as many as it takes; where it is, if that is better."""
        if job.id not in self._best_s:
            places = [place for kind in sorted(set(self._kinds.values())) if (place := self._together(job.workers, kind))]
            places += [job.placement] if job.placement else []
            self._best_s[job.id] = min((self.step_s(job, place) for place in places), default=math.inf)
        return self._best_s[job.id]

    def _together(self, workers: int, kind: str) -> Placement:
        """On the fewest machines of this kind, whoever is there now; empty if there are not so many devices."""
        by_size = sorted(self._snapshot.nodes, key=lambda node: (-len(node.devices), node.name))
        on = {node.name: [slot for slot in self._snapshot.slots if slot.node == node.name] for node in by_size}
        slots = [slot for node in by_size for slot in on[node.name] if self._kinds[slot[:2]] == kind]
        return tuple(slots[:workers]) if len(slots) >= workers else ()

    def stages_s(self, job: Job) -> tuple[float, float, float] | None:
        """A live job says how long it waits for data and for its network; what computing hides is not seen."""
        profile = job.profile
        if profile.step_s <= 0:
            return None
        return profile.data_s, profile.step_s - profile.data_s - profile.exposed_s - profile.waited_s, profile.exposed_s

    def alike(self, job: Job) -> Hashable:
        return job.id

    def place(self, placement: Placement) -> Hashable:
        """What perf.py looks at: the machines, how many ranks each has, and of which kind its devices are."""
        kinds = sorted({self._kinds.get(slot[:2], "") for slot in placement})
        return tuple(kinds), tuple(count_by_node(placement).items())
