"""What is true in a simulated cluster: how fast a gang is on some devices, and how much work a job of the trace is.

A world is made from measured tables only (gavel.py and others), or from the durations of the trace alone (`Recorded`). Policies
never see it: they are told what was measured of a job, as in a live cluster, and what is believed of it (forecast.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from restow.cluster import Node
from restow.errors import TraceError
from restow.placement import Placement
from restow.sim.rows import Row

Nodes = Mapping[str, Node]


class World(Protocol):
    """Pure; the same question always has the same answer."""

    def work(self, row: Row) -> float:
        """Steps that the job makes in all. Raises TraceError for a job that it does not know."""

    def step_s(self, row: Row, placement: Placement, nodes: Nodes, beside: Sequence[tuple[Row, Placement]] = ()) -> float:
        """Seconds of a step there, infinite where it cannot run; `beside`: who else is on these devices."""


class Changing(World, Protocol):
    """A world in which a job becomes another one as it goes on: faster or slower on the same devices."""

    def at(self, row: Row, made: float) -> tuple[Row, float]:
        """What it is after so many steps, and the step at which it changes next."""


def row_at(world: World | Changing, row: Row, made: float) -> tuple[Row, float]:
    """The same of any world: in most a job stays what it is."""
    at = getattr(world, "at", None)
    return at(row, made) if at else (row, math.inf)


def whole_s(world: World, row: Row, placement: Placement, nodes: Nodes) -> float:
    """Seconds that all of a job takes if it is alone there from its first step to its last."""
    seconds, made, work = 0.0, 0.0, world.work(row)
    while made < work:
        row, until = row_at(world, row, made)
        seconds += (min(until, work) - made) * world.step_s(row, placement, nodes)
        made = until
    return seconds


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
        wanted = max((slot.share for slot in placement), default=1.0)
        return 1.0 if wanted < 1.0 else float(1 + len(beside))


def kind_of(placement: Placement, nodes: Nodes) -> str:
    """The kind of its devices; with several of them they are joined by a plus, the alphabet's first first."""
    return "+".join(sorted({nodes[slot.node].devices[slot.device].kind for slot in placement}))
