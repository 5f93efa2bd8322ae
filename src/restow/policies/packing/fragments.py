"""How much of what is left of a machine is of no use, for the jobs that there are.

Two measures, in devices, for each machine. `fragments`: what the next job could not have, on average over the mix: all of it, where
the job does not fit, else the devices that have too little left for it. Source: Weng et al., FGD (ATC 2023), section 4, as its
simulator counts it. `stranded`: devices for which cores or memory would be missing, if what comes wants as much of them with each
device as the mix does on average. FGD looks one job ahead, and fills a machine with whoever fits until its cores are gone and
devices are left over; the second measure sees that from the first job on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy

from restow.policies.packing.ground import Floats, Left
from restow.policies.packing.wants import PARTS, Mix, Want


class Fragments:
    """`runs`: want → kinds of devices on which it can run; `kinds`: of each machine."""

    def __init__(self, mix: Mix, runs: Mapping[Want, Collection[str]], kinds: list[str]):
        wants = list(mix.parts)
        self._weight = numpy.array(list(mix.parts.values()))
        self._parts = numpy.array([want.parts for want in wants], dtype=numpy.int64)
        self._levels, self._level_of = numpy.unique(self._parts, return_inverse=True)
        self._workers = numpy.array([want.workers for want in wants])
        self._cores = numpy.array([want.cores for want in wants])
        rows = {kind: [kind in runs.get(want, ()) for want in wants] for kind in set(kinds)}
        self._runs = numpy.array([rows[kind] for kind in kinds], dtype=bool).reshape(len(kinds), len(wants))
        self._cores_each, self._host_each = mix.per_device("cores"), mix.per_device("host_bytes")

    def fragments(self, left: Left) -> Floats:
        """O(machines x (wants + sizes of parts x devices of a machine))."""
        has = numpy.maximum(left.parts, 0)
        enough = left.parts[:, None, :] >= self._levels[None, :, None]
        usable = (has[:, None, :] * enough).sum(axis=2)[:, self._level_of]
        fits = self._runs[left.at] & (self._parts > 0) & (enough.sum(axis=2)[:, self._level_of] >= self._workers)
        fits &= left.cores[:, None] >= self._cores
        found: Floats = (has.sum(axis=1) * self._weight.sum() - (fits * usable) @ self._weight) / PARTS
        return found

    def stranded(self, left: Left) -> Floats:
        found = numpy.zeros(len(left.at))
        for has, each in ((left.cores, self._cores_each), (left.host, self._host_each)):
            if each > 0:
                found = numpy.maximum(found, left.devices - has / each)
        return found

    def less_fragments(self, before: Left, after: Left) -> Floats:
        return self.fragments(before) - self.fragments(after)

    def less_lost(self, before: Left, after: Left) -> Floats:
        """By both measures."""
        return self.less_fragments(before, after) + self.stranded(before) - self.stranded(after)
