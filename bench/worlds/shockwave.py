"""Shockwave's 120 jobs, whose batches change while they train, on 32 V100 (Zheng et al., NSDI 2023).

Its simulator decides in rounds of two minutes, takes 20 s from a job that was not there in the round before, and knows neither
machines nor what it costs to move from one device to another.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from bench.worlds.setting import SHARED, Setting
from restow.sim.delays import Delays
from restow.sim.shockwave import ShockwaveWorld
from restow.sim.traces import read

FOLDER = SHARED / "shockwave/scheduler"
TRACE = FOLDER / "traces/reproduce/120_0.2_5_100_40_25_0,0.5,0.5_0.6,0.3,0.09,0.01_multigpu_dynamic.trace"
POLICIES = ("fifo", "srsf", "gavel", "gavel-makespan", "gavel-maxsum", "gavel-ftf", "worth")


@lru_cache(maxsize=1)
def world() -> ShockwaveWorld:
    return ShockwaveWorld(FOLDER / "tacc_throughputs.json", spreads=False)


def _dynamic(cost_s: float, **more: Any) -> Setting:
    return Setting(
        workload="120 jobs, batches change", trace=lambda: read(TRACE), world=world, cluster="8x4:V100",
        delays=Delays(start_s=cost_s, move_s=cost_s, resume_s=cost_s), turn_s=120.0, policies=POLICIES, **more,
    )  # fmt: skip


WORLDS: Mapping[str, Setting] = {
    "J-ideal": _dynamic(0.0),
    "J": _dynamic(
        20.0, references_s=(("gavel", 11_274.1), ("gavel-makespan", 19_806.7), ("gavel-maxsum", 9_654.7)),
        makespans_s=(("gavel", 33_207.7), ("gavel-makespan", 24_204.8), ("gavel-maxsum", 31_909.0)),
    ),
}  # fmt: skip
