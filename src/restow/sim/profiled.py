"""The world of jobs of which something was measured: each is as fast as perf.py predicts from that, beside others as fast as turns
inside their steps leave it.

A gang that was measured in several places goes by the one that is most like where it is. What this world does not know: how a job
that never ran is slowed down by links (it makes a step each second wherever it is), what jobs on the same devices take from each
other besides turns, and links that jobs on different devices share.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from restow.bound import Demand
from restow.cluster import Snapshot
from restow.job import Job, Profile
from restow.perf import predict_parts
from restow.placement import Placement, is_scattered, ranks_per_device
from restow.policies.sharing import demand_of
from restow.sim.machines import Machines
from restow.sim.past import Past
from restow.sim.rows import Row
from restow.sim.turns import periods_s
from restow.sim.world import Nodes


class Profiled:
    """Of rows that have a past."""

    def __init__(self, machines: Machines):
        self._snapshot = Snapshot(now_s=0.0, nodes=machines.nodes, jobs=(), links=machines.links)
        self._profiles: dict[tuple[str, Placement], Profile] = {}
        self._together: dict[Hashable, float] = {}

    def work(self, row: Row) -> float:
        return row.steps

    def step_s(self, row: Row, placement: Placement, nodes: Nodes, beside: Sequence[tuple[Row, Placement]] = ()) -> float:
        """Beside others in turns inside its steps."""
        return self.shared_step_s(row, placement, nodes, beside, "interleave")

    def shared_step_s(
        self, row: Row, placement: Placement, nodes: Nodes, beside: Sequence[tuple[Row, Placement]], mode: str
    ) -> float:
        past = _past(row)
        partners = {other.id for other, _ in beside}
        if past.sharing and placement == past.placement and partners == {*past.sharing.partners}:
            return past.profile.step_s or 1.0
        if not beside:
            return self.measured(row, placement).step_s
        group = (row, placement), *beside
        key = mode, *((other.id, there) for other, there in group)
        if key not in self._together:
            demands = [self._demand(other, there) for other, there in group]
            self._together[key] = periods_s(demands, in_turns=mode != "free")[0]
        return self._together[key]

    def alike(self, row: Row) -> Hashable:
        return row.id

    def place(self, placement: Placement, nodes: Nodes) -> Hashable:
        return tuple(slot.node for slot in placement), ranks_per_device(placement)

    def measured(self, row: Row, placement: Placement) -> Profile:
        """Alone on its devices."""
        key = row.id, placement
        if key not in self._profiles:
            there, profile = _nearest(_past(row), placement)
            if _past(row).sharing and profile.alone_step_s:
                profile = replace(profile, step_s=profile.alone_step_s, waited_s=0.0)
            parts = profile.step_s - profile.exposed_s, profile.exposed_s  # where it was measured is forgotten: as it was there
            if there:
                parts = predict_parts(profile, there, placement, self._snapshot)
            computing_s, exposed_s = parts if sum(parts) > 0 else (1.0, 0.0)
            self._profiles[key] = replace(
                profile, step_s=computing_s + exposed_s, exposed_s=exposed_s, waited_s=0.0, held_s=0.0, alone_step_s=0.0
            )
        return self._profiles[key]

    def _demand(self, row: Row, placement: Placement) -> Demand:
        job = Job(id=row.id, spec=_past(row).spec, intended=placement, profile=self.measured(row, placement))
        return demand_of(job, self._snapshot)


def _nearest(past: Past, placement: Placement) -> tuple[Placement, Profile]:
    """Where it was measured, and what: with its ranks parted as here, else scattered as here, else first."""

    def unlike(found: tuple[Placement, Profile]) -> tuple[bool, bool]:
        return _shape(found[0]) != _shape(placement), is_scattered(found[0]) != is_scattered(placement)

    return min(((past.measured_on, past.profile), *past.elsewhere), key=unlike)


def _shape(placement: Placement) -> tuple[tuple[int, int], ...]:
    """The same for placements whose ranks are parted in the same way: machines and devices numbered as they come."""
    nodes, devices = dict[str, int](), dict[tuple[str, int], int]()
    return tuple((nodes.setdefault(s.node, len(nodes)), devices.setdefault(s[:2], len(devices))) for s in placement)


def _past(row: Row) -> Past:
    assert row.past
    return row.past
