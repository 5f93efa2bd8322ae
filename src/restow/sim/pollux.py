"""Pollux's world: six applications on machines of four T4, measured by how many devices each machine gives them, and how much of a
sample's worth is left in large batches.

Source: Qiao et al., OSDI 2021; `simulator/traces` of its artifact (Apache-2.0). A rigid job keeps its gang and its batch, so that
its steps are as long as its placement says and its work is the steps that its progress takes: in each epoch the progress of the
smallest batch, divided by the statistical efficiency of its own (gradient noise) at that epoch.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from restow.errors import SetupError, TraceError
from restow.placement import Placement, count_by_node
from restow.sim.rows import Row
from restow.sim.traces import table
from restow.sim.world import Nodes

EPOCHS = {"bert": 2, "cifar10": 100, "ncf": 10, "imagenet": 90, "deepspeech2": 80, "yolov3": 50}  # as its simulator trains them
LOCAL_BATCH_MAX = {"yolov3": 8}  # of a T4's memory
NODES_MEASURED = 16
_ALMOST = 1e-8  # so that a batch that divides evenly is not rounded up


@dataclass(frozen=True, slots=True)
class Validation:
    """One line for each epoch, trained with one batch size."""

    progress: list[float]
    gradient: list[float]  # squared norm
    variance: list[float]


class Application:
    """What was measured of one of them."""

    def __init__(self, folder: Path):
        self.name = folder.name
        self.epochs = EPOCHS[self.name]
        self._by_batch: dict[int, Validation] = {}
        self._gains: dict[int, list[float]] = {}  # batch → in each epoch
        for path in sorted(folder.glob("validation-*.csv"), key=lambda path: int(path.stem.rpartition("-")[2])):
            rows = list(table.lines(path))
            columns = ([line.decimal(name) for line in rows] for name in ("progress", "grad_sqr", "grad_var"))
            self._by_batch[int(path.stem.rpartition("-")[2])] = Validation(*columns)
        self.placements: dict[tuple[int, ...], list[tuple[float, float, float]]] = defaultdict(list)
        self._points: list[tuple[tuple[float, float, float], tuple[float, float]]] = []
        sums: dict[tuple[float, float, float], list[tuple[float, float]]] = defaultdict(list)
        for line in table.lines(folder / "placements.csv"):
            placement = tuple(int(digit) for digit in line.text("placement"))
            local, step_s, sync_s = line.decimal("local_bsz"), line.decimal("step_time"), line.decimal("sync_time")
            self.placements[placement].append((local, step_s, sync_s))
            sums[len(placement), sum(placement), local].append((step_s, sync_s))
        for point, found in sums.items():
            self._points.append((point, (sum(s for s, _ in found) / len(found), sum(s for _, s in found) / len(found))))
        for line in table.lines(folder / "scalability.csv"):
            point = line.decimal("num_nodes"), line.decimal("num_replicas"), line.decimal("local_bsz")
            self._points.append((point, (line.decimal("step_time"), line.decimal("sync_time"))))
        for rows_of in self.placements.values():
            rows_of.sort()
        locals_measured = [local for rows_of in self.placements.values() for local, _, _ in rows_of]
        self.local_batch_min = int(min(locals_measured))
        self.local_batch_max = LOCAL_BATCH_MAX.get(self.name, int(max(locals_measured)))
        self.batch_least, self.batch_most = min(self._by_batch), max(self._by_batch)
        # after each epoch, in steps of the smallest batch
        self.reached = [min(found.progress[epoch] for found in self._by_batch.values()) for epoch in range(self.epochs)]

    # ------------------------------------------------------------ how fast

    def split(self, batch: float, replicas: int) -> tuple[int, int]:
        """Samples that a replica takes at once, and how often it adds up gradients before a step (0: it does not)."""
        local = math.ceil(batch / replicas - _ALMOST)
        rounds = math.ceil(local / self.local_batch_max - _ALMOST) - 1
        if replicas == 1 and batch > self.batch_least:
            rounds = max(1, rounds)  # gradient noise is measured from two
        at_once = math.ceil(local / (rounds + 1) - _ALMOST)
        return min(at_once, self.batch_most // (replicas * (rounds + 1))), rounds

    def step_s(self, counts: Sequence[int], batch: int) -> float:
        """Of a gang with so many replicas on each of its machines."""
        local, rounds = self.split(batch, sum(counts))
        step_s, sync_s = self._measured(rotated(counts), local)
        return step_s + rounds * (step_s - sync_s)

    def _measured(self, placement: tuple[int, ...], local: int) -> tuple[float, float]:
        """Step and synchronization, between the batch sizes that were measured; between placements where this one was not."""
        rows = self.placements.get(placement)
        if rows:
            at = max(1, min(bisect_left(rows, (local, 0.0, 0.0)), len(rows) - 1))
            (a, step_a, sync_a), (b, step_b, sync_b) = rows[at - 1], rows[at]
            if rows[0][0] <= local <= rows[-1][0]:
                part = (local - a) / (b - a)
                return step_a + part * (step_b - step_a), sync_a + part * (sync_b - sync_a)
            return math.inf, math.inf
        found = self._between(min(len(placement), NODES_MEASURED), sum(placement), local)
        return (math.inf, math.inf) if any(map(math.isnan, found)) else found

    def _between(self, nodes: int, replicas: int, local: int) -> tuple[float, float]:
        step_s, sync_s = self.interpolator([nodes, replicas, local])[0]
        return float(step_s), float(sync_s)

    @property
    def interpolator(self) -> Any:
        """(machines, replicas, local batch) → seconds of a step and its synchronization; not a number outside of what is known."""
        return _interpolator(self)

    # ------------------------------------------------------------ how much

    def work(self, batch: int) -> float:
        """Steps with this batch, in all."""
        steps, progress = 0.0, 0.0
        for reached, gain in zip(self.reached, self.gains(batch), strict=True):
            steps += (reached - progress) / gain
            progress = reached
        return steps

    def gains(self, batch: int) -> list[float]:
        """Steps of the smallest batch that one with this batch is worth, in each epoch."""
        if batch not in self._gains:
            below = max(known for known in self._by_batch if known <= batch)
            above = min(known for known in self._by_batch if known >= batch)
            low, high = self._by_batch[below], self._by_batch[above]
            part = (batch - below) / (above - below) if above > below else 0.0
            scale = batch / self.batch_least
            found = self._gains[batch] = []
            for epoch in range(self.epochs):
                gradient = low.gradient[epoch] + part * (high.gradient[epoch] - low.gradient[epoch])
                variance = low.variance[epoch] + part * (high.variance[epoch] - low.variance[epoch])
                found.append((variance + gradient) / (variance / scale + gradient))
        return self._gains[batch]


class Applications:
    """Those of a folder, read when they are first asked for."""

    def __init__(self, folder: Path):
        self._folder = folder
        if not any((folder / name / "placements.csv").is_file() for name in EPOCHS):
            raise TraceError(f"table {folder} holds none of Pollux's applications ({', '.join(EPOCHS)}), a folder each")
        self._found: dict[str, Application] = {}

    def of(self, row: Row) -> Application:
        if row.model not in self._found:
            if row.model not in EPOCHS or not (self._folder / row.model).is_dir():
                raise TraceError(f"job {row.id}: there is no application {row.model!r} in {self._folder}")
            self._found[row.model] = Application(self._folder / row.model)
        return self._found[row.model]


class PolluxWorld:
    """Of rigid jobs: each keeps the gang and the batch of its row."""

    def __init__(self, folder: Path):
        self._applications = Applications(folder)
        self._seconds: dict[tuple[str, tuple[int, ...], int], float] = {}

    def work(self, row: Row) -> float:
        application = self._applications.of(row)
        local, rounds = application.split(row.batch, row.workers)
        return application.work(row.workers * local * (rounds + 1))

    def step_s(self, row: Row, placement: Placement, nodes: Nodes, beside: Sequence[tuple[Row, Placement]] = ()) -> float:
        """Two on a device were not measured: infinite."""
        if beside:
            return math.inf
        counts = rotated(tuple(count_by_node(placement).values()))
        key = row.model, counts, row.batch
        if key not in self._seconds:
            self._seconds[key] = self._applications.of(row).step_s(counts, row.batch)
        return self._seconds[key]

    def alike(self, row: Row) -> Hashable:
        return row.model, row.workers, row.batch

    def place(self, placement: Placement, nodes: Nodes) -> Hashable:
        return rotated(tuple(count_by_node(placement).values()))


def rotated(counts: Sequence[int]) -> tuple[int, ...]:
    """The smallest of its rotations: a ring has no first machine."""
    return min(tuple(counts[at:]) + tuple(counts[:at]) for at in range(len(counts)))


@lru_cache(maxsize=32)
def _interpolator(application: Application) -> Any:
    try:
        from scipy.interpolate import LinearNDInterpolator
    except ImportError:
        raise SetupError("scipy is missing; pip install scipy") from None
    return LinearNDInterpolator([point for point, _ in application._points], [times for _, times in application._points])
