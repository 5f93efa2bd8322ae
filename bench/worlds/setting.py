"""A row of `bench/policies.py`: a published workload in a world that was measured, and what its authors' simulator gave for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from restow.sim.delays import Delays
from restow.sim.traces import Trace
from restow.sim.world import World

SHARED = Path(__file__).parents[3] / "shared" / "data"
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    workload: str
    trace: Callable[[], Trace]
    world: Callable[[], World]
    cluster: str
    delays: Delays
    policies: tuple[str, ...]  # that are compared if nobody names others
    rounds_s: float = 0.0  # between two decisions, also for policies that need none
    turn_s: float = 360.0  # between two decisions of policies that need rounds
    knows_total: bool = True  # do jobs say how long they are?
    error: float = 0.0  # policies believe speeds that are wrong by up to this part
    seed: int = 0  # of the errors
    references_s: tuple[tuple[str, float], ...] = ()  # policy, the average completion time that its authors' simulator gave
    makespans_s: tuple[tuple[str, float], ...] = ()  # policy, the makespan that it gave
