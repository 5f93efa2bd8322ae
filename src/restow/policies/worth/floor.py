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


@dataclass(slots=True, eq=False)
class Group:
    """Jobs on the very same devices."""

    placement: Placement  # whole devices, in the order of the first one's ranks
    devices: Devices
    jobs: list[Job]


@dataclass(slots=True)
class Floor:
    """`touched`: jobs that this decision has changed, or that are in the middle of something: they stay as they are now. `version`
    counts the changes."""

    room: Room
    touched: set[str]
    version: int = 0
    _groups: dict[Devices, Group] = field(default_factory=dict)
    _of: dict[str, Group] = field(default_factory=dict)  # job → its group
    _moved: set[str] = field(default_factory=set)  # jobs that are not to be where they were
    _used: set[tuple[str, int]] = field(default_factory=set)

    @classmethod
    def of(cls, snapshot: Snapshot, stuck: Iterable[Job]) -> Floor:
        floor = cls(Room.of(snapshot, [job.intended for job in snapshot.jobs]), {job.id for job in stuck})
        for job in snapshot.jobs:
            if job.intended and not job.spec.demand.is_declared:
                floor._put(job, job.intended)
        return floor

    def group_of(self, job: Job) -> Group | None:
        return self._of.get(job.id)

    def still(self, size: int | None = None) -> Iterator[Group]:
        """Groups that may be changed. `size`: only with so many jobs."""
        for group in list(self._groups.values()):
            if (size is None or len(group.jobs) == size) and self.is_still(group):
                yield group

    def is_still(self, group: Group) -> bool:
        """Is somebody in it, and was nobody of them touched?"""
        for job in group.jobs:
            if job.id in self.touched:
                return False
        return bool(group.jobs)

    def is_free(self, placement: Placement) -> bool:
        """Is nobody to be on any of these devices?"""
        return self._used.isdisjoint(slot[:2] for slot in placement)

    def enter(self, job: Job, placement: Placement) -> None:
        """On free devices, or beside who is there."""
        group = self._put(job, placement)
        self._moved.add(job.id)
        self._moved.update(other.id for other in group.jobs)  # their shares are others now
        self.room.take(placement)
        self.touched.update(other.id for other in group.jobs)
        self.version += 1

    def leave(self, job: Job) -> None:
        """Its devices are free, if nobody else is on them; for this decision they are only for whom they are left for."""
        group = self._of.pop(job.id)
        group.jobs.remove(job)
        self._moved.update(other.id for other in group.jobs)
        self.touched.update({job.id, *(other.id for other in group.jobs)})
        if not group.jobs:
            del self._groups[group.devices]
            self._used -= group.devices
        self.version += 1

    def placements(self) -> Iterator[tuple[Job, Placement]]:
        """With the share of each."""
        for group in self._groups.values():
            share = 1.0 / len(group.jobs)
            for job in group.jobs:
                if job.id not in self._moved:
                    yield job, job.intended
                    continue
                is_here = group.devices == {slot[:2] for slot in job.intended}
                own = job.intended if is_here else group.placement
                yield job, tuple(slot._replace(share=share) for slot in own)

    def _put(self, job: Job, placement: Placement) -> Group:
        devices = frozenset([slot[:2] for slot in placement])
        group = self._groups.get(devices)
        if group is None:
            group = self._groups[devices] = Group(_whole(placement), devices, [])
            self._used |= devices
        group.jobs.append(job)
        self._of[job.id] = group
        return group


def _whole(placement: Placement) -> Placement:
    if all(slot.share == 1.0 for slot in placement):
        return placement
    return tuple(Slot(slot.node, slot.device) for slot in placement)
