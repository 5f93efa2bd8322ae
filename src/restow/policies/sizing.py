"""How many devices a job gets, where it may have more or fewer: as many as there are, more when some become free, fewer to let a
waiting job in, and as many as a person asks for.

With `devices: 1..8` ranks of one device take turns there through its gate, so the training stays the same whatever the number. With
`workers: 2..8` it has as many ranks as devices, and changes its world size through the vault. Decides only about numbers and whose
turn it is to change; where a gang lies is layout.py's, what a move costs perf.py's.
"""

from __future__ import annotations

from restow.cluster import Snapshot
from restow.job import Job, JobState, sizes_of
from restow.placement import Placement, Schedule, Slot, devices_of
from restow.policies.board import Board
from restow.policies.consolidate import Consolidate
from restow.policies.layout import on_devices, start
from restow.policies.moves import move_to


class Sizing:
    """The part of the policy that changes how many devices running jobs have."""

    def __init__(self, consolidate: Consolidate):
        self._consolidate = consolidate

    def plan(self, snapshot: Snapshot, schedule: Schedule) -> None:
        self._grant(snapshot, schedule)
        self._make_room(snapshot, schedule)
        self._grow(snapshot, schedule)

    def _grant(self, snapshot: Snapshot, schedule: Schedule) -> None:
        """What a person asked for, where the devices for it are free."""
        for job in snapshot.jobs:
            asked = job.workers_asked or job.devices_asked
            number = job.workers if job.workers_asked else len(devices_of(job.intended))
            if not asked or number == asked or not self._is_settled(job, schedule):
                continue
            what = f"asked to have {asked} {'workers' if job.workers_asked else 'devices'}"
            why_not = self._why_not_now(job, snapshot) or ("it shares its devices" if job.sharing else "")
            if why_not:
                schedule.explain(job.id, f"{what}, but {why_not}")
                continue
            then = on_devices(job, asked, self._within_reach(job, snapshot, schedule), snapshot, job.workers_asked)
            if then is None:
                schedule.explain(job.id, f"{what}, but no others are free that it fits")
                continue
            self._put(job, then, snapshot, schedule, ", as was asked")

    def _make_room(self, snapshot: Snapshot, schedule: Schedule) -> None:
        """The oldest waiting job gets devices from one that can do with fewer; one at a time, so that each is seen to work."""
        for waiting in snapshot.jobs:
            if not waiting.waits or schedule.placement(waiting.id) or waiting.pinned or waiting.kept:
                continue
            free = self._free(snapshot, schedule).usable(waiting)
            for job in snapshot.jobs:
                most = len(devices_of(job.intended)) - max(1, waiting.devices_min - len(free))
                number = next((number for number in _numbers(job) if number <= most), 0)
                if not number or not self._is_settled(job, schedule) or self._consolidate.hindrance(job, snapshot) or job.sharing:
                    continue
                then = on_devices(job, number, devices_of(job.intended), snapshot, _workers_on(job, number))
                left = [slot for slot in devices_of(job.intended) if then and slot not in devices_of(then)]
                room = start(waiting, [*free, *left], snapshot)
                if then is None or room is None:
                    continue
                self._put(job, then, snapshot, schedule, f" to let {waiting.id} in")
                schedule.put(waiting.id, room, f"starts on {' '.join(map(str, devices_of(room)))}, once {job.id} has made room")
                return
            return

    def _grow(self, snapshot: Snapshot, schedule: Schedule) -> None:
        """Devices that nobody waits for go to jobs that have fewer than they may have, where that pays."""
        if any(job.waits and not schedule.placement(job.id) for job in snapshot.jobs):
            return
        for job in snapshot.jobs:
            have = len(devices_of(job.intended))
            numbers = [number for number in _numbers(job) if number > have]
            if job.state is not JobState.RUNNING or not numbers or not self._is_settled(job, schedule) or job.sharing:
                continue
            has_too_few = have < (job.spec.devices[0] or job.workers)  # it lost some: no reason to wait, and none to reckon
            may_not = self._why_not_now(job, snapshot) if has_too_few else self._consolidate.hindrance(job, snapshot)
            if may_not:
                continue
            slots = self._within_reach(job, snapshot, schedule)
            for number in numbers:
                then = on_devices(job, number, slots, snapshot, _workers_on(job, number)) if number <= len(slots) else None
                if then and (has_too_few or self._pays(job, then, snapshot)):
                    self._put(job, then, snapshot, schedule, ", which are free")
                    break

    # ------------------------------------------------------------ help

    @staticmethod
    def _why_not_now(job: Job, snapshot: Snapshot) -> str:
        """What keeps it from changing its devices, however good the reason is; empty: nothing."""
        if not job.movable:
            return job.why_not or "it has not finished its first steps"
        is_open = not job.switch and not job.exited and snapshot.now_s >= job.not_before_s
        return "" if is_open else job.reason or "it is on its way"

    @staticmethod
    def _is_settled(job: Job, schedule: Schedule) -> bool:
        """Is it running, and does nothing else happen to it in this decision?"""
        stays = schedule.placement(job.id) == job.intended == job.placement
        return job.state is JobState.RUNNING and stays and job.id not in schedule.moves

    @staticmethod
    def _free(snapshot: Snapshot, schedule: Schedule) -> Board:
        board = Board.of(snapshot)
        for id, placement in schedule.placements.items():
            board.take(id, placement)
        return board

    def _within_reach(self, job: Job, snapshot: Snapshot, schedule: Schedule) -> list[Slot]:
        return self._free(snapshot, schedule).usable(job, {job.id})

    def _put(self, job: Job, then: Placement, snapshot: Snapshot, schedule: Schedule, why: str) -> None:
        what, have, number = "devices", len(devices_of(job.intended)), len(devices_of(then))
        if len(then) != job.workers:
            what, have, number = "workers", job.workers, len(then)
        reason = f"goes from {have} to {number} {what}{why}"
        move = schedule.moves[job.id] = move_to(job, then, snapshot, reason)
        schedule.put(job.id, then, move.reason)

    def _pays(self, job: Job, then: Placement, snapshot: Snapshot) -> bool:
        """As for any move: a part of the step is gained, and in the steps that are left several times what it costs."""
        move, config = move_to(job, then, snapshot, ""), self._consolidate.config
        gains_enough = move.step_now_s - move.step_then_s >= config.gain_min * move.step_now_s
        cost_s = move.downtime_s + config.trouble_s
        return gains_enough and move.downtime_s <= job.spec.max_pause_s and move.saves_s + move.downtime_s >= config.margin * cost_s


def _numbers(job: Job) -> list[int]:
    """The numbers of devices that it may have without being asked, the greatest first."""
    if _is_folded(job) or not job.is_resizable:
        least = len(devices_of(job.intended)) if not job.spec.devices[0] else job.spec.devices[0]
        return [] if job.devices_asked else list(range(job.devices_max, least - 1, -1))
    return [] if job.workers_asked or job.pinned else list(sizes_of(job.spec))


def _workers_on(job: Job, number: int) -> int:
    """How many workers it has on so many devices."""
    return number if job.is_resizable and not _is_folded(job) else job.workers


def _is_folded(job: Job) -> bool:
    """Do ranks of it take turns on a device?"""
    return len(devices_of(job.intended)) < len(job.intended)
