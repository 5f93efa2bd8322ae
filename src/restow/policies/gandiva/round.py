"""Who gets which devices, once it is clear who is packed with whom and whose turn it is. One decision; nothing is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from restow.cluster import Snapshot
from restow.job import Job
from restow.placement import Placement, Schedule, Slot
from restow.policies.gandiva.pairs import Pairs
from restow.policies.gandiva.speeds import Speeds
from restow.policies.gandiva.units import Unit, put, stay
from restow.policies.room import Room

Turn = Mapping[str, str]
"""Job → the kind of devices that it has in this quantum."""


WAITS = "waits for its turn"


class Round:
    """`settled`: the placements about which nothing is decided now."""

    def __init__(self, snapshot: Snapshot, speeds: Speeds, pairs: Pairs, settled: Schedule):
        self.schedule = Schedule(dict(settled.placements), dict(settled.reasons), {}, dict(settled.sharing))
        self.kinds = speeds.fastest_first(snapshot.jobs)
        self._snapshot, self._speeds, self._pairs = snapshot, speeds, pairs

    def fits(self, unit: Unit, kind: str) -> bool:
        return self._pairs.allows(self._snapshot, unit, kind) and self._speeds.fits(unit, kind)

    def devices(self) -> dict[str, int]:
        """Of each kind, that may be given to anybody."""
        room = Room.of(self._snapshot, self.schedule.placements.values())
        return {kind: room.free(kind) for kind in self.kinds}

    # ------------------------------------------------------------ in a quantum, and at its beginning

    def go_on(self, units: Sequence[Unit], turn: Turn) -> bool:
        """Who has devices keeps them, and who waits gets what is free, first those whose turn it is. True if nobody waits."""
        used: set[tuple[str, int]] = set()
        keeping: list[Unit] = []
        parted: list[Unit] = []
        waiting = [unit for unit in units if not unit.here]
        for unit in (unit for unit in units if unit.here):
            devices = {slot[:2] for slot in unit.here}
            (parted if used & devices else keeping).append(unit)
            used |= devices
        return self._give(keeping, parted, waiting, turn)

    def change(self, units: Sequence[Unit], turn: Turn) -> None:
        """Who has its kind in this quantum, too, keeps its devices; who has none is suspended."""
        used: set[tuple[str, int]] = set()
        keeping: list[Unit] = []
        moving: list[Unit] = []
        waiting = [unit for unit in units if not unit.here]
        for unit in (unit for unit in units if unit.here):
            devices, kind = {slot[:2] for slot in unit.here}, turn.get(unit.jobs[0].id)
            if kind == self._speeds.kind(unit.here) and not used & devices:
                keeping.append(unit)
                used |= devices
            elif kind:
                moving.append(unit)
            else:
                self._explain(unit, "suspended: it is the turn of others")
        self._give(keeping, moving, [unit for unit in waiting if unit.jobs[0].id in turn], turn)
        for unit in waiting:
            if unit.jobs[0].id not in turn:
                self._explain(unit, WAITS)

    def _give(self, keeping: Sequence[Unit], leaving: Sequence[Unit], waiting: Sequence[Unit], turn: Turn) -> bool:
        """Who leaves is suspended, and comes back where it is to be when it is gone. True if all are somewhere."""
        then = dict(self.schedule.placements) | {job.id: unit.here for unit in keeping for job in unit.jobs}
        halves = {slot[:2] for job in self._snapshot.jobs for slot in _halves_left(job, then.get(job.id, ()))}
        for unit in keeping:
            is_held = not halves.isdisjoint(slot[:2] for slot in unit.here)
            if is_held and any(not job.intended for job in unit.jobs):
                stay(self.schedule, unit.jobs)  # the other comes when who leaves has gone: it may yet have to stay
            else:
                put(self.schedule, unit, unit.here, _packed(unit))
        for unit in leaving:
            self._explain(unit, "suspended: goes on when its devices are free")
        is_whole = not leaving
        room = Room.of(self._snapshot, self.schedule.placements.values())
        for job in self._snapshot.jobs:
            if job.placement and not job.intended and job.id in turn:  # being suspended, and back soon
                room.take(room.find(job.workers, turn[job.id]) or ())
        for unit in sorted(waiting, key=lambda unit: (unit.jobs[0].id not in turn, unit.key)):
            is_whole &= self._place(unit, room, turn, halves)
        return is_whole

    def _free_now(self) -> Room:
        """Where nobody is, and nobody is to be."""
        here = [there for job in self._snapshot.jobs for there in (job.placement, job.intended)]
        return Room.of(self._snapshot, [*self.schedule.placements.values(), *here])

    def _place(self, unit: Unit, room: Room, turn: Turn, halves: set[tuple[str, int]]) -> bool:
        """On the kind that it has, else on the fastest that is free; true if there is any. Not two on the half that one who leaves
        has left free: it may yet have to stay."""
        mine = turn.get(unit.jobs[0].id)
        for kind in [mine] if mine else self.kinds:
            place = room.find(unit.workers, kind) if self.fits(unit, kind) else None
            if place and (len(unit.jobs) < 2 or halves.isdisjoint(slot[:2] for slot in place)):
                put(self.schedule, unit, place, _packed(unit) or ("its turn" if mine else "starts where devices are free"))
                room.take(place)
                return True
        self._explain(unit, WAITS)
        return False

    def _explain(self, unit: Unit, words: str) -> None:
        for job in unit.jobs:
            self.schedule.explain(job.id, words)

    # ------------------------------------------------------------ moves

    def improve(self, units: Sequence[Unit], least: float) -> None:
        """Whoever is furthest from its best speed moves first, to free devices on which it is `least` times as fast."""
        room = self._free_now()
        if not room.free():
            return
        here_s = {unit: self._speeds.alone_s(unit.jobs[0], unit.here) for unit in units if unit.here and len(unit.jobs) == 1}
        part = {unit: self._speeds.best_s(unit.jobs[0]) / s for unit, s in here_s.items() if 0 < s < math.inf}
        for unit in sorted(part, key=lambda unit: (part[unit], unit.key)):
            [job] = unit.jobs
            if self.schedule.placement(job.id) != job.intended:
                continue
            found = {place: self._speeds.alone_s(job, place) for kind in self.kinds if (place := room.find(job.workers, kind))}
            best: Placement = min(found, key=lambda place: found[place], default=())
            if best and 0 < found[best] * least <= here_s[unit]:
                put(self.schedule, unit, best, f"moves to where it is {here_s[unit] / found[best]:.1f} times as fast")
                room.take(best)


def _halves_left(job: Job, then: Placement) -> list[Slot]:
    """The devices, shared so far, that it is to leave."""
    stays = {slot[:2] for slot in then}
    return [slot for slot in job.placement if slot.share < 1.0 and slot[:2] not in stays]


def _packed(unit: Unit) -> str:
    if len(unit.jobs) < 2:
        return ""
    names = " and ".join(job.id for job in unit.jobs)
    return f"{names} are packed, as long as the sum of their speeds is above that of one alone"
