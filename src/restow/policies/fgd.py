"""FGD: each job goes where it makes least of what is left useless for the jobs that there usually are; nobody moves.

Source: Weng et al., Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent (USENIX ATC
2023), algorithm 1, with the counting of its simulator (hkust-adsl/kubernetes-scheduler-simulator). There the score is cut to a
hundred steps and equal ones are drawn by lot; here it is exact, and the machine that comes first is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from restow.cluster import Snapshot
from restow.placement import Schedule
from restow.policies.packing.fragments import Fragments
from restow.policies.packing.in_order import in_order
from restow.policies.packing.packing import Packing
from restow.policies.packing.wants import Mix


@dataclass(slots=True)
class Fgd:
    """`mix`: what jobs usually want, if that is known beforehand, as the paper takes it from past traces; else what those there
    want."""

    mix: Mix | None = None
    _packing: Packing = field(init=False)

    def __post_init__(self) -> None:
        self._packing = Packing(Fragments.less_fragments, self.mix)

    def decide(self, snapshot: Snapshot) -> Schedule:
        """O(jobs + waiting wants x machines); a machine is judged anew only after something changed there."""
        return in_order(snapshot, self._packing, lambda job: "starts where it leaves least that nobody can use")

    plan = decide
