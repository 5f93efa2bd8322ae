"""Best fit: each job goes to the machine that has least left afterwards, cores and devices counted alike; nobody moves.

As a baseline of Weng et al. (FGD, USENIX ATC 2023) has it: the mean of both, each by the most that a machine has.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from restow.cluster import Snapshot
from restow.placement import Schedule
from restow.policies.packing.fragments import Fragments
from restow.policies.packing.ground import Floats, Left
from restow.policies.packing.in_order import in_order
from restow.policies.packing.packing import Packing


@dataclass(slots=True)
class BestFit:
    _packing: Packing = field(init=False)
    _cores_most: float = 1.0
    _devices_most: int = 1

    def __post_init__(self) -> None:
        self._packing = Packing(self._tightness)

    def decide(self, snapshot: Snapshot) -> Schedule:
        self._cores_most = max((node.cores for node in snapshot.nodes), default=0.0)
        self._devices_most = max((len(node.devices) for node in snapshot.nodes), default=1)
        return in_order(snapshot, self._packing, lambda job: "starts on the tightest machine that has room")

    plan = decide

    def _tightness(self, fragments: Fragments, before: Left, after: Left) -> Floats:
        devices = after.devices / self._devices_most
        return -(devices + after.cores / self._cores_most) / 2 if self._cores_most else -devices
