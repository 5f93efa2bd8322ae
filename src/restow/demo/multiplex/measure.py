"""From the lines that ranks print to speeds, demands and losses. Pure: no clock, no I/O.

A mark is one rank's word that it has finished a step (examples/timed_gpt.py). Speeds count parts of steps, so that a window that
cuts one is no lie; where jobs take turns a window should hold whole rounds.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from restow.bound import Demand


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    rank: int
    step: int  # the first is 1
    end_s: float  # monotonic clock of the machine
    cpu_s: float  # processor time of the step, all threads
    loss: str  # float.hex


@dataclass(frozen=True, slots=True)
class Window:
    begin_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        return self.end_s - self.begin_s


def read_marks(lines: Iterable[str]) -> list[Mark]:
    """Whatever stands before the mark (a prefix of the rank, for example); a line that was cut off is left out."""
    found = []
    for line in lines:
        _, is_mark, fields = line.partition("@step ")
        if is_mark:
            try:
                found.append(Mark(**json.loads(fields)))
            except (json.JSONDecodeError, TypeError):
                continue
    return found


def steps_in(marks: Sequence[Mark], window: Window) -> float:
    """How many steps rank 0 made in the window."""
    ends_s = [mark.end_s for mark in marks if mark.rank == 0]
    return _made_by(ends_s, window.end_s) - _made_by(ends_s, window.begin_s)


def _made_by(ends_s: Sequence[float], time_s: float) -> float:
    """Steps until then, the one under way by its part; of the one after the last as if it took as long as that."""
    done = bisect_right(ends_s, time_s)
    if done == 0 or (done == len(ends_s) and done < 2):
        return float(done)
    length_s = ends_s[done] - ends_s[done - 1] if done < len(ends_s) else ends_s[-1] - ends_s[-2]
    return done + min(1.0, (time_s - ends_s[done - 1]) / length_s)


def period_s(marks: Sequence[Mark], window: Window) -> float:
    """Seconds per step in the window; infinite where none was made."""
    steps = steps_in(marks, window)
    return window.length_s / steps if steps > 0 else float("inf")


def demand_of(marks: Sequence[Mark], window: Window, *, device_share: float, network_s: float) -> Demand:
    """What one step needs, alone in `window`: of its core all processor time, what collectives take included, and of the link
    `network_s`. A device that is a part of a core needs longer for the same."""
    period = period_s(marks, window)
    by_rank: dict[int, list[float]] = {}
    for mark in marks:
        if window.begin_s <= mark.end_s < window.end_s:
            by_rank.setdefault(mark.rank, []).append(mark.cpu_s)
    cpu_s = max((median(values) for values in by_rank.values()), default=0.0)
    return Demand(period_s=period, device_s=min(period, cpu_s / device_share), network_s=min(period, network_s))


def losses(marks: Iterable[Mark], workers: int) -> tuple[list[str], ...]:
    """By rank, in the order of the steps, up to the last step that every rank printed."""
    found: list[dict[int, str]] = [{} for _ in range(workers)]
    for mark in marks:
        found[mark.rank][mark.step] = mark.loss
    steps = min((len(of_rank) for of_rank in found), default=0)
    return tuple([of_rank.get(step, "") for step in range(1, steps + 1)] for of_rank in found)
