"""What happened in a run, for who wants to look at it afterwards: where each job was, from when to when, and why it came and went.

Fed with each event after the core has taken it in; looks at the jobs that the event touched and nothing else. A reason is the one
that the policy gave with the schedule that sent the job there; empty where it gave none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from restow.core.state import ClusterState
from restow.job import Job
from restow.messages import Event, NodeLost, ScheduleAdopted
from restow.placement import Placement, nodes_of, same_devices


class Came(Enum):
    STOOD = "stood"  # it was there when the simulation began
    STARTED = "started"
    MOVED = "moved"
    RESUMED = "resumed"
    RESHARED = "reshared"  # the same devices, another part of them


class Went(Enum):
    ENDED = "ended"
    MOVED = "moved"
    SUSPENDED = "suspended"
    LOST = "lost"  # with a machine
    RESHARED = "reshared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """A job on the same slots. Seconds of virtual time."""

    job: str
    placement: Placement
    from_s: float
    to_s: float
    came: Came
    came_why: str
    went: Went
    went_why: str


@dataclass(frozen=True, slots=True)
class _Open:
    placement: Placement
    from_s: float
    came: Came
    why: str
    suspensions: int  # of the job, by then


class Recorder:
    """`begins_s`: of the simulation; who is placed before stood there."""

    def __init__(self, begins_s: float = 0.0) -> None:
        self.stays: list[Stay] = []  # those that are over, by their end
        self._begins_s = begins_s
        self._open: dict[str, _Open] = {}
        self._seen: set[str] = set()  # jobs that have been somewhere
        self._intended: dict[str, Placement] = {}
        self._lost_s: dict[str, float] = {}  # machine → when it was lost last
        self._why: dict[str, str] = {}  # job → the reason of the schedule that sends it where it is to be

    def observe(self, event: Event, state: ClusterState) -> None:
        if isinstance(event, NodeLost):
            self._lost_s[event.node] = event.time_s
        reasons = dict(event.reasons) if isinstance(event, ScheduleAdopted) and state.touched else None
        for id in sorted(state.touched):
            job = state.records[id].job
            if job.intended != self._intended.get(id, ()):
                self._intended[id] = job.intended
                if reasons is not None:
                    self._why[id] = reasons.get(id, "")
            before = self._open.get(id)
            if job.placement != (before.placement if before else ()):
                self._turn(job, before, max(event.time_s, self._begins_s), event.time_s < self._begins_s)

    def _turn(self, job: Job, before: _Open | None, now_s: float, is_past: bool) -> None:
        """It is on other slots than before."""
        why = self._why.get(job.id, "")
        is_same = before is not None and same_devices(before.placement, job.placement)
        if before:
            went = Went.RESHARED if is_same else Went.MOVED if job.placement else Went.SUSPENDED
            went = Went.LOST if went is Went.SUSPENDED and self._is_lost(job, before) else went
            went = Went.ENDED if job.state.is_final else went
            gone_why = job.reason if went is Went.LOST else "" if went is Went.ENDED else why
            self.stays.append(Stay(
                job=job.id, placement=before.placement, from_s=before.from_s, to_s=now_s, came=before.came, came_why=before.why,
                went=went, went_why=gone_why,
            ))  # fmt: skip
            del self._open[job.id]
        if job.placement:
            came = Came.RESHARED if is_same else Came.MOVED if before else Came.RESUMED if job.id in self._seen else Came.STARTED
            self._open[job.id] = _Open(job.placement, now_s, Came.STOOD if is_past else came, why, job.suspensions)
            self._seen.add(job.id)
        else:
            self._intended.pop(job.id, None)

    def _is_lost(self, job: Job, before: _Open) -> bool:
        """A job that was suspended is counted as such by the core."""
        is_hit = any(self._lost_s.get(node, -1.0) >= before.from_s for node in nodes_of(before.placement))
        return is_hit and job.suspensions == before.suspensions
