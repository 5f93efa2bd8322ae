"""Which schedules may become what is intended: whole gangs on devices that are there, none of them promised twice.

Whatever a policy answers passes here first. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from restow.cluster import Node
from restow.core.occupancy import Occupancy
from restow.core.record import Record
from restow.errors import IllegalTransition
from restow.job import JobState, sizes_of
from restow.placement import Placement, Schedule, Slot, devices_of, rearranged


def is_bound(record: Record) -> bool:
    """Is it decided already where it will be, or that it will be nowhere?"""
    return record.is_committed or record.ending not in (None, JobState.PENDING)


@dataclass(frozen=True, slots=True)
class Difference:
    """What a schedule would make different."""

    moves: dict[str, Placement]  # job → where it is to be, of those that it sends elsewhere
    is_any: bool  # also a reason, or how a job shares


def difference(schedule: Schedule, active: Collection[Record]) -> Difference:
    """`active`: the records that are not final. O(jobs), and cheap: at most decisions nearly all stay as they are."""
    placements, reasons, sharing = schedule.placements, schedule.reasons, schedule.sharing
    moves: dict[str, Placement] = {}
    is_any = False
    for record in active:
        job = record.job
        if job.away:
            continue
        then = placements.get(job.id, ())
        is_elsewhere = then is not job.intended and then != job.intended
        if is_elsewhere or sharing.get(job.id) != job.sharing or reasons.get(job.id, job.reason) != job.reason:
            if not is_bound(record):
                is_any = True
                if is_elsewhere:
                    moves[job.id] = then
            elif sharing.get(job.id) != job.sharing:
                is_any = True
    return Difference(moves, is_any)


def check(schedule: Schedule, moves: Mapping[str, Placement], records: Mapping[str, Record], occupancy: Occupancy,
          nodes: Mapping[str, Node]) -> None:  # fmt: skip
    """Raises IllegalTransition naming the job and the rule that is broken. `moves`: as of `difference`; who stays was checked when
    it was sent there."""
    gone = schedule.placements.keys() - occupancy.active.keys()
    if gone:
        raise IllegalTransition(f"the schedule places {min(gone)}, which is not there any more")
    promised: dict[Slot, dict[str, float]] = {}
    for id, placement in sorted(moves.items()):
        _check_gang(records[id], placement)
        for slot in placement:
            node = nodes.get(slot.node)
            if node is None or not node.is_alive or all(device.index != slot.device for device in node.devices):
                raise IllegalTransition(f"the schedule gives {id} {slot}, which is not there")
            device = slot._replace(share=1.0)
            if device not in promised:
                promised[device] = {other: share for other, share in occupancy.promised(slot).items() if other not in moves}
            promised[device][id] = max(slot.share, promised[device].get(id, 0.0))
            if sum(promised[device].values()) > 1.0 + 1e-9:
                raise IllegalTransition(f"the schedule promises {device} twice, to {' and '.join(sorted(promised[device]))}")
    ways = {id: moves.get(id, records[id].job.intended) for id in {*moves, *occupancy.moving}}
    circle = _waits_in_circles({id: (_kept_until(records[id], then), then) for id, then in sorted(ways.items())})
    if circle:
        raise IllegalTransition(f"the schedule lets {', '.join(circle)} wait for each other's slots")


def _check_gang(record: Record, placement: Placement) -> None:
    job = record.job
    if not placement:
        return
    if len(placement) not in (job.workers, *sizes_of(job.spec)):
        raise IllegalTransition(f"the schedule gives {job.id} {len(placement)} slots; its gang has {job.workers}")
    if placement == job.placement or (job.placement and len(placement) != job.workers):
        return
    if len(devices_of(placement)) < job.devices_min:
        twice = [str(slot) for rank, slot in enumerate(placement) if slot in placement[:rank]]
        of_those = f" ({', '.join(sorted(set(twice)))} more than once)" if twice else ""
        few = f"{len(devices_of(placement))} devices{of_those}"
        raise IllegalTransition(f"the schedule gives {job.id} {few}, fewer than it may have ({job.devices_min})")
    if job.placement and job.movable and rearranged(job.placement, placement) != placement:
        raise IllegalTransition(f"the schedule moves ranks of {job.id} onto each other's slots")


def _kept_until(record: Record, then: Placement) -> Placement:
    """What it gives back only when its new devices are free: nothing where it is to have another number of workers, since it is
    suspended for that."""
    now = record.job.placement
    return now if len(then) == len(now) else ()


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
