"""What takes turns: a job, or two that are packed on the same devices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from restow.job import Job, JobState, Sharing
from restow.placement import Placement, Schedule, Slot, rearranged, same_devices
from restow.policies.ranked import is_stuck


@dataclass(frozen=True, slots=True)
class Unit:
    """One job, or a pair; gangs of one size."""

    jobs: tuple[Job, ...]

    @property
    def key(self) -> tuple[float, str]:
        """Who came first goes first."""
        return min((job.submitted_s, job.id) for job in self.jobs)

    @property
    def workers(self) -> int:
        return self.jobs[0].workers

    @property
    def here(self) -> Placement:
        """The devices that it has or was promised, all of each; empty: none."""
        placement = next((job.intended for job in self.jobs if job.intended), ())
        return tuple(Slot(slot.node, slot.device) for slot in placement)

    @property
    def is_whole(self) -> bool:
        """Are all of it where it is?"""
        return len({frozenset(slot[:2] for slot in job.intended) for job in self.jobs}) == 1

    def is_fixed(self, now_s: float) -> bool:
        """Is any of it in the middle of something, or pinned by a person?"""
        return any(is_fixed(job, now_s) for job in self.jobs)


def is_fixed(job: Job, now_s: float) -> bool:
    is_moving = bool(job.placement) and bool(job.intended) and not same_devices(job.placement, job.intended)
    may_not_move = job.state is JobState.RUNNING and not job.spec.migrate
    return is_stuck(job, now_s) or bool(job.pinned) or job.state is JobState.STOPPING or is_moving or may_not_move


def stay(schedule: Schedule, jobs: Iterable[Job]) -> None:
    """As they are, and with whom."""
    for job in jobs:
        if job.intended:
            schedule.put(job.id, job.intended)
        if job.sharing:
            schedule.sharing[job.id] = job.sharing


def put(schedule: Schedule, unit: Unit, placement: Placement, reason: str) -> None:
    """All of it there. Packed jobs run both at once, as Gandiva has it: nobody takes turns inside a step."""
    share = 1.0 / len(unit.jobs)
    devices = {slot[:2] for slot in placement}
    for job in unit.jobs:
        is_here = bool(job.intended) and {slot[:2] for slot in job.intended} == devices
        own = job.intended if is_here else rearranged(job.placement, placement) if job.placement else placement
        then = tuple(slot._replace(share=share) for slot in own)
        schedule.put(job.id, then, "" if then == job.intended else reason)
        partners = tuple(other.id for other in unit.jobs if other is not job)
        if partners:
            is_so = job.sharing is not None and job.sharing.partners == partners
            schedule.sharing[job.id] = job.sharing if is_so else Sharing(mode="free", partners=partners)
