"""Which machine, and which of its devices, suit what is wanted best: by a measure of what is left before and afterwards.

What was found for a want is kept for each machine until something changes there, so that one more job costs a look at the few
machines that did. Decides nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy

from restow.policies.packing.ground import Bools, Floats, Ground, Ints, Left
from restow.policies.packing.wants import PARTS, Want

Measure = Callable[[Left, Left], Floats]
"""(before, afterwards) → how good that is, for each machine; the greatest is taken."""

_EQUAL = 1e-6
_TIGHTER = 1e-9  # of two devices that are as good as each other, the one with less left


@dataclass(slots=True)
class _Found:
    """For one want: per machine how good it is, the device (of a want of one worker), and when that was found."""

    score: Floats
    column: Ints
    version: Ints


class Packer:
    def __init__(self, ground: Ground, measure: Measure):
        self._ground, self._measure = ground, measure
        self._found: dict[Want, _Found] = {}

    def forget(self) -> None:
        """The measure is another one now."""
        self._found.clear()

    def best(self, want: Want, allowed: Bools, lot: int = 0) -> tuple[float, int, list[int]] | None:
        """How good, which machine, which devices; None where there is no room. `allowed`: machines that may be taken; of equally
        good ones the first is, or the one that a `lot` above 0 falls on."""
        found = self._renewed(want)
        score = numpy.where(allowed, found.score, -numpy.inf)
        at = int(numpy.argmax(score)) if len(score) else 0
        if not len(score) or score[at] == -numpy.inf:
            return None
        if lot:
            equal = numpy.nonzero(score >= score[at] - _EQUAL)[0]
            at = int(equal[lot % len(equal)])
        return float(score[at]), at, self._columns(want, at, int(found.column[at]))

    def gain(self, before: Left, after: Left) -> Floats:
        """How good it is to come from one to the other, whatever the reason."""
        return self._measure(before, after)

    def _renewed(self, want: Want) -> _Found:
        count = len(self._ground.version)
        found = self._found.get(want)
        if found is None or len(found.version) != count:
            found = _Found(numpy.full(count, -numpy.inf), numpy.zeros(count, dtype=numpy.int64), numpy.full(count, -1))
            self._found[want] = found
        stale = numpy.nonzero(found.version != self._ground.version)[0]
        if len(stale):
            found.version[stale] = self._ground.version[stale]
            found.score[stale], found.column[stale] = self.judge(want, self._ground.left.some(stale))
        return found

    def judge(self, want: Want, left: Left) -> tuple[Floats, Ints]:
        """For each machine how good it is to have it there (minus infinity: no room), and on which device, if it wants one."""
        score = numpy.full(len(left.at), -numpy.inf)
        column = numpy.zeros(len(left.at), dtype=numpy.int64)
        holding = numpy.nonzero(left.hold(want))[0]
        if not len(holding):
            return score, column
        before = left.some(holding)
        if want.workers > 1 or want.parts in (0, PARTS):
            score[holding] = self._measure(before, _without(before, want, self._rows_of(want, before)))
            return score, column
        each = numpy.full(before.parts.shape, -numpy.inf)
        rows, devices = numpy.nonzero((before.parts >= want.parts) & ~_alike(before.parts))
        now = before.some(rows)
        taken = numpy.zeros_like(now.parts)
        taken[numpy.arange(len(rows)), devices] = want.parts
        each[rows, devices] = self._measure(now, _without(now, want, taken)) - _TIGHTER * before.parts[rows, devices] / PARTS
        column[holding] = each.argmax(axis=1)
        score[holding] = each.max(axis=1)
        return score, column

    @staticmethod
    def _rows_of(want: Want, left: Left) -> Ints:
        """What is taken of each device: the tightest ones that have enough left."""
        taken = numpy.zeros_like(left.parts)
        if want.parts:
            order = numpy.argsort(numpy.where(left.parts >= want.parts, left.parts, 2 * PARTS), axis=1, kind="stable")
            numpy.put_along_axis(taken, order[:, : want.workers], want.parts, axis=1)
        return taken

    def _columns(self, want: Want, at: int, column: int) -> list[int]:
        if not want.parts:
            return [0] * want.workers
        if want.workers == 1 and want.parts < PARTS:
            return [column]
        taken = self._rows_of(want, self._ground.left.some(numpy.array([at])))[0]
        return [int(index) for index in numpy.nonzero(taken)[0]]


def _without(left: Left, want: Want, taken: Ints) -> Left:
    return Left(left.parts - taken, left.cores - want.cores, left.host - want.host_bytes, left.at)


def _alike(parts: Ints) -> Bools:
    """Devices with as much left as one before them on the same machine: whatever is said of one is true of the other."""
    found = numpy.zeros(parts.shape, dtype=bool)
    for device in range(1, parts.shape[1]):
        found[:, device] = (parts[:, :device] == parts[:, device : device + 1]).any(axis=1)
    return found
