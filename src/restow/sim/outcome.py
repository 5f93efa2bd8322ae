"""What came of a simulation: for each job when it ran and what was done to it, and the figures of the whole."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from restow.core.state import ClusterState
from restow.sim.machines import Machines
from restow.sim.rows import Row


@dataclass(slots=True)
class Decisions:
    """How long the policy thought."""

    seconds: list[float] = field(default_factory=list)
    jobs_most: int = 0

    def add(self, seconds: float, jobs: int) -> None:
        self.seconds.append(seconds)
        self.jobs_most = max(self.jobs_most, jobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One job. Times in seconds since the trace began."""

    id: str
    workers: int
    submitted_s: float
    started_s: float
    ended_s: float
    service_s: float  # device seconds that it held
    moves: int
    suspensions: int
    alone_s: float  # that it would take on the devices that suit it best, all its own

    @property
    def jct_s(self) -> float:
        return self.ended_s - self.submitted_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    jobs: tuple[Ended, ...]  # by submission
    devices: int
    events: int
    decisions: Decisions
    wall_s: float  # that the simulation took
    failures: int = 0  # of machines
    stragglers: int = 0  # times that a device became one
    lost_steps: int = 0  # that were made again
    lost_device_s: float = 0.0  # that these took: device seconds
    begins_s: float = 0.0  # when it began: later than the first submission where it goes on from a live cluster's snapshot

    @property
    def avg_jct_s(self) -> float:
        return sum(job.jct_s for job in self.jobs) / len(self.jobs)

    @property
    def makespan_s(self) -> float:
        """From the first submission, or the beginning, to the last end."""
        return max(job.ended_s for job in self.jobs) - max(self.begins_s, min(job.submitted_s for job in self.jobs))

    @property
    def utilization(self) -> float:
        """Device seconds held, by those that there were until the last end."""
        return sum(job.service_s for job in self.jobs) / (self.devices * self.makespan_s) if self.makespan_s else 0.0

    @property
    def changes(self) -> int:
        """Times that a gang was moved or suspended."""
        return sum(job.moves + job.suspensions for job in self.jobs)

    @property
    def worst_ftf(self) -> float:
        """Finish-time fairness of the job that fared worst: how much longer it took than if it had had its even part of the
        cluster, which is its time alone by how many times over the devices were wanted while it was there (at least once). Themis
        (NSDI 2020) as Shockwave (NSDI 2023) measures it."""
        wanted = _contention(self.jobs, self.devices)
        return max(job.jct_s / (job.alone_s * wanted(job.submitted_s, job.ended_s)) for job in self.jobs)

    def jct_percentile_s(self, percent: float) -> float:
        """The completion time that so many per cent of the jobs do not exceed, between two jobs in proportion (as numpy has it)."""
        times = sorted(job.jct_s for job in self.jobs)
        at = percent / 100 * (len(times) - 1)
        below = math.floor(at)
        above = min(below + 1, len(times) - 1)
        return times[below] + (at - below) * (times[above] - times[below])

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        seconds = sorted(self.decisions.seconds) or [0.0]
        return {
            "jobs": len(self.jobs), "devices": self.devices, "avg_jct_s": self.avg_jct_s, "p50_jct_s": self.jct_percentile_s(50),
            "p99_jct_s": self.jct_percentile_s(99), "makespan_s": self.makespan_s,
            "worst_ftf": self.worst_ftf,
            "avg_queueing_s": sum(job.started_s - job.submitted_s for job in self.jobs) / len(self.jobs),
            "utilization": self.utilization, "moves": sum(job.moves for job in self.jobs),
            "suspensions": sum(job.suspensions for job in self.jobs), "failures": self.failures, "stragglers": self.stragglers,
            "lost_steps": self.lost_steps, "lost_device_s": self.lost_device_s, "events": self.events,
            "decisions": len(self.decisions.seconds),
            "decide_p99_s": seconds[math.ceil(0.99 * len(seconds)) - 1], "decide_max_s": seconds[-1],
            "active_jobs_most": self.decisions.jobs_most, "wall_s": self.wall_s,
        }  # fmt: skip


def _contention(jobs: Sequence[Ended], devices: int) -> Callable[[float, float], float]:
    """Mean, from one moment to another, of the devices that all jobs there want by those that there are, at least 1. O(log
    jobs)."""
    changes = sorted([(job.submitted_s, job.workers) for job in jobs] + [(job.ended_s, -job.workers) for job in jobs])
    times, integrals, rates = [changes[0][0]], [0.0], [1.0]
    wanted = 0
    for time_s, change in changes:
        integrals.append(integrals[-1] + rates[-1] * (time_s - times[-1]))
        times.append(time_s)
        wanted += change
        rates.append(max(1.0, wanted / devices))

    def until(time_s: float) -> float:
        at = bisect_right(times, time_s) - 1
        return integrals[at] + rates[at] * (time_s - times[at])

    return lambda from_s, to_s: (until(to_s) - until(from_s)) / (to_s - from_s) if to_s > from_s else 1.0


def outcome_of(
    state: ClusterState, rows: Mapping[str, Row], machines: Machines, alone_s: Callable[[str], float], decisions: Decisions,
    events: int, wall_s: float, begins_s: float = 0.0,
) -> Outcome:  # fmt: skip
    """`alone_s(job)`: what it would take on the devices that suit it best."""
    jobs = []
    for id, row in rows.items():
        job = state.records[id].job
        ended_s = job.ended_s if job.ended_s is not None else math.inf
        before_s = row.past.service_s if row.past and row.past.placement else 0.0
        started_s = row.past.started_s if row.past and row.past.started_s is not None else job.started_s
        jobs.append(Ended(
            id=id, workers=row.workers, submitted_s=row.submitted_s, started_s=started_s or row.submitted_s, ended_s=ended_s,
            service_s=job.service_s(ended_s) - before_s, moves=job.moves, suspensions=job.suspensions, alone_s=alone_s(id),
        ))  # fmt: skip
    return Outcome(jobs=tuple(jobs), devices=machines.devices, events=events, decisions=decisions, wall_s=wall_s, begins_s=begins_s)
