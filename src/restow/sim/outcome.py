"""What came of a simulation: for each job when it ran and what was done to it, and the figures of the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
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

    @property
    def avg_jct_s(self) -> float:
        return sum(job.jct_s for job in self.jobs) / len(self.jobs)

    @property
    def makespan_s(self) -> float:
        """From the first submission to the last end."""
        return max(job.ended_s for job in self.jobs) - min(job.submitted_s for job in self.jobs)

    @property
    def utilization(self) -> float:
        """Device seconds held, by those that there were until the last end."""
        return sum(job.service_s for job in self.jobs) / (self.devices * self.makespan_s) if self.makespan_s else 0.0

    @property
    def changes(self) -> int:
        """Times that a gang was moved or suspended."""
        return sum(job.moves + job.suspensions for job in self.jobs)

    def jct_percentile_s(self, percent: float) -> float:
        """The smallest completion time that so many per cent of the jobs do not exceed (nearest rank)."""
        times = sorted(job.jct_s for job in self.jobs)
        return times[max(0, math.ceil(percent / 100 * len(times)) - 1)]

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        seconds = sorted(self.decisions.seconds) or [0.0]
        return {
            "jobs": len(self.jobs), "devices": self.devices, "avg_jct_s": self.avg_jct_s, "p50_jct_s": self.jct_percentile_s(50),
            "p99_jct_s": self.jct_percentile_s(99), "makespan_s": self.makespan_s,
            "avg_queueing_s": sum(job.started_s - job.submitted_s for job in self.jobs) / len(self.jobs),
            "utilization": self.utilization, "moves": sum(job.moves for job in self.jobs),
            "suspensions": sum(job.suspensions for job in self.jobs), "events": self.events,
            "decisions": len(self.decisions.seconds),
            "decide_p99_s": seconds[math.ceil(0.99 * len(seconds)) - 1], "decide_max_s": seconds[-1],
            "active_jobs_most": self.decisions.jobs_most, "wall_s": self.wall_s,
        }  # fmt: skip


def outcome_of(
    state: ClusterState, rows: Mapping[str, Row], machines: Machines, decisions: Decisions, events: int, wall_s: float
) -> Outcome:
    jobs = []
    for id, row in rows.items():
        job = state.records[id].job
        ended_s = job.ended_s if job.ended_s is not None else math.inf
        jobs.append(Ended(
            id=id, workers=row.workers, submitted_s=row.submitted_s, started_s=job.started_s or row.submitted_s, ended_s=ended_s,
            service_s=job.service_s(ended_s), moves=job.moves, suspensions=job.suspensions,
        ))  # fmt: skip
    return Outcome(jobs=tuple(jobs), devices=machines.devices, events=events, decisions=decisions, wall_s=wall_s)
