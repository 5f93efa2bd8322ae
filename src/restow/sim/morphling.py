"""Morphling's world: large models on eight machines of eight A800, by how they are parallelized and how many of its devices each
machine gives them.

Source: `simulator/traces` of AlibabaPAI/reconfigurable-dl-scheduler (Rubick, MLSys 2025; Apache-2.0). A gang keeps its size and its
batch; on each place it is parallelized in the way that was measured to be the fastest there (data, tensor and pipeline parallel,
ZeRO, offloading, gradient accumulation or checkpointing), whatever the trace says of it. A place that was not measured counts as
the fastest one of as many devices that was, on as many machines or more: fewer machines do not make a gang slower, but what they
gain is not known. Two gangs on a device were not measured.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path

from restow.errors import TraceError
from restow.placement import Placement, count_by_node
from restow.sim.rows import Row
from restow.sim.traces import table
from restow.sim.world import Nodes

Counts = tuple[int, ...]
"""Devices of each machine, ascending: `11222` in the tables."""


class MorphlingWorld:
    def __init__(self, folder: Path):
        self._folder = folder
        self._tables: dict[str, dict[Counts, float]] = {}
        self._seconds: dict[tuple[str, Counts], float] = {}
        if not any(folder.glob("*/placements.csv")):
            raise TraceError(f"table {folder} holds no model, a folder with placements.csv each")

    def _table(self, row: Row) -> dict[Counts, float]:
        """Place → seconds of a step, in the fastest way that was measured there."""
        if row.model not in self._tables:
            path = self._folder / row.model / "placements.csv"
            if not row.model or not path.is_file():
                raise TraceError(f"job {row.id}: there is no model {row.model!r} in {self._folder}")
            self._tables[row.model] = _read(path)
        return self._tables[row.model]

    def work(self, row: Row) -> float:
        if all(sum(counts) != row.workers for counts in self._table(row)):
            raise TraceError(f"job {row.id}: {row.model} was not measured on {row.workers} devices")
        return row.steps

    def step_s(self, row: Row, placement: Placement, nodes: Nodes, beside: Sequence[tuple[Row, Placement]] = ()) -> float:
        if beside:
            return math.inf
        key = row.model, tuple(sorted(count_by_node(placement).values()))
        if key not in self._seconds:
            self._seconds[key] = _seconds(self._table(row), key[1])
        return self._seconds[key]

    def alike(self, row: Row) -> Hashable:
        return row.model

    def place(self, placement: Placement, nodes: Nodes) -> Hashable:
        return tuple(sorted(count_by_node(placement).values()))


def _seconds(measured: dict[Counts, float], counts: Counts) -> float:
    alike = (s for known, s in measured.items() if sum(known) == sum(counts) and len(known) >= len(counts))
    return measured.get(counts) or min(alike, default=math.inf)


def _read(path: Path) -> dict[Counts, float]:
    found: dict[Counts, float] = defaultdict(lambda: math.inf)
    for line in table.lines(path):
        written, step_s = line.text("placement"), line.decimal("iter_time")
        if not written.isdecimal():
            raise line.error("placement", f"{written!r} is no row of digits, one for each machine")
        if step_s > 0:  # 0: it did not fit
            counts = tuple(sorted(map(int, written)))
            found[counts] = min(found[counts], step_s)
    return dict(found)
