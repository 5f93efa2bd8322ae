"""Morphling's 406 jobs, LLaMA-30B on 48 devices among them, on eight machines of eight A800 (Rubick, MLSys 2025).

Gangs keep the size that the trace asks for, in the fastest way to parallelize them there. A start and a move take 260 s, as in its
simulator. Its own policy, which also changes the sizes, gave 2.08 h there once its preempted jobs no longer trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from bench.worlds.setting import SHARED, Setting
from restow.sim.delays import Delays
from restow.sim.morphling import MorphlingWorld
from restow.sim.traces import read

CHANGE_S = 260.0
FOLDER = SHARED / "morphling/simulator"


@lru_cache(maxsize=1)
def world() -> MorphlingWorld:
    return MorphlingWorld(FOLDER / "traces")


WORLDS: Mapping[str, Setting] = {
    "I": Setting(
        workload="workload-base", trace=lambda: read(FOLDER / "workloads/workload-base.csv"), world=world, cluster="8x8:A800",
        delays=Delays(start_s=CHANGE_S, move_s=CHANGE_S, resume_s=CHANGE_S), policies=("fifo", "srsf", "worth"),
    ),
}  # fmt: skip
