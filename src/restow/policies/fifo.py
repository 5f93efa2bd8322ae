"""First come, first served: whole gangs, nobody is interrupted. Later jobs may fill what the first ones cannot use (backfill)."""

from __future__ import annotations

from dataclasses import dataclass

from restow.cluster import Snapshot
from restow.placement import Schedule
from restow.policies.ranked import in_order


@dataclass(frozen=True, slots=True)
class Fifo:
    """`backfill=False`: a large gang is not passed by smaller ones that came later."""

    backfill: bool = True

    def decide(self, snapshot: Snapshot) -> Schedule:
        return in_order(snapshot, lambda job: -job.spec.priority, backfill=self.backfill)

    plan = decide
