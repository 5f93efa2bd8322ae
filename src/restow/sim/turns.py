"""How long steps take of jobs that take turns on the same devices, and on the link between them: first come, first served.

One step of a job alone needs so many seconds of its device, then so many of the link, and the rest of its period neither. Their
steps are gone through one after another, from all beginning at once; who comes to a device or a link that is taken waits until
those before it are done. Pure.

What it does not know: steps that are not all alike, the time that handing over takes, links that are shared without turns.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from restow.bound import Demand

WARM_STEPS = 20  # of the slowest alone, until who waits for whom is as it will be
STEPS = 200  # and so many of it are then gone through


def periods_s(demands: Sequence[Demand]) -> list[float]:
    """Seconds from step to step of each, in their order. O(jobs x steps)."""
    if len(demands) < 2:
        return [demand.period_s for demand in demands]
    alone_s = max(demand.period_s for demand in demands)
    begin_s, end_s = alone_s * WARM_STEPS, alone_s * (WARM_STEPS + STEPS)
    coming = [(0.0, number, 0) for number in range(len(demands))]  # when, who, to which of its stations
    free_s = [0.0, 0.0]  # from when on the device, and the link, are
    ends: list[list[float]] = [[] for _ in demands]
    while coming:
        now_s, number, station = heapq.heappop(coming)
        wants_s = _wants_s(demands[number])
        if station < len(free_s):
            if wants_s[station] > 0:
                now_s = free_s[station] = max(now_s, free_s[station]) + wants_s[station]
            heapq.heappush(coming, (now_s, number, station + 1))
            continue
        now_s += wants_s[station]
        if now_s >= begin_s:
            ends[number].append(now_s)
        if now_s < end_s:
            heapq.heappush(coming, (now_s, number, 0))
    return [(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else times[0] for times in ends]


def _wants_s(demand: Demand) -> tuple[float, float, float]:
    """Of the device, of the link as far as it is not hidden, and of neither."""
    device_s = min(demand.device_s, demand.period_s)
    network_s = min(demand.network_s, demand.period_s - device_s)
    return device_s, network_s, demand.period_s - device_s - network_s
