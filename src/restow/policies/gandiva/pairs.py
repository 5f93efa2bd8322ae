"""Who is packed with whom, found out by trial: a pair is put together, and kept if the sum of their speeds is more than one of them
alone would have; else it is undone, and two like them are not tried again on that kind of devices."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from restow.cluster import Snapshot
from restow.job import Job, JobState
from restow.policies.gandiva.speeds import Speeds
from restow.policies.gandiva.units import Unit, is_fixed

Kinship = tuple[frozenset[Hashable], str]
"""Which two are alike those that were tried, and on which kind of devices."""


@dataclass(slots=True)
class Pairs:
    """Kept from decision to decision. `trial_s`: of running together, before the sum is looked at."""

    trial_s: float
    total_min: float  # sum of the two speeds, each by its own alone
    _partner: dict[str, str] = field(default_factory=dict)
    _since_s: dict[frozenset[str], float] = field(default_factory=dict)  # pair → since when it runs together where it is
    _undone: set[Kinship] = field(default_factory=set)

    def units(self, jobs: Sequence[Job]) -> list[Unit]:
        """All jobs, alone or in pairs, who came first first."""
        present = {job.id: job for job in jobs}
        found = []
        for job in jobs:
            other = present.get(self._partner.get(job.id, ""))
            if other is None:
                found.append(Unit((job,)))
            elif (job.submitted_s, job.id) < (other.submitted_s, other.id):
                found.append(Unit((job, other)))
        return sorted(found, key=lambda unit: unit.key)

    def forget_gone(self, jobs: Iterable[Job]) -> None:
        here = {job.id for job in jobs}
        for id, other in list(self._partner.items()):
            if id not in here or other not in here:
                self._partner.pop(id, None)
                self._partner.pop(other, None)
        self._since_s = {pair: since_s for pair, since_s in self._since_s.items() if pair <= here}

    def adopt_shared(self, jobs: Sequence[Job]) -> None:
        """Who shares devices already is a pair, whoever put them there: so it is after a restart, too."""
        by_devices: dict[frozenset[tuple[str, int]], list[Job]] = {}
        for job in jobs:
            if job.intended:
                by_devices.setdefault(frozenset(slot[:2] for slot in job.intended), []).append(job)
        for there in by_devices.values():
            if len(there) == 2 and not any(job.id in self._partner for job in there):
                self._join(*there)

    def _join(self, one: Job, other: Job) -> None:
        self._partner[one.id], self._partner[other.id] = other.id, one.id

    def part(self, unit: Unit) -> None:
        for job in unit.jobs:
            self._partner.pop(job.id, None)

    # ------------------------------------------------------------ trials

    def judge(self, snapshot: Snapshot, units: Sequence[Unit], speeds: Speeds) -> bool:
        """Undo those that have been tried for long enough and are not worth it; true if there was any."""
        is_any = False
        for unit in units:
            if len(unit.jobs) < 2:
                continue
            pair = frozenset(job.id for job in unit.jobs)
            if not unit.is_whole or any(job.state is not JobState.RUNNING or job.switch for job in unit.jobs):
                self._since_s.pop(pair, None)
            elif snapshot.now_s - self._since_s.setdefault(pair, snapshot.now_s) >= self.trial_s:
                total = measured_total(unit, speeds)
                if total is not None and total <= self.total_min:
                    self._undone.add(_kinship(snapshot, unit, speeds.kind(unit.here)))
                    self.part(unit)
                    is_any = True
        return is_any

    def allows(self, snapshot: Snapshot, unit: Unit, kind: str) -> bool:
        """Were two like these not undone there?"""
        return len(unit.jobs) < 2 or not self._undone or _kinship(snapshot, unit, kind) not in self._undone

    # ------------------------------------------------------------ packing

    def pack(self, snapshot: Snapshot, units: Sequence[Unit], speeds: Speeds) -> None:
        """Each that is alone, from the first that came on, with the first other of its size that it can be tried with, at least one
        of the two waiting. O(jobs^2) where nobody gets on with anybody, and near O(jobs) where all do."""
        alone: dict[int, list[Job]] = {}
        for unit in units:
            [job, *more] = unit.jobs
            if not more and not job.share.is_exclusive and not is_fixed(job, snapshot.now_s):
                alone.setdefault(job.workers, []).append(job)
        known: dict[frozenset[Hashable], bool] = {}
        for jobs in alone.values():
            for at, one in enumerate(jobs):
                for other in jobs[at + 1 :] if one.id not in self._partner else ():
                    if other.id in self._partner or (one.intended and other.intended):
                        continue
                    unit = Unit((one, other))
                    key = _kinship(snapshot, unit, "")[0]
                    if key not in known:
                        known[key] = any(self.allows(snapshot, unit, kind) and speeds.fits(unit, kind) for kind in speeds.kinds)
                    if known[key] and self._may_lie_here(snapshot, unit, speeds):
                        self._join(one, other)
                        break

    def _may_lie_here(self, snapshot: Snapshot, unit: Unit, speeds: Speeds) -> bool:
        kind = speeds.kind(unit.here) if unit.here else ""
        return not kind or (self.allows(snapshot, unit, kind) and speeds.fits(unit, kind))


def measured_total(unit: Unit, speeds: Speeds) -> float | None:
    """The sum of their speeds together, each by its own alone in the same place; None as long as it is not known."""
    total = 0.0
    for job in unit.jobs:
        alone_s = speeds.alone_s(job, unit.here) if speeds.is_forecast else job.profile.alone_step_s
        if job.profile.step_s <= 0 or alone_s <= 0:
            return None
        total += alone_s / job.profile.step_s
    return total


def _kinship(snapshot: Snapshot, unit: Unit, kind: str) -> Kinship:
    forecast = snapshot.forecast
    return frozenset((forecast.alike(job) if forecast else job.id) for job in unit.jobs), kind
