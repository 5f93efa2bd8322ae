"""Places for jobs that say what they want of one machine: the ground, the mix and the packer, brought up to date for a decision."""

from __future__ import annotations

from collections.abc import Callable

import numpy

from restow.cluster import Snapshot
from restow.job import Job
from restow.placement import Placement
from restow.policies.packing.fragments import Fragments
from restow.policies.packing.ground import Bools, Floats, Ground, Left
from restow.policies.packing.packer import Packer
from restow.policies.packing.wants import Kinds, Mix, Want, want_of

GROWN = 0.25  # the mix is counted anew when there are so many more jobs, or fewer: all that was found is void then


Measuring = Callable[[Fragments, Left, Left], Floats]
"""(fragments, before, afterwards) → how good that is, for each machine."""


class Packing:
    """Kept from decision to decision. `mix`: what jobs usually want, where that is known; else it is what those there want."""

    def __init__(self, measuring: Measuring, mix: Mix | None = None):
        self.ground = Ground()
        self.kinds = Kinds()
        self.packer = Packer(self.ground, lambda before, after: measuring(self._fragments, before, after))
        self._fixed = mix
        self._counted = 0
        self._runs: dict[Want, frozenset[str]] = {}
        self._allowed: dict[frozenset[str], Bools] = {}
        self._fragments: Fragments
        self._names: list[str] = []

    def renew(self, snapshot: Snapshot) -> None:
        self.ground.renew(snapshot)
        is_other = self.ground.names != self._names
        jobs = len(snapshot.jobs)
        if is_other or abs(jobs - self._counted) > GROWN * self._counted:
            self._names, self._counted = self.ground.names, jobs
            self._count(snapshot)
        self._allowed.clear()

    def _count(self, snapshot: Snapshot) -> None:
        mix = self._fixed or Mix.of(snapshot.jobs)
        self._runs = {want_of(job): self.kinds.of(job, snapshot) for job in snapshot.jobs if job.spec.demand.is_declared}
        named = {want.name: kinds for want, kinds in self._runs.items()}
        everywhere = frozenset(self.ground.kinds)
        runs = {want: self._runs.get(want, named.get(want.name, everywhere)) for want in mix.parts}
        self._fragments = Fragments(mix, runs, self.ground.kinds)
        self.packer.forget()

    def find(
        self, job: Job, snapshot: Snapshot, *, without: Bools | None = None, lot: int = 0
    ) -> tuple[float, Placement] | None:  # fmt: skip
        """The best place and how good it is; None where there is none. `without`: machines that are not to be taken; `lot`: see
        Packer.best."""
        allowed = self.allowed(self.kinds.of(job, snapshot))
        found = self.packer.best(want_of(job), allowed if without is None else allowed & ~without, lot)
        if found is None:
            return None
        score, at, columns = found
        return score, self.ground.slots(at, columns, job.spec.demand.share)

    def allowed(self, kinds: frozenset[str]) -> Bools:
        if kinds not in self._allowed:
            self._allowed[kinds] = self.ground.is_open & numpy.array([kind in kinds for kind in self.ground.kinds], dtype=bool)
        return self._allowed[kinds]
