"""Who is to be on which devices, while one decision is made: groups of one or two jobs, each on devices of its own, and what is
free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from restow.cluster import Snapshot
from restow.job import Job
from restow.placement import Placement, Slot
from restow.policies.room import Room

Devices = frozenset[tuple[str, int]]


@dataclass(slots=True)
class Group:
    """Jobs on the very same devices."""

    placement: Placement  # whole devices, in the order of the first one's ranks
    jobs: list[Job]

    @property
    def devices(self) -> Devices:
        return frozenset(slot[:2] for slot in self.placement)


@dataclass(slots=True)
class Floor:
    """`touched`: jobs that this decision has changed, or that are in the middle of something: they stay as they are now."""

    groups: dict[Devices, Group]
    room: Room
    touched: set[str]
    _of: dict[str, Group] = field(default_factory=dict)  # job → its group

    @classmethod
    def of(cls, snapshot: Snapshot, stuck: Iterable[Job]) -> Floor:
        floor = cls({}, Room.of(snapshot, [job.intended for job in snapshot.jobs]), {job.id for job in stuck})
        for job in snapshot.jobs:
            if job.intended and not job.spec.demand.is_declared:
                floor._put(job, _whole(job.intended))
        return floor

    def group_of(self, job: Job) -> Group | None:
        return self._of.get(job.id)

    def still(self, size: int | None = None) -> Iterator[Group]:
        """Groups that may be changed: nobody in them was touched. `size`: only with so many jobs."""
        for group in list(self.groups.values()):
            if (size is None or len(group.jobs) == size) and not any(job.id in self.touched for job in group.jobs):
                yield group

    def is_free(self, placement: Placement) -> bool:
        """Is nobody to be on any of these devices?"""
        return not any(slot[:2] in devices for devices in self.groups for slot in placement)

    def enter(self, job: Job, placement: Placement) -> None:
        """On free devices, or beside who is there."""
        group = self._put(job, placement)
        self.room.take(placement)
        self.touched.update(other.id for other in group.jobs)

    def leave(self, job: Job) -> None:
        """Its devices are free, if nobody else is on them; for this decision they are only for whom they are left for."""
        group = self._of.pop(job.id)
        group.jobs.remove(job)
        self.touched.update({job.id, *(other.id for other in group.jobs)})
        if not group.jobs:
            del self.groups[group.devices]

    def placements(self) -> Iterator[tuple[Job, Placement]]:
        """With the share of each."""
        for group in self.groups.values():
            share = 1.0 / len(group.jobs)
            for job in group.jobs:
                own = job.intended if frozenset(slot[:2] for slot in job.intended) == group.devices else group.placement
                yield job, tuple(slot._replace(share=share) for slot in own)

    def _put(self, job: Job, placement: Placement) -> Group:
        devices = frozenset(slot[:2] for slot in placement)
        group = self.groups.setdefault(devices, Group(placement, []))
        group.jobs.append(job)
        self._of[job.id] = group
        return group


def _whole(placement: Placement) -> Placement:
    return tuple(Slot(slot.node, slot.device) for slot in placement)
