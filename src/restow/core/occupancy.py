"""Which job is on which device, which jobs are on their way, and which ones the clock must look at: noted job by job, so that an
event costs a look at the jobs that it touches and at those that wait for them, however many others there are.

Everything here is a function of the records as they were noted last. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from restow.core.record import Record
from restow.job import JobState
from restow.placement import Placement, Slot

Device = tuple[str, int]
"""Node and index of a device."""

Processes = dict[tuple[int, int], Slot]
"""(generation, rank) → where it is."""


@dataclass(slots=True)
class _Noted:
    stays: Placement = ()
    promised: Placement = ()
    processes: Processes = field(default_factory=dict)


class Occupancy:
    """Of all records. `note` each one after whatever may have changed it."""

    def __init__(self) -> None:
        self.active: dict[str, None] = {}  # jobs that are not final, in the order in which they came
        self.moving: set[str] = set()  # active jobs that are not where they are to be, or whose switch is under way
        self.timed: set[str] = set()  # jobs of which something may be due by the clock alone
        self.leaving: set[str] = set()  # jobs, final ones too, with processes that belong neither to their gang nor to a switch
        self._noted: dict[str, _Noted] = {}
        self._stays: dict[Device, dict[str, float]] = {}
        self._promised: dict[Device, dict[str, float]] = {}
        self._processes: dict[Device, dict[str, dict[tuple[int, int], float]]] = {}

    def note(self, record: Record) -> None:
        """O(processes of the job)."""
        job = record.job
        noted = self._noted.get(job.id)
        if noted is None:
            noted = self._noted[job.id] = _Noted()
        stays = job.placement if job.intended == job.placement else ()
        _renew(self._stays, job.id, noted.stays, stays)
        _renew(self._promised, job.id, noted.promised, job.intended)
        noted.stays, noted.promised = stays, job.intended
        processes = {key: process.slot for key, process in record.processes.items()}
        if processes != noted.processes:
            self._note_processes(job.id, noted.processes, processes)
            noted.processes = processes
        is_active, has_residue = not job.state.is_final, next(record.residue(), None) is not None
        if is_active:
            self.active.setdefault(job.id)
        else:
            self.active.pop(job.id, None)
        _put(self.moving, job.id, is_active and (job.switch is not None or job.intended != job.placement))
        _put(self.leaving, job.id, has_residue)
        _put(self.timed, job.id, has_residue or _is_timed(record))

    def _note_processes(self, id: str, before: Processes, now: Processes) -> None:
        for key, slot in before.items():
            if now.get(key) != slot:
                on_it = self._processes[slot[:2]]
                del on_it[id][key]
                if not on_it[id]:
                    del on_it[id]
        for key, slot in now.items():
            if before.get(key) != slot:
                self._processes.setdefault(slot[:2], {}).setdefault(id, {})[key] = slot.share

    def known(self) -> set[str]:
        """The jobs that something may still happen to."""
        return {*self.active, *self.leaving}

    def stay_on(self, device: Slot) -> dict[str, float]:
        """Job → its share, of those that hold this device and are to stay there."""
        return self._stays.get(device[:2], {})

    def promised(self, device: Slot) -> dict[str, float]:
        """Job → its share, of those that are to be on this device."""
        return self._promised.get(device[:2], {})

    def processes_on(self, device: Slot) -> Iterator[tuple[str, dict[tuple[int, int], float]]]:
        """Job, its processes on this device and the share of each: ranks, twins and leavers."""
        yield from self._processes.get(device[:2], {}).items()


def _renew(on: dict[Device, dict[str, float]], id: str, before: Placement, now: Placement) -> None:
    if now is not before and now != before:
        for slot in before:
            on[slot[:2]].pop(id, None)
        for slot in now:
            on.setdefault(slot[:2], {})[id] = slot.share


def _put(ids: set[str], id: str, is_in: bool) -> None:
    if is_in:
        ids.add(id)
    else:
        ids.discard(id)


def _is_timed(record: Record) -> bool:
    """Is something of it waited for, or made by the clock? A gang that just trains is heard of instead."""
    job = record.job
    if job.state in (JobState.STARTING, JobState.STOPPING) or job.away or record.rescue or record.checkpointing:
        return True
    if job.state is not JobState.RUNNING:
        return False
    is_unknown = not (job.movable or record.unmovable)
    return bool(is_unknown or job.switch or record.exits or record.hung or job.spec.checkpoint.every_s)


