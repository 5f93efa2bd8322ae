"""Shockwave's world: Gavel's, with jobs whose batch grows while they train, and sometimes shrinks again.

A job makes as many epochs as its steps are with the batch that it begins with. Then, by the plan of its row:

    static      nothing changes
    accordion   the largest batch of its model, but for its critical epochs (Agarwal et al., MLSys 2021)
    gns         twice the batch at certain epochs, as the scale of the gradient's noise was measured to allow it (McCandlish et al.,
                2018)

Source: Zheng et al., NSDI 2023; `scheduler/scheduler.py` (`_simulate_accordion`, `_scale_bs_and_iters`) and `scheduler/utils.py`
(`get_gns_bs_pattern`) of its repository (MIT licence). There a batch changes at the end of the second round in which the job runs
after it could, and what it has begun of an epoch is given to it; here it changes when the epoch ends.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from restow.errors import TraceError
from restow.sim.gavel import GavelWorld
from restow.sim.phases import Phase
from restow.sim.rows import Row

SAMPLES = {"ResNet-18": 50_000, "ResNet-50": 100_000, "Transformer": 10_000, "LM": 59_675, "Recommendation": 117_907}  # of an epoch
BATCH_MOST = {"ResNet-18": 256, "ResNet-50": 128, "LM": 80, "Recommendation": 8192}  # a Transformer's does not change
EPOCHS_MOST = 100_000  # more is taken for a mistake
_NAME = re.compile(r"(\S+) \(batch size (\d+)\)")

DOUBLES_AT: dict[tuple[str, int, int], tuple[int, ...]] = {  # model, first batch, workers → epochs
    ("ResNet-18", 16, 1): (31, 41, 51, 71), ("ResNet-18", 32, 1): (21, 31, 51),
    ("ResNet-18", 64, 1): (11, 31), ("ResNet-18", 128, 1): (11,),
    ("ResNet-18", 16, 2): (21, 31, 91, 111), ("ResNet-18", 32, 2): (11, 21, 41),
    ("ResNet-18", 64, 2): (21, 41), ("ResNet-18", 128, 2): (41,),
    ("ResNet-18", 16, 4): (11, 21, 81, 91), ("ResNet-18", 32, 4): (21, 31, 61),
    ("ResNet-18", 64, 4): (11, 61), ("ResNet-18", 128, 4): (11,),
    ("ResNet-50", 64, 1): (101,), ("ResNet-50", 32, 2): (101, 111), ("ResNet-50", 64, 2): (81,),
    ("ResNet-50", 32, 4): (131, 221), ("ResNet-50", 64, 4): (191,),
    ("LM", 5, 1): (31, 41, 61, 71), ("LM", 10, 1): (11, 21, 41), ("LM", 20, 1): (11, 41), ("LM", 40, 1): (11,),
    ("LM", 5, 2): (31, 51, 61, 71), ("LM", 10, 2): (11, 31, 41), ("LM", 20, 2): (31, 41), ("LM", 40, 2): (11,),
    ("LM", 5, 4): (11, 31, 71, 91), ("LM", 10, 4): (11, 31, 61), ("LM", 20, 4): (11, 61), ("LM", 40, 4): (61,),
    ("Recommendation", 512, 1): (21, 41, 71, 91), ("Recommendation", 1024, 1): (21, 51, 91),
    ("Recommendation", 2048, 1): (21, 41), ("Recommendation", 4096, 1): (41,),
}  # fmt: skip

CRITICAL: dict[str, Callable[[int, int], bool]] = {  # model → (epoch, first batch) → is the epoch critical?
    "ResNet-18": lambda epoch, batch: epoch < (20 if batch == 256 else 10) or 150 <= epoch < 160 or 250 <= epoch < 260,
    "ResNet-50": lambda epoch, batch: epoch % 30 < 10,
    "LM": lambda epoch, batch: epoch < 10,
    "Recommendation": lambda epoch, batch: epoch < (40 if batch == 2048 else 10 if batch > 2048 else 30),
}


class ShockwaveWorld(GavelWorld):
    """Raises TraceError for a model, a batch or a plan that Shockwave does not know."""

    def phases(self, row: Row) -> Sequence[Phase]:
        self.work(row)
        model, first = _model_of(row)
        if row.plan in ("", "static") or BATCH_MOST.get(model, first) == first:
            return (Phase(row=row, steps=row.steps, steps_total=row.steps),)
        epochs = row.steps / _steps_of_epoch(model, first)
        if epochs > EPOCHS_MOST:
            raise TraceError(f"job {row.id}: {row.steps:g} steps are {epochs:.0f} epochs; more than {EPOCHS_MOST} is a mistake")
        found: list[Phase] = []
        begun, made = 0, 0.0
        for batch, alike in groupby(_batches(model, first, row, math.ceil(epochs))):
            ended = min(begun + sum(1 for _ in alike), epochs)
            changed = replace(row, model=f"{model} (batch size {batch})")
            self.work(changed)
            each = _steps_of_epoch(model, batch)
            found.append(Phase(row=changed, steps=(ended - begun) * each, steps_total=made + (epochs - begun) * each))
            made += found[-1].steps
            begun = math.ceil(ended)
        return found


def _model_of(row: Row) -> tuple[str, int]:
    found = _NAME.fullmatch(row.model)
    if not found or found[1] not in SAMPLES or int(found[2]) < 1:
        raise TraceError(f"job {row.id}: its model is {row.model!r}; Shockwave's are {', '.join(SAMPLES)}, with (batch size N)")
    return found[1], int(found[2])


def _steps_of_epoch(model: str, batch: int) -> int:
    return math.ceil(SAMPLES[model] / batch)


def _batches(model: str, first: int, row: Row, epochs: int) -> Iterator[int]:
    """Of each epoch."""
    if row.plan == "accordion":
        return (first if CRITICAL[model](epoch, first) else BATCH_MOST[model] for epoch in range(epochs))
    if row.plan == "gns":
        doubles = DOUBLES_AT.get((model, first, row.workers), ())
        return (min(BATCH_MOST[model], first << sum(at <= epoch for at in doubles)) for epoch in range(epochs))
    raise TraceError(f"job {row.id}: its plan is {row.plan!r}; it is static, accordion or gns")
