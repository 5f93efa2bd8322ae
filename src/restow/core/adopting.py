"""Which schedules may become what is intended: whole gangs on devices that are there, none of them promised twice.

Whatever a policy answers passes here first. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from restow.cluster import Node
from restow.core.record import Record
from restow.errors import IllegalTransition
from restow.job import JobState, sizes_of
from restow.messages import ScheduleAdopted
from restow.placement import Placement, Schedule, Uses, devices_of, rearranged


def is_bound(record: Record) -> bool:
    """Is it decided already where it will be, or that it will be nowhere?"""
    return record.is_committed or record.ending not in (None, JobState.PENDING)


def changes(adopted: ScheduleAdopted, active: Collection[Record]) -> bool:
    """Would it make anything of these jobs different?"""
    placements, reasons, sharing = dict(adopted.placements), dict(adopted.reasons), dict(adopted.sharing)
    for record in active:
        job = record.job
        if job.away:
            continue
        if sharing.get(job.id) != job.sharing:
            return True
        if not is_bound(record) and (
            placements.get(job.id, ()) != job.intended or reasons.get(job.id, job.reason) != job.reason
        ):
            return True
    return False


def check(schedule: Schedule, records: Mapping[str, Record], active: Collection[Record], nodes: Mapping[str, Node]) -> None:
    """Raises IllegalTransition naming the job and the rule that is broken. `active`: the records that are not final."""
    taken, wishes = Uses(), dict[str, tuple[Placement, Placement]]()
    there = {name: {device.index for device in node.devices} for name, node in nodes.items() if node.is_alive}
    for id, placement in sorted(schedule.placements.items()):
        record = records.get(id)
        if record is None or record.job.state.is_final:
            raise IllegalTransition(f"the schedule places {id}, which is not there any more")
        _check_gang(record, placement)
        for slot in placement:
            if slot.device not in there.get(slot.node, ()):
                raise IllegalTransition(f"the schedule gives {id} {slot}, which is not there")
        if not is_bound(record):
            _take(taken, id, placement)
            if record.job.placement != placement:
                wishes[id] = (record.job.placement, placement)
    for record in active:  # whatever the schedule says of them
        if is_bound(record) and not record.job.away:
            _take(taken, record.job.id, record.job.intended)
    circle = _waits_in_circles(wishes)
    if circle:
        raise IllegalTransition(f"the schedule lets {', '.join(circle)} wait for each other's slots")


def _check_gang(record: Record, placement: Placement) -> None:
    job = record.job
    if len(placement) not in (job.workers, *sizes_of(job.spec)):
        raise IllegalTransition(f"the schedule gives {job.id} {len(placement)} slots; its gang has {job.workers}")
    if placement == job.placement or (job.placement and len(placement) != job.workers):
        return
    if len(devices_of(placement)) < job.devices_min:
        raise IllegalTransition(f"the schedule gives {job.id} {len(devices_of(placement))} devices, fewer than it may have")
    if job.placement and job.movable and rearranged(job.placement, placement) != placement:
        raise IllegalTransition(f"the schedule moves ranks of {job.id} onto each other's slots")


def _take(taken: Uses, id: str, placement: Placement) -> None:
    for slot in placement:
        taken.add(slot, id)
        if not taken.fits(slot):
            raise IllegalTransition(f"the schedule promises {slot} twice, to {' and '.join(taken.jobs(slot))}")


def _waits_in_circles(wishes: Mapping[str, tuple[Placement, Placement]]) -> list[str]:
    """Jobs (id → placement now, then) that wait for each other's slots and so would never move; empty when all can go."""
    left = dict(wishes)
    while True:
        held = {slot[:2]: job for job, (now, _) in left.items() for slot in now}
        free = [job for job, (_, then) in left.items() if all(held.get(slot[:2], job) == job for slot in then)]
        if not free:
            return sorted(left)
        for job in free:
            del left[job]
