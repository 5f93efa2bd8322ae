"""Pollux's workloads of rigid jobs on machines of four T4 (Qiao et al., OSDI 2021), in rounds of a minute as it has them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from bench.worlds.setting import SHARED, Setting
from restow.sim.agents import Delays
from restow.sim.pollux import PolluxWorld
from restow.sim.traces import read


@lru_cache(maxsize=1)
def world() -> PolluxWorld:
    return PolluxWorld(SHARED / "pollux/simulator/traces")


def _rigid(number: int, **more: Any) -> Setting:
    return Setting(
        workload=f"workload-{number}", trace=lambda: read(SHARED / f"pollux/simulator/workloads/workload-{number}.csv"),
        world=world, cluster="16x4:T4", delays=Delays(start_s=30.0, move_s=30.0, resume_s=30.0), rounds_s=60.0,
        policies=("tiresias", "srsf", "worth"), **more,
    )  # fmt: skip


WORLDS: Mapping[str, Setting] = {
    **{f"D{number}": _rigid(number) for number in (1, 2, 3, 4)},
    "D6": _rigid(6, references_s=(("tiresias", 3469.7),)),
}
