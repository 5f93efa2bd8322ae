"""What is true in a simulated cluster: how fast a gang is on some devices, and how much work a job of the trace is.

A world is made from measured tables only (gavel.py and others), or from the durations of the trace alone (`Recorded`). Policies
never see it: they are told what was measured of a job, as in a live cluster, and what is believed of it (forecast.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from restow.cluster import Device, Node
from restow.errors import TraceError
from restow.job import Profile
from restow.placement import Placement
from restow.sim.rows import Row

Nodes = Mapping[str, Node]


class World(Protocol):
    """Pure; the same question always has the same answer."""

    def work(self, row: Row) -> float:
        """Steps that the job makes in all. Raises TraceError for a job that it does not know."""

    def step_s(self, row: Row, placement: Placement, nodes: Nodes, beside: Sequence[tuple[Row, Placement]] = ()) -> float:
        """Seconds of a step there, infinite where it cannot run; `beside`: who else is on these devices."""

    def alike(self, row: Row) -> Hashable:
        """The same for all rows that are equally fast wherever they are."""

    def place(self, placement: Placement, nodes: Nodes) -> Hashable:
        """The same for all placements on devices of one kind on which whoever is there is equally fast."""


@runtime_checkable
class Measured(Protocol):
    """A world that knows more of a job than its step time."""

    def measured(self, row: Row, placement: Placement) -> Profile:
        """What would be measured of it there, alone."""


@runtime_checkable
class Gated(Protocol):
    """A world that knows what it means in which way jobs share their devices."""

    def shared_step_s(
        self, row: Row, placement: Placement, nodes: Nodes, beside: Sequence[tuple[Row, Placement]], mode: str
    ) -> float:
        """Seconds from step to step beside these, in turns inside a step (`interleave`) or without turns (`free`)."""


class Recorded:
    """Each job takes as long as the trace says, wherever it is: a step is a second. Two on a device take turns."""

    def work(self, row: Row) -> float:
        """Raises TraceError for a row of steps of a model: how long such a step is, only a table says."""
        if row.duration_s:
            return row.duration_s
        if row.model:
            raise TraceError(f"job {row.id}: the trace names its model ({row.model}) but no duration; a --table knows its speed")
        return row.steps

    def step_s(self, row: Row, placement: Placement, nodes: Nodes, beside: Sequence[tuple[Row, Placement]] = ()) -> float:
        return 1.0 if row.share < 1.0 else float(1 + len(beside))

    def alike(self, row: Row) -> Hashable:
        return row.model, row.share < 1.0

    def place(self, placement: Placement, nodes: Nodes) -> Hashable:
        return ()


def kind_of(placement: Placement, nodes: Nodes) -> str:
    """The kind of its devices; with several of them they are joined by a plus, the alphabet's first first."""
    return "+".join(sorted({_device(nodes[slot.node], slot.device).kind for slot in placement}))


def _device(node: Node, index: int) -> Device:
    """Devices are numbered from 0 on in all but a few clusters."""
    if index < len(node.devices) and node.devices[index].index == index:
        return node.devices[index]
    return next(device for device in node.devices if device.index == index)
