"""Muri's trace3 on 64 GPUs (Zhao et al., SIGCOMM 2022).

H-ideal: as in its own simulator, where up to four jobs interleave with a measured overhead. H: what pairs of jobs lose as measured
by Gavel, instead. Every launch, move and return takes as long as its authors measured a start of that model to take.

Its simulator decides whenever a job comes or goes, and so does this one. It takes the seconds of a start off at each decision
from every job that runs; here they are taken off when a job starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from bench.worlds.gavel import world as gavel
from bench.worlds.setting import SHARED, Setting
from restow.sim.delays import Delays
from restow.sim.muri import Interleaved, Measured
from restow.sim.traces import Trace, read

SIZES = (1, 2, 4, 8, 16, 32)
STARTS_S: Mapping[str, tuple[float, ...]] = {  # model → for each size, as in run_sim.py of its repository (overhead_dict)
    "vgg16": (7, 7, 8, 9, 9, 10),
    "vgg19": (7, 7, 8, 9, 10, 10),
    "resnet18": (4, 5, 5, 7, 7, 7),
    "shufflenet_v2_x1_0": (4, 4, 5, 5, 7, 8),
    "bert": (10, 10, 10, 10, 10, 10),
    "gpt2": (10, 10, 10, 10, 10, 10),
    "a2c": (38, 39, 39, 46, 46, 46),
    "dqn": (5, 5, 6, 6, 8, 8),
}
POLICIES = ("muri-s", "muri-l", "srtf", "srsf", "las", "worth")


def trace(number: int) -> Trace:
    found = read(SHARED / f"muri/simulator/trace-data/trace{number}.csv")
    rows = (replace(row, start_s=STARTS_S[row.model][SIZES.index(row.workers)]) for row in found.rows)
    return replace(found, rows=tuple(rows))


@lru_cache(maxsize=1)
def measured() -> Measured:
    return Measured(gavel(True))


def _setting(number: int, **more: Any) -> Setting:
    return Setting(
        workload=f"trace{number}", trace=lambda: trace(number), cluster="8x8:V100", delays=Delays(move_s=0.0), policies=POLICIES,
        **more,
    )  # fmt: skip


REFERENCES_S = (("muri-s", 83_242.0), ("muri-l", 88_687.0), ("srtf", 193_082.0), ("srsf", 185_022.0), ("las", 347_213.0))

WORLDS: Mapping[str, Setting] = {
    "H-ideal": _setting(3, world=Interleaved, references_s=REFERENCES_S),
    "H": _setting(3, world=measured),
}
