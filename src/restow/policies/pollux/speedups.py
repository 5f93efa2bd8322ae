"""How much faster jobs are on some devices than with their even part of the cluster, as tables over machines and devices.

As Pollux does it, only how many machines and devices a gang has is looked at, not how many devices each machine gives it: here as
evenly as can be. What its own scheduler fits to what each job has measured is here what is believed of it (Snapshot.forecast); that
it knows nothing of more than twice as many devices as a job has had is policy.py's.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy

from restow.cluster import Forecast, Node
from restow.job import Job
from restow.placement import Placement, Slot

Numbers = numpy.ndarray[Any, Any]


class Goodputs:
    """Steps per second of jobs; kept from decision to decision, for the same machines."""

    def __init__(self, nodes: tuple[Node, ...]):
        """`nodes`: alive and not cordoned."""
        self.nodes = nodes
        self._widest = sorted(nodes, key=lambda node: (-len(node.devices), node.name))
        self.devices = sum(len(node.devices) for node in nodes)
        self._tables: dict[Hashable, Numbers] = {}  # jobs alike → (machines + 1, devices + 1); not a number: not asked for yet

    def look_up(self, jobs: Sequence[Job], machines: Numbers, devices: Numbers, forecast: Forecast) -> Numbers:
        """(…, jobs) of as many machines and devices of each."""
        tables = [self._table(job, forecast) for job in jobs]
        stacked, which = numpy.stack(tables), numpy.arange(len(jobs))
        missing = numpy.isnan(stacked[which, machines, devices])
        if missing.any():
            at = numpy.broadcast_to(which, machines.shape)[missing].tolist()
            for job, *pair in set(zip(at, machines[missing].tolist(), devices[missing].tolist(), strict=True)):
                if math.isnan(tables[job][pair[0], pair[1]]):
                    tables[job][pair[0], pair[1]] = self._goodput(jobs[job], pair[0], pair[1], forecast)
            stacked = numpy.stack(tables)
        found: Numbers = stacked[which, machines, devices]
        return found

    def _table(self, job: Job, forecast: Forecast) -> Numbers:
        key = forecast.alike(job)
        if key not in self._tables:
            self._tables[key] = numpy.full((len(self.nodes) + 1, self.devices + 1), numpy.nan)
            self._tables[key][0, 0] = 0.0
        return self._tables[key]

    def fair(self, job: Job, devices: int, forecast: Forecast) -> float:
        """With so many devices on the fewest machines, or the most below that with which it can run."""
        for number in range(devices, 0, -1):
            machines, left = 0, number
            while left > 0:
                left -= len(self._widest[machines].devices)
                machines += 1
            found = self.look_up([job], numpy.array([machines]), numpy.array([number]), forecast)[0]
            if found > 0:
                return float(found)
        return math.inf

    def _goodput(self, job: Job, machines: int, devices: int, forecast: Forecast) -> float:
        placement = self._even(machines, devices)
        seconds = forecast.step_s(job, placement) if placement else math.inf
        return 1.0 / seconds if seconds > 0 else 0.0

    def _even(self, machines: int, devices: int) -> Placement:
        """As evenly as the widest machines have room; empty where they have none."""
        counts, left = [0] * machines, devices
        while left:
            open_ = [at for at in range(machines) if counts[at] < len(self._widest[at].devices)]
            if not open_:
                return ()
            at = min(open_, key=lambda at: counts[at])
            counts[at] += 1
            left -= 1
        pairs = zip(self._widest, counts, strict=False)
        return tuple(Slot(node.name, device.index) for node, count in pairs for device in node.devices[:count])
