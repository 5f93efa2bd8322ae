"""A gang that trains in virtual time: how far it is, how fast, and which of its processes live on which node."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from restow.job import Sharing
from restow.placement import Placement
from restow.sim.phases import Phase
from restow.sim.rows import Row


@dataclass(slots=True)
class Gang:
    """One job on the machines."""

    phases: Sequence[Phase]
    phase: Phase  # the present one
    until: float  # steps in all when it ends
    steps: float = 0.0  # made at since_s
    steps_before: float = 0.0  # made when this generation began
    since_s: float = 0.0
    step_s: float = math.inf  # infinite: it stands still
    said_step_s: float = 0.0  # what was told last
    sharing: Sharing | None = None  # what it was told of how to share its devices; counts while there are others
    generation: int = 0
    placement: Placement = ()
    placements: dict[int, Placement] = field(default_factory=dict)  # generation → where its ranks are to be; empty: nowhere
    ranks: dict[int, dict[int, str]] = field(default_factory=dict)  # generation → rank or twin that lives → its node
    is_stopping: bool = False  # it was told at which step it stops
    version: int = 0  # of its speed: what was foreseen with another one does not happen

    @classmethod
    def of(cls, phases: Sequence[Phase]) -> Gang:
        first, *later = phases
        return cls(phases=later, phase=first, until=first.steps)

    @property
    def row(self) -> Row:
        """As which it trains now."""
        return self.phase.row

    def steps_at(self, now_s: float) -> float:
        made = (now_s - self.since_s) / self.step_s if math.isfinite(self.step_s) else 0.0
        return min(self.until, self.steps + made)

    def change(self) -> None:
        """The next phase begins."""
        self.steps = max(self.steps, self.until)
        self.phase, *self.phases = self.phases
        self.until += self.phase.steps
        self.said_step_s = 0.0


def devices(placement: Placement) -> dict[tuple[str, int], None]:
    return dict.fromkeys(slot[:2] for slot in placement)
