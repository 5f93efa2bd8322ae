"""What policies look at while they decide: which slots are free for whom, and whether a kept state can be fetched."""

from __future__ import annotations

from dataclasses import dataclass, field

from restow.cluster import Snapshot
from restow.job import Job
from restow.placement import Placement, Slot, devices_of, nodes_of, same_devices


@dataclass(slots=True)
class Board:
    """The slots while one decision is made: who holds or is promised which device."""

    snapshot: Snapshot
    taken: dict[tuple[str, int], set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, snapshot: Snapshot) -> Board:
        return cls(snapshot, snapshot.holders())

    def take(self, job: str, placement: Placement) -> None:
        for slot in placement:
            self.taken.setdefault(slot[:2], set()).add(job)

    def usable(self, job: Job, without: frozenset[str] | set[str] = frozenset()) -> list[Slot]:
        """Free slots big enough for one worker of `job`; slots of the jobs in `without` count as free."""
        fits = []
        for node in self.snapshot.nodes:
            for device in node.devices if node.is_alive and not node.is_cordoned else ():
                big_enough = not device.memory_bytes or job.spec.memory_bytes <= device.memory_bytes
                if big_enough and self.taken.get((node.name, device.index), set()) <= without:
                    fits.append(Slot(node.name, device.index))
        return fits


def waits_for_wish(job: Job) -> bool:
    """Has a person asked for other devices, or for another number of them, than it is to have?"""
    is_elsewhere = bool(job.pinned) and not same_devices(job.pinned, job.intended)
    is_other_number = job.devices_asked not in (0, len(devices_of(job.intended))) or job.workers_asked not in (0, len(job.intended))
    return is_elsewhere or is_other_number


def why_not_back(job: Job, snapshot: Snapshot) -> str:
    """Why a suspended job cannot come back now; empty when it can, or is none."""
    if not job.kept:
        return ""
    alive = {node.name for node in snapshot.nodes if node.is_alive}
    lost = [node for node in nodes_of(job.kept.placement) if node not in alive and not job.kept.is_shared]
    if lost:
        return f"its state of step {job.kept.step} lies on {' and '.join(lost)}, which is lost; it goes on when that is back"
    if snapshot.now_s < job.not_before_s:
        return job.reason or "its last start failed"
    return ""
