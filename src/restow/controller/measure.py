"""What a move really cost and brought, from the events that pass by. Pure: no clock, no I/O.

The step time is a slope, (time between two reports) / (steps between them), over a window: the ranks' own smoothed value
still carries old steps just after a switch, a slope does not. `before` ends where the switch begins to be prepared, since
the twins' rehearsal takes time from the job; `after` begins at the second report after the switch.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from restow.messages import (
    Event,
    MoveMeasured,
    MovePredicted,
    Progressed,
    RankExited,
    RankRolledBack,
    RankSwitched,
    TwinParked,
)
from restow.placement import Move, Placement

STEPS_MIN = 10  # a slope over fewer is mostly the grain of two reports a second
WINDOW_S = 3.0  # and over a shorter time, too
REPORTS_MAX = 240  # two minutes of reports


@dataclass(slots=True)
class _Pending:
    """A switch whose ranks have begun to report; closed when there were enough steps after it."""

    now: Placement
    then: Placement
    before_s: float
    predicted: Move | None
    reports: list[RankSwitched] = field(default_factory=list)
    after: list[Progressed] = field(default_factory=list)
    steps_before: dict[int, int] = field(default_factory=dict)  # rank → its highest step in the old generation


class Measurer:
    """`observe` each event with the job's placements; it yields a MoveMeasured when one is complete."""

    def __init__(self) -> None:
        self._reports: dict[str, dict[int, deque[Progressed]]] = {}  # job → rank → reports of the present generation
        self._pending: dict[tuple[str, int], _Pending] = {}
        self._before: dict[str, float] = {}  # step time when the switch under way began to be prepared
        self._predicted: dict[str, Move] = {}  # job → the last prediction
        self.measured: dict[str, list[MoveMeasured]] = {}

    def expect(self, job: str, generation: int, now: Placement, then: Placement) -> None:
        """A switch of `job` to `generation` has begun to be prepared; repeated calls change nothing."""
        if (job, generation) not in self._pending:
            predicted = self._predicted.get(job)
            predicted = predicted if predicted and predicted.then == then else None
            self._pending[job, generation] = _Pending(now=now, then=then, before_s=self.step_s(job), predicted=predicted)

    def is_resize(self, job: str, now: Placement, then: Placement) -> bool:
        """Was the way there, with another number of workers, the last that was predicted for the job?"""
        return len(now) != len(then) and job in self._predicted and self._predicted[job].then == then

    def step_s(self, job: str) -> float:
        """Seconds per step now, median over the ranks; 0 when there are too few reports."""
        latest = [reports for reports in self._reports.get(job, {}).values() if reports]
        newest = max((reports[-1].generation for reports in latest), default=0)  # ranks that are no more count no more
        slopes = [slope for reports in latest if reports[-1].generation == newest and (slope := _slope(reports))]
        return statistics.median(slopes) if slopes else 0.0

    def observe(self, event: Event) -> Iterator[MoveMeasured]:
        match event:
            case MoveMeasured():  # from the journal
                self.measured.setdefault(event.job, []).append(event)
                self._pending.pop((event.job, event.generation), None)
            case MovePredicted(move=move):
                self._predicted[move.job] = move
            case RankSwitched(job=job, generation=generation, rank=rank):
                pending = self._pending.get((job, generation))
                if pending and all(report.rank != rank for report in pending.reports):
                    pending.reports.append(event)
                    old = self._reports.get(job, {}).pop(rank, deque())
                    pending.steps_before[rank] = max((report.step for report in old), default=0)
            case RankRolledBack(job=job, generation=generation):
                self._pending.pop((job, generation), None)
            case Progressed(job=job, generation=generation, rank=rank):
                pending = self._pending.get((job, generation))
                if pending and len(pending.reports) >= len(pending.then):
                    pending.after.append(event)
                    if _after_s(pending):
                        yield self._close(job, generation, pending)
                reports = self._reports.setdefault(job, {}).setdefault(rank, deque(maxlen=REPORTS_MAX))
                if reports and reports[-1].generation != generation:
                    reports.clear()
                reports.append(event)
            case RankExited(job=job, role="rank"):
                for (name, generation), pending in list(self._pending.items()):
                    if name == job and len(pending.reports) >= len(pending.then):
                        yield self._close(job, generation, pending)  # it ended soon after: say what there is
            case TwinParked():
                pass

    def _close(self, job: str, generation: int, pending: _Pending) -> MoveMeasured:
        del self._pending[job, generation]
        predicted = pending.predicted
        if predicted is self._predicted.get(job):
            self._predicted.pop(job, None)
        longest = max(pending.reports, key=lambda report: report.pause_s)
        seen_before = max(pending.steps_before.values(), default=0)
        first_after = min((report.step for report in pending.after), default=longest.step)
        return MoveMeasured(
            time_s=(pending.after[-1] if pending.after else longest).time_s,
            job=job, generation=generation, now=pending.now, then=pending.then,
            reason=predicted.reason if predicted else "",
            step=longest.step,
            step_before_s=pending.before_s or (predicted.step_now_s if predicted else 0.0),
            step_predicted_s=predicted.step_then_s if predicted else 0.0,
            step_after_s=_after_s(pending) or 0.0,
            downtime_s=longest.pause_s,
            downtime_predicted_s=predicted.downtime_s if predicted else 0.0,
            wire_bytes=sum(report.wire_bytes for report in pending.reports),
            lost_steps=max(0, seen_before - longest.step, longest.step - first_after),
            phases=longest.phases,
        )  # fmt: skip


def _after_s(pending: _Pending) -> float | None:
    """Seconds per step after the switch, median over the ranks, once every rank has enough steps; else None."""
    slopes = []
    for rank in range(len(pending.then)):
        reports = [report for report in pending.after if report.rank == rank]
        slope = _slope(reports[1:])  # the first may still hold the switch itself
        if slope is None:
            return None
        slopes.append(slope)
    return statistics.median(slopes)


def _slope(reports: deque[Progressed] | list[Progressed]) -> float | None:
    """Seconds per step over the newest stretch that is long enough, else None."""
    if not reports:
        return None
    last = reports[-1]
    for first in reversed(reports):
        steps, time_s = last.step - first.step, last.time_s - first.time_s
        if steps >= STEPS_MIN and time_s >= WINDOW_S:
            return time_s / steps
    return None
