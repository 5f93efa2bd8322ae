"""FGD: each job goes where it makes least of what is left useless for the jobs that there usually are; nobody moves.

Source: Weng et al., Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent (USENIX ATC
2023), algorithm 1, with the counting of its simulator (hkust-adsl/kubernetes-scheduler-simulator): the score is cut
to a hundred steps, and machines of equal score are drawn by lot; here the lot is a checksum of the job's id, so that runs repeat.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy

from restow.cluster import Snapshot
from restow.placement import Schedule
from restow.policies.packing.fragments import Fragments
from restow.policies.packing.ground import Floats, Left
from restow.policies.packing.in_order import in_order
from restow.policies.packing.packing import Packing
from restow.policies.packing.wants import Mix

STEPS = 100


@dataclass(slots=True)
class Fgd:
    """`mix`: what jobs usually want, if that is known beforehand, as the paper takes it from past traces; else what those there
    want."""

    mix: Mix | None = None
    _packing: Packing = field(init=False)

    def __post_init__(self) -> None:
        self._packing = Packing(_score, self.mix)

    def decide(self, snapshot: Snapshot) -> Schedule:
        """O(jobs + waiting wants x machines); a machine is judged anew only after something changed there."""
        return in_order(
            snapshot, self._packing, lambda job: "starts where it leaves least that nobody can use",
            lambda job: zlib.crc32(job.id.encode()),
        )  # fmt: skip

    plan = decide


def _score(fragments: Fragments, before: Left, after: Left) -> Floats:
    score: Floats = numpy.floor(STEPS / (1.0 + numpy.exp(-fragments.less_fragments(before, after))))
    return score
