"""Pollux's workloads on machines of four T4 (Qiao et al., OSDI 2021), in rounds of a minute as it has them.

D: rigid jobs. E: the same jobs with gangs of any size, which adapt their batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from bench.worlds.setting import SHARED, Setting
from restow.sim.adaptive import AdaptivePolluxWorld
from restow.sim.delays import Delays
from restow.sim.pollux import PolluxWorld
from restow.sim.traces import read


@lru_cache(maxsize=1)
def world() -> PolluxWorld:
    return PolluxWorld(SHARED / "pollux/simulator/traces")


@lru_cache(maxsize=1)
def adaptive() -> AdaptivePolluxWorld:
    return AdaptivePolluxWorld(SHARED / "pollux/simulator/traces")


def _elastic(number: int, **more: Any) -> Setting:
    return Setting(
        workload=f"workload-{number}", world=adaptive, cluster="16x4:T4", rounds_s=60.0,
        trace=lambda: read(SHARED / f"pollux/simulator/workloads/workload-{number}.csv").elastic(1, 64),
        delays=Delays(start_s=30.0, move_s=30.0, resume_s=30.0), policies=("pollux", "worth"), **more,
    )  # fmt: skip


def _rigid(number: int, **more: Any) -> Setting:
    return Setting(
        workload=f"workload-{number}", trace=lambda: read(SHARED / f"pollux/simulator/workloads/workload-{number}.csv"),
        world=world, cluster="16x4:T4", delays=Delays(start_s=30.0, move_s=30.0, resume_s=30.0), rounds_s=60.0,
        policies=("tiresias", "srsf", "worth"), **more,
    )  # fmt: skip


WORLDS: Mapping[str, Setting] = {
    **{f"D{number}": _rigid(number) for number in (1, 2, 3, 4)},
    "D6": _rigid(6, references_s=(("tiresias", 3469.7),)),
    **{f"E{number}": _elastic(number) for number in (1, 2, 3, 4)},
    "E6": _elastic(6, references_s=(("pollux", 2446.0),)),
}
