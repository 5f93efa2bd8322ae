"""Pollux's world of jobs that adapt: a gang may have any number of devices, and takes the batch that brings it on fastest there.

A step is one of the smallest batch. A larger batch brings as many of them as its gain says, which is the less the clearer the
gradient is without it (gradient noise) and grows from epoch to epoch; so how long a step takes is

    (last round + rounds of accumulation before it, in seconds) / gain(batch, epoch)

at the best of fifty batches from the smallest that the gang can have to the largest that was validated, as
`GoodputFunction.optimize` of the artifact looks through them. Source: Qiao et al., OSDI 2021, sections 3.1 and 4.1; its simulator
chooses with a model that is fitted to what each job has measured so far, here what was measured of all is known.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy

from restow.placement import Placement, count_by_node
from restow.sim.phases import Phase
from restow.sim.pollux import NODES_MEASURED, Application, Applications, rotated
from restow.sim.rows import Row
from restow.sim.world import Nodes

BATCHES = 50  # that are looked through
Numbers = numpy.ndarray[Any, Any]


class Adaptive:
    """One application: what it makes of each placement."""

    def __init__(self, application: Application):
        self._application = application
        self.reached = application.reached
        self._between = application.interpolator
        self._between([[NODES_MEASURED, NODES_MEASURED, application.local_batch_max]])  # it is made when first asked, in a second
        self._gains: dict[int, tuple[Numbers, Numbers, Numbers]] = {}
        self._seconds: dict[tuple[int, ...], tuple[float, ...]] = {}

    def seconds(self, counts: tuple[int, ...]) -> tuple[float, ...]:
        """Of a step in each epoch, with so many replicas on each machine; infinite where a batch has no room for so many."""
        if counts not in self._seconds:
            at_once, rounds, gains = self._batches(sum(counts))
            step_s, sync_s = self._measured(counts, at_once)
            with numpy.errstate(invalid="ignore"):
                each = (step_s + rounds * (step_s - sync_s))[None, :] / gains
            found = numpy.where(numpy.isfinite(each), each, math.inf).min(axis=1, initial=math.inf)
            self._seconds[counts] = tuple(found.tolist())
        return self._seconds[counts]

    def _measured(self, counts: tuple[int, ...], at_once: Numbers) -> tuple[Numbers, Numbers]:
        """Seconds of a step and of its synchronization, infinite or not a number where nothing is known."""
        if rows := self._application.placements.get(counts):
            local, step_s, sync_s = zip(*rows, strict=True)
            return tuple(numpy.interp(at_once, local, found, left=math.inf, right=math.inf) for found in (step_s, sync_s))
        nodes = numpy.full_like(at_once, min(len(counts), NODES_MEASURED))
        found = self._between(numpy.column_stack([nodes, numpy.full_like(at_once, sum(counts)), at_once]))
        return found[:, 0], found[:, 1]

    def _batches(self, replicas: int) -> tuple[Numbers, Numbers, Numbers]:
        """Samples at once, rounds before the last one, and (epochs, batches) gains, of what so many replicas can have."""
        if replicas not in self._gains:
            application = self._application
            least = max(application.batch_least, application.local_batch_min * replicas)
            most = application.batch_most
            wanted = numpy.geomspace(least, most, BATCHES).tolist() if least <= most else []
            splits = sorted({application.split(batch, replicas) for batch in wanted})
            fit = [split for split in splits if application.local_batch_min <= split[0] <= application.local_batch_max]
            gains = [application.gains(replicas * local * (rounds + 1)) for local, rounds in fit]
            at_once, rounds = numpy.array(fit, dtype=float).reshape(-1, 2).T
            self._gains[replicas] = at_once, rounds, numpy.array(gains).reshape(-1, application.epochs).T
        return self._gains[replicas]


class AdaptivePolluxWorld:
    """Of jobs whose gangs have any size."""

    def __init__(self, folder: Path):
        self._applications = Applications(folder)
        self._found: dict[str, Adaptive] = {}

    def _adaptive(self, row: Row) -> Adaptive:
        if row.model not in self._found:
            self._found[row.model] = Adaptive(self._applications.of(row))
        return self._found[row.model]

    def work(self, row: Row) -> float:
        return self._adaptive(row).reached[-1]

    def phases(self, row: Row) -> Sequence[Phase]:
        """Its epochs."""
        reached = self._adaptive(row).reached
        made = zip([0.0, *reached], reached, strict=False)
        return [
            Phase(row=replace(row, epoch=epoch), steps=until - since, steps_total=reached[-1])
            for epoch, (since, until) in enumerate(made)
        ]

    def step_s(self, row: Row, placement: Placement, nodes: Nodes, beside: Sequence[tuple[Row, Placement]] = ()) -> float:
        """Two on a device were not measured: infinite."""
        if beside:
            return math.inf
        return self._adaptive(row).seconds(rotated(tuple(count_by_node(placement).values())))[row.epoch]

    def alike(self, row: Row) -> Hashable:
        return row.model, row.epoch

    def place(self, placement: Placement, nodes: Nodes) -> Hashable:
        return rotated(tuple(count_by_node(placement).values()))
