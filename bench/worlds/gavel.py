"""Gavel's workloads on its measured speeds (Narayanan et al., OSDI 2020), over several machines, too.

A, B: 500 jobs on devices of three kinds. C: on V100 alone, where only gangs that are spread lose. F: 96 jobs. G: 100 jobs, all
there from the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

from bench.worlds.setting import HOUR_S, SHARED, Setting
from restow.sim.delays import Delays
from restow.sim.gavel import GavelWorld
from restow.sim.traces import Trace, read

G500 = "5x8:V100,5x8:P100,5x8:K80"
PHYSICAL = "2x4:V100,4x4:P100,6x4:K80"
POLICIES = ("fifo", "srsf", "gavel", "worth")


@lru_cache(maxsize=2)
def world(spreads: bool) -> GavelWorld:
    return GavelWorld(SHARED / "gavel/scheduler/simulation_throughputs.json", spreads=spreads)


def g500(gap: int, stretched: float = 1.0) -> Trace:
    return read(SHARED / f"gavel/generated/gavel_gen500_seed0_lam{gap}_multi.trace").compressed(1 / stretched)


def _moves(seconds: float) -> Delays:
    return Delays(move_s=seconds, resume_s=seconds)


def _generated(move_s: float, spreads: bool = True, policies: tuple[str, ...] = POLICIES, **more: Any) -> Setting:
    return Setting(
        workload="500 jobs, 500 s apart", trace=partial(g500, 500), world=partial(world, spreads), cluster=G500,
        delays=_moves(move_s), policies=policies, **more,
    )  # fmt: skip


def _consolidation(spreads: bool, **more: Any) -> Setting:
    return Setting(
        workload="500 jobs, 1440 s apart", trace=partial(g500, 900, 1.6), world=partial(world, spreads), cluster="8x8:V100",
        delays=_moves(60.0), policies=("fifo", "worth"), **more,
    )  # fmt: skip


def _physical(name: str, workload: str, move_s: float, spreads: bool = True, **more: Any) -> Setting:
    return Setting(
        workload=workload, trace=lambda: read(SHARED / f"gavel/scheduler/traces/physical_cluster/{name}.trace"),
        world=partial(world, spreads), cluster=PHYSICAL, delays=_moves(move_s), **more,
    )  # fmt: skip


_fair = partial(_physical, "max_min_fairness", "96 jobs", policies=(*POLICIES, "gavel-ftf"))
_at_once = partial(_physical, "minimize_makespan", "100 jobs at once", policies=(*POLICIES, "gavel-makespan"))

WORLDS: Mapping[str, Setting] = {
    "A-ideal": _generated(0.0, spreads=False, references_s=(("gavel", 19.18 * HOUR_S), ("fifo", 29.35 * HOUR_S))),
    "A": _generated(30.0, references_s=(("gavel", 20.45 * HOUR_S), ("fifo", 29.38 * HOUR_S))),
    "A-unknown": _generated(30.0, knows_total=False, policies=("worth",)),
    **{f"A-wrong{seed}": _generated(30.0, policies=("worth",), error=0.2, seed=seed) for seed in range(3)},
    "B5": _generated(5.0),
    "B120": _generated(120.0),
    "C-ideal": _consolidation(spreads=False, references_s=(("fifo", 15.56 * HOUR_S),)),
    "C": _consolidation(spreads=True, references_s=(("fifo", 21.37 * HOUR_S),)),
    "F": _fair(30.0, references_s=(("gavel", 4.33 * HOUR_S),)),
    "F-ideal": _fair(
        0.0, spreads=False, references_s=(("gavel", 4.06 * HOUR_S), ("gavel-ftf", 4.17 * HOUR_S), ("gandiva", 4.83 * HOUR_S)),
    ),
    "G": _at_once(30.0),
    "G-ideal": _at_once(
        0.0, spreads=False, references_s=(("gavel", 9.91 * HOUR_S),),
        makespans_s=(("gavel", 19.0 * HOUR_S), ("gavel-makespan", 18.0 * HOUR_S)),
    ),
}
