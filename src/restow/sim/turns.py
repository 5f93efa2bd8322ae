"""How long steps take of jobs on the same devices, and on the link between them: in turns, first come, first served, or freely.

One step of a job alone needs so many seconds of its device, then so many of the link, and the rest of its period neither. Their
steps are gone through one after another, from all beginning at once. In turns, who comes to a device or a link that is taken waits
until those before it are done; freely, all that are there get even parts of it, and so jobs of equal steps stay in step and are
never there for each other's waits. Pure.

What it does not know: steps that are not all alike, and the time that handing over takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat

from restow.bound import Demand

WARM_STEPS = 20  # of the slowest alone, until who waits for whom is as it will be
STEPS = 200  # and so many of it are then gone through ...
SHORT_STEPS_MAX = 5_000  # ... but no more than about so many of the shortest, where others take a thousand times as long
NEITHER = 2  # the last of the stations of a step, after device and link: nobody waits there
_EPSILON_S = 1e-12


def periods_s(demands: Sequence[Demand], *, in_turns: bool = True) -> list[float]:
    """Seconds from step to step of each, in their order, each above 0. O(jobs^2 x steps)."""
    alone_s = [demand.period_s for demand in demands]
    if len(demands) < 2:
        return alone_s
    end_s, now_s = min(max(alone_s) * (WARM_STEPS + STEPS), min(alone_s) * SHORT_STEPS_MAX), 0.0
    begin_s = end_s * WARM_STEPS / (WARM_STEPS + STEPS)
    going = [chain.from_iterable(repeat(_stations(demand))) for demand in demands]
    station, left_s = [0] * len(demands), [0.0] * len(demands)
    queues: tuple[list[int], ...] = ([], [], [])  # who is at each station, in the order of coming
    served_s, ends = [0.0] * len(demands), [list[float]() for _ in demands]

    def go_on(job: int) -> None:
        station[job], left_s[job] = next(going[job])
        queues[station[job]].append(job)

    for job in range(len(demands)):
        go_on(job)
    while now_s < end_s:
        rates = {job: _rate(at, place, len(queue), in_turns) for at, queue in enumerate(queues) for place, job in enumerate(queue)}
        span_s = min(left_s[job] / rate for job, rate in rates.items() if rate)
        now_s += span_s
        for job, rate in sorted(rates.items()):
            served_s[job] += span_s * rate
            left_s[job] -= span_s * rate
            if rate and left_s[job] <= _EPSILON_S:
                before = station[job]
                queues[before].remove(job)
                go_on(job)
                if station[job] <= before and now_s >= begin_s:  # it begins anew
                    ends[job].append(now_s)
    return [
        (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else now_s * alone_s[job] / max(served_s[job], _EPSILON_S)
        for job, times in enumerate(ends)
    ]


def _rate(station: int, place: int, there: int, in_turns: bool) -> float:
    """How fast the one at this place of the queue is served."""
    if station == NEITHER:
        return 1.0
    return float(place == 0) if in_turns else 1.0 / there


def _stations(demand: Demand) -> list[tuple[int, float]]:
    """Of one step: which it comes to, and the seconds that it needs there. Of the link what computing does not hide."""
    device_s = min(demand.device_s, demand.period_s)
    network_s = min(demand.network_s, demand.period_s - device_s)
    seconds = device_s, network_s, demand.period_s - device_s - network_s
    return [(station, wanted_s) for station, wanted_s in enumerate(seconds) if wanted_s > _EPSILON_S]
