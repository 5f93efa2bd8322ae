"""A job that changes while it trains, such as by its batch size: parts of its life, in each of which it is another row.

Nobody is told of a later phase before it begins: the job says how many steps it will make as if it stayed as it is, and what a step
takes now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from restow.placement import Placement
from restow.sim.rows import Row
from restow.sim.world import Nodes, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    row: Row
    steps: float  # that it makes in this phase
    steps_total: float  # that it will have made at its end, as it says during this phase


@runtime_checkable
class Phased(Protocol):
    """A world whose jobs change."""

    def phases(self, row: Row) -> Sequence[Phase]:
        """At least one, in order. Raises TraceError for a job that it does not know."""


def phases_of(world: World, row: Row) -> Sequence[Phase]:
    """One for all of its life where the world's jobs do not change."""
    if isinstance(world, Phased):
        return world.phases(row)
    work = world.work(row)
    return (Phase(row=row, steps=work, steps_total=work),)


def whole_s(world: World, row: Row, placement: Placement, nodes: Nodes) -> float:
    """Seconds that all of a job takes if it is alone there from its first step to its last."""
    return sum(phase.steps * world.step_s(phase.row, placement, nodes) for phase in phases_of(world, row))
