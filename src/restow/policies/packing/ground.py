"""What jobs leave of each machine: parts of its devices, cores, memory, as arrays over all machines. Decides nothing.

Devices of one machine are of one kind. A device of a job that does not say what it wants is all taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy

from restow.cluster import Snapshot
from restow.job import Job
from restow.placement import Placement, Slot
from restow.policies.packing.wants import PARTS, Want, want_of

Ints = numpy.ndarray[Any, numpy.dtype[numpy.int64]]
Floats = numpy.ndarray[Any, numpy.dtype[numpy.float64]]
Bools = numpy.ndarray[Any, numpy.dtype[numpy.bool_]]

NO_DEVICE = -1  # in `left`, where a machine has fewer devices than others
_UNCOUNTED = 1e18  # cores, or bytes, of a machine that does not say how many it has
_ALMOST = 1e-6  # of a core


@dataclass(slots=True)
class Left:
    """Of some machines: (machines, devices most) parts, (machines,) cores, bytes, and which machines these are."""

    parts: Ints
    cores: Floats
    host: Floats
    at: Ints

    @property
    def devices(self) -> Floats:
        """How many that is, parts of them counted as such."""
        total: Floats = numpy.maximum(self.parts, 0).sum(axis=1) / PARTS
        return total

    def hold(self, want: Want) -> Bools:
        """Is there room for it?"""
        enough = (self.cores >= want.cores - _ALMOST) & (self.host >= want.host_bytes)
        room: Bools = enough & ((self.parts >= want.parts).sum(axis=1) >= (want.workers if want.parts else 0))
        return room

    def some(self, rows: Ints | Bools) -> Left:
        return Left(self.parts[rows].copy(), self.cores[rows].copy(), self.host[rows].copy(), self.at[rows])


class Ground:
    """Kept from decision to decision: `renew` costs a look at each job, and more only for those that changed."""

    def __init__(self) -> None:
        self.version = numpy.zeros(0, dtype=numpy.int64)  # of a machine; another one: something has changed there
        self.freed = 0  # times that a job has left a place
        self.kinds: list[str] = []
        self.names: list[str] = []
        self._nodes: tuple[Any, ...] = ()
        self._of: dict[str, tuple[Placement, Want, bool]] = {}
        self._index: dict[str, int] = {}

    def renew(self, snapshot: Snapshot) -> None:
        if snapshot.nodes != self._nodes:
            self._lay_out(snapshot)
        placed = 0
        for job in snapshot.jobs:
            known = self._of.get(job.id)
            before = known[0] if known else ()
            if before is not job.intended and before != job.intended:
                self._put(job, job.intended)
            placed += bool(job.intended)
        if placed < len(self._of):
            here = {job.id for job in snapshot.jobs}
            for id in [id for id in self._of if id not in here]:
                self.leave(id)

    def _lay_out(self, snapshot: Snapshot) -> None:
        self._nodes = snapshot.nodes
        self.names = [node.name for node in snapshot.nodes]
        self.kinds = [node.devices[0].kind if node.devices else "" for node in snapshot.nodes]
        self._index = {name: at for at, name in enumerate(self.names)}
        count, most = len(self.names), max((len(node.devices) for node in snapshot.nodes), default=0)
        self.version = numpy.zeros(count, dtype=numpy.int64)
        self._device = [{device.index: column for column, device in enumerate(node.devices)} for node in snapshot.nodes]
        self._indices = [[device.index for device in node.devices] for node in snapshot.nodes]
        self.is_open = numpy.array([node.is_alive and not node.is_cordoned for node in snapshot.nodes], dtype=bool)
        self.left = Left(
            numpy.full((count, most), NO_DEVICE, dtype=numpy.int64),
            numpy.array([node.cores or _UNCOUNTED for node in snapshot.nodes], dtype=float),
            numpy.array([node.host_bytes or _UNCOUNTED for node in snapshot.nodes], dtype=float),
            numpy.arange(count),
        )  # fmt: skip
        for at, node in enumerate(snapshot.nodes):
            self.left.parts[at, : len(node.devices)] = PARTS
        self._taken = numpy.zeros((count, most), dtype=numpy.int64)
        self._of = {}

    # ------------------------------------------------------------ taking and leaving

    def take(self, job: Job, placement: Placement) -> None:
        self._put(job, placement)

    def leave(self, id: str) -> None:
        known = self._of.pop(id, None)
        if known:
            self.freed += 1
            self._count(*known, sign=-1)

    def _put(self, job: Job, placement: Placement) -> None:
        self.leave(job.id)
        if placement:
            known = placement, want_of(job), job.spec.demand.is_declared
            self._of[job.id] = known
            self._count(*known, sign=1)

    def _count(self, placement: Placement, want: Want, is_declared: bool, sign: int) -> None:
        for slot in placement:
            at = self._index.get(slot.node)
            column = self._device[at].get(slot.device) if at is not None else None
            if at is None or column is None:
                continue
            self._taken[at, column] += sign * (want.parts if is_declared else PARTS)
            self.left.parts[at, column] = max(0, PARTS - int(self._taken[at, column]))
            self.left.cores[at] -= sign * want.cores / want.workers
            self.left.host[at] -= sign * (want.host_bytes // want.workers)
            self.version[at] += 1

    def where(self, id: str) -> tuple[int, list[int]]:
        """Machine and devices of a job, as rows and columns."""
        placement = self._of[id][0]
        at = self._index[placement[0].node]
        return at, [self._device[at][slot.device] for slot in placement]

    def slots(self, at: int, columns: list[int], share: float) -> Placement:
        return tuple(Slot(self.names[at], self._indices[at][column], share) for column in columns)
