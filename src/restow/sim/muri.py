"""Muri's worlds: eight models whose steps were measured stage by stage (data, device, network), alone and side by side.

Source: Zhao et al., SIGCOMM 2022; the traces of its repository (Apache-2.0). A step alone takes what the trace says, which is not
the sum of its stages: they overlap a little, and some time is in none of them.

`Interleaved` is the world of its own simulator: up to four jobs on the same devices take turns with no loss but for a measured
overhead, so that each makes one step in each period (policies/muri/interleaving.py).

`Measured` takes from Gavel's table how fast two jobs on one GPU really are. Muri's models are not in it; each counts as the
nearest kind (`NEAREST`): of the same architecture, else of the same task, with the nearest batch size. Of that kind only the part
of its own speed that is left beside the other is taken, not the speed. Only pairs on one GPU were measured, so that gangs are
taken to lose as much as a pair of their ranks does; three and more on a device were not: they stand still.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

from restow.errors import TraceError
from restow.placement import Placement
from restow.policies.muri.interleaving import ALONE, MOST, period_s
from restow.sim.gavel import GavelWorld
from restow.sim.rows import Row
from restow.sim.world import Nodes, kind_of

NEAREST: Mapping[str, str] = {
    "shufflenet_v2_x1_0": "ResNet-18 (batch size 128)",  # a small convolutional network, 128 images
    "resnet18": "ResNet-18 (batch size 128)",
    "vgg16": "ResNet-50 (batch size 16)",  # a large one, 16 images
    "vgg19": "ResNet-50 (batch size 16)",
    "bert": "Transformer (batch size 16)",  # 4 sentences; 16 is the least that was measured
    "gpt2": "Transformer (batch size 16)",
    "a2c": "A3C",
    "dqn": "A3C",  # the only kind there that learns from a game
}


def alone_s(row: Row) -> float:
    """A step on its own devices. Raises TraceError where the trace does not say it."""
    if not row.steps or not row.duration_s:
        raise TraceError(f"job {row.id}: how long a step takes is not said; give the trace steps and durations")
    return row.duration_s / row.steps


class Interleaved:
    def work(self, row: Row) -> float:
        if row.stages_s is None:
            raise TraceError(f"job {row.id}: the stages of its step are not said; they are resource_time_0 to 2 of Muri's traces")
        alone_s(row)
        return row.steps

    def step_s(self, row: Row, placement: Placement, nodes: Nodes, beside: Sequence[tuple[Row, Placement]] = ()) -> float:
        """Infinite for more than four, or on devices that are not all the same."""
        if not beside:
            return ALONE * alone_s(row)
        stages = [known for each in (row, *(other for other, _ in beside)) if (known := each.stages_s)]
        if not MOST >= len(stages) == 1 + len(beside) or not _same(placement, beside):
            return math.inf
        return period_s(stages)

    def alike(self, row: Row) -> Hashable:
        return row.stages_s, alone_s(row)

    def place(self, placement: Placement, nodes: Nodes) -> Hashable:
        return ()


class Measured:
    """`pairs`: Gavel's table."""

    def __init__(self, pairs: GavelWorld):
        self._pairs = pairs
        self._left: dict[tuple[str, str, str], float] = {}

    @property
    def kinds(self) -> list[str]:
        return self._pairs.kinds

    def work(self, row: Row) -> float:
        if row.model not in NEAREST:
            raise TraceError(f"job {row.id}: {row.model!r} is none of Muri's models ({', '.join(NEAREST)})")
        alone_s(row)
        return row.steps

    def step_s(self, row: Row, placement: Placement, nodes: Nodes, beside: Sequence[tuple[Row, Placement]] = ()) -> float:
        """Infinite beside more than one, beside one that cannot run with it, and on devices that are not all the same."""
        if not beside:
            return alone_s(row)
        if len(beside) > 1 or not _same(placement, beside):
            return math.inf
        left = self._part(row, beside[0][0], placement, nodes)
        return alone_s(row) / left if left > 0 else math.inf

    def alike(self, row: Row) -> Hashable:
        return row.model, alone_s(row)

    def place(self, placement: Placement, nodes: Nodes) -> Hashable:
        return ()

    def _part(self, row: Row, other: Row, placement: Placement, nodes: Nodes) -> float:
        """Of its own speed that is left beside the other."""
        key = row.model, other.model, kind_of(placement, nodes)
        if key not in self._left:
            mine, its = _nearest(row), _nearest(other)
            device = placement[:1]
            self._left[key] = self._pairs.step_s(mine, device, nodes) / self._pairs.step_s(mine, device, nodes, [(its, device)])
        return self._left[key]


def _nearest(row: Row) -> Row:
    return Row(id=row.id, submitted_s=0.0, workers=1, steps=1.0, model=NEAREST[row.model])


def _same(placement: Placement, beside: Sequence[tuple[Row, Placement]]) -> bool:
    devices = {slot[:2] for slot in placement}
    return all({slot[:2] for slot in there} == devices for _, there in beside)
