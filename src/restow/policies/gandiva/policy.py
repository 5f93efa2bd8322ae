"""Gandiva: time slices where more is wanted than there is, pairs that are packed by trial, and moves of whoever is placed worst.

Source: Xiao et al., OSDI 2018, section 3: suspend and resume in quanta of about a minute; in overload jobs are packed and looked
at, and what makes the sum of their speeds fall is undone; when a job has left, others move to where they are faster. Which pair is
tried first is by arrival here: there it is by how busy each keeps its device, which no table of speeds says. Where there are
several kinds of devices everybody has equal time on each, as Narayanan et al. (Gavel, OSDI 2020) gave it to compare with it.

    not more wanted than there is   everybody keeps its devices; who is placed worst moves where that makes it faster by a tenth
    more                            who waits is packed; those that have had least have the next quantum, others are suspended

To be asked at least once in a quantum while jobs wait (`--look 60`, `--round 360`): it says nothing of when it wants to be asked.
It remembers pairs that were undone, and who has had how much; after a restart everybody begins anew. O(jobs log jobs x kinds) but
for packing (pairs.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from restow.cluster import Snapshot
from restow.job import JobState
from restow.placement import Schedule, devices_of
from restow.policies.board import why_not_back
from restow.policies.gandiva.pairs import Pairs
from restow.policies.gandiva.round import Round
from restow.policies.gandiva.speeds import Speeds
from restow.policies.gandiva.turns import Turns
from restow.policies.gandiva.units import Unit, stay


@dataclass(slots=True)
class Gandiva:
    """`total_min`: sum of speeds that a pair is to exceed; `move_min`: how much faster a job is to be elsewhere before it moves;
    `anew_s`: turns are counted anew when jobs have come or gone, at most so often (Gavel's simulator: 1000; it lets those that came
    first have the fastest kind more often)."""

    quantum_s: float = 60.0
    trial_s: float = 30.0
    total_min: float = 1.0
    move_min: float = 1.1
    anew_s: float = math.inf
    _turns: Turns = field(init=False)
    _pairs: Pairs = field(init=False)

    def __post_init__(self) -> None:
        self._turns, self._pairs = Turns(self.quantum_s, self.anew_s), Pairs(self.trial_s, self.total_min)

    def decide(self, snapshot: Snapshot) -> Schedule:
        jobs = [job for job in snapshot.jobs if not job.paused]
        speeds = Speeds(snapshot)
        self._turns.account(snapshot.now_s, [job.id for job in jobs], speeds.kinds)
        self._pairs.forget_gone(jobs)
        self._pairs.adopt_shared(jobs)
        self._pairs.judge(snapshot, self._pairs.units(jobs), speeds)
        is_crowded = sum(len(devices_of(job.intended)) or job.workers for job in jobs) > speeds.devices()
        if is_crowded:
            self._pairs.pack(snapshot, self._pairs.units(jobs), speeds)
        settled = Schedule()
        units = self._settle(snapshot, self._pairs.units(jobs), is_crowded, settled)
        round_ = Round(snapshot, speeds, self._pairs, settled)
        has_begun = self._turns.began_s == snapshot.now_s  # asked again
        is_whole = not has_begun and round_.go_on(units, self._turns.kind_of)
        if not is_whole and (has_begun or self._turns.is_over(snapshot.now_s)):
            round_ = Round(snapshot, speeds, self._pairs, settled)
            if not has_begun:
                self._turns.begin(snapshot.now_s, units, round_.devices(), round_.kinds, round_.fits)
            round_.change(units, self._turns.kind_of)
        elif is_whole:
            round_.improve(units, self.move_min)
        self._turns.note_running(
            {job.id: speeds.kind(job.placement) for job in jobs if job.state is JobState.RUNNING and job.placement}
        )
        return round_.schedule

    plan = decide

    def _settle(self, snapshot: Snapshot, units: Sequence[Unit], is_crowded: bool, settled: Schedule) -> list[Unit]:
        """Those about whom something can be decided; the others stay as they are, and so does whoever is on the same devices. Where
        there is room again pairs are parted."""
        found: list[Unit] = []
        fixed = {slot[:2] for unit in units if unit.is_fixed(snapshot.now_s) for job in unit.jobs for slot in job.intended}
        for unit in units:
            why_not = next(filter(None, (why_not_back(job, snapshot) for job in unit.jobs if not job.intended)), "")
            if unit.is_fixed(snapshot.now_s) or not fixed.isdisjoint(slot[:2] for slot in unit.here):
                stay(settled, unit.jobs)
            elif why_not:
                for job in unit.jobs:
                    settled.explain(job.id, why_not)
            elif len(unit.jobs) > 1 and not is_crowded:
                self._pairs.part(unit)
                found += [Unit((job,)) for job in unit.jobs]
            else:
                found.append(unit)
        return found
