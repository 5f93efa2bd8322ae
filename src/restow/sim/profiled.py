"""The world of a live cluster's snapshot: jobs are as fast as perf.py predicts from what was measured of each.

What it does not know: how a job that never ran is slowed down by links, and how two get on that were not on the same devices when
the snapshot was taken. The former makes a step each second wherever it is; the latter take turns.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from restow.cluster import Snapshot
from restow.job import Profile
from restow.perf import predict_parts
from restow.placement import Placement, ranks_per_device
from restow.sim.machines import Machines
from restow.sim.past import Past
from restow.sim.rows import Row
from restow.sim.world import Nodes


class Profiled:
    """Of rows that have a past."""

    def __init__(self, machines: Machines):
        self._snapshot = Snapshot(now_s=0.0, nodes=machines.nodes, jobs=(), links=machines.links)
        self._parts: dict[tuple[str, Placement], tuple[float, float]] = {}

    def work(self, row: Row) -> float:
        return row.steps

    def step_s(self, row: Row, placement: Placement, nodes: Nodes, beside: Sequence[tuple[Row, Placement]] = ()) -> float:
        past = _past(row)
        partners = {other.id for other, _ in beside}
        if past.sharing and placement == past.placement and partners == {*past.sharing.partners}:
            return past.profile.step_s or 1.0
        return sum(self._alone(row, placement)) * (1 + len(beside))

    def alike(self, row: Row) -> Hashable:
        return row.id

    def place(self, placement: Placement, nodes: Nodes) -> Hashable:
        return tuple(slot.node for slot in placement), ranks_per_device(placement)

    def measured(self, row: Row, placement: Placement) -> Profile:
        """Alone on its devices."""
        computing_s, exposed_s = self._alone(row, placement)
        return replace(_past(row).profile, step_s=computing_s + exposed_s, exposed_s=exposed_s, waited_s=0.0, held_s=0.0)

    def _alone(self, row: Row, placement: Placement) -> tuple[float, float]:
        key = row.id, placement
        if key not in self._parts:
            past, profile = _past(row), _past(row).profile
            if past.sharing and profile.alone_step_s:
                profile = replace(profile, step_s=profile.alone_step_s, waited_s=0.0)
            parts = profile.step_s - profile.exposed_s, profile.exposed_s  # where it was measured is forgotten: as it was there
            if past.measured_on:
                parts = predict_parts(profile, past.measured_on, placement, self._snapshot)
            self._parts[key] = parts if sum(parts) > 0 else (1.0, 0.0)
        return self._parts[key]


def _past(row: Row) -> Past:
    assert row.past
    return row.past
