"""Whose turn it is: as long as somebody waits, those that have had least of a kind of devices have it for the next quantum."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from restow.policies.gandiva.units import Unit

Fits = Callable[[Unit, str], bool]


@dataclass(slots=True)
class Turns:
    """Kept from decision to decision. Who comes new has had as much as the one that has had least, or it would have all turns until
    it has caught up."""

    quantum_s: float
    anew_s: float  # when jobs have come or gone, and so long after the last time, everybody has had nothing
    _anew_at_s: float = 0.0
    began_s: float = -math.inf
    kind_of: dict[str, str] = field(default_factory=dict)  # job → the kind that it has in this quantum
    _had_s: dict[str, dict[str, float]] = field(default_factory=dict)  # kind → job → seconds
    _running: dict[str, str] = field(default_factory=dict)  # job → its kind, since the last decision
    _asked_s: float = 0.0

    def account(self, now_s: float, jobs: Sequence[str], kinds: Sequence[str]) -> None:
        """`jobs`: all that are there."""
        passed_s, self._asked_s = now_s - self._asked_s, now_s
        for job, kind in self._running.items():
            if job in self._had_s.get(kind, ()):
                self._had_s[kind][job] += passed_s
        is_anew = any(set(had_s) != set(jobs) for had_s in self._had_s.values()) and now_s - self._anew_at_s >= self.anew_s
        if is_anew:
            self._had_s, self._anew_at_s = {}, now_s
        for kind in kinds:
            before = self._had_s.get(kind, {})
            had_s = {job: before[job] for job in jobs if job in before}
            least_s = min(had_s.values(), default=0.0)
            self._had_s[kind] = {job: had_s.get(job, least_s) for job in jobs}
        here = set(jobs)
        self.kind_of = {job: kind for job, kind in self.kind_of.items() if job in here}

    def note_running(self, running: dict[str, str]) -> None:
        """Job → kind, until the next decision."""
        self._running = running

    def is_over(self, now_s: float) -> bool:
        return now_s - self.began_s >= self.quantum_s

    def begin(self, now_s: float, units: Sequence[Unit], devices: dict[str, int], order: Sequence[str], fits: Fits) -> None:
        """A quantum. `devices`: of each kind, to be had; `order`: the kind that goes first, first."""
        self.began_s = now_s
        self.kind_of = {}
        left = defaultdict(int, devices)
        for kind in order:
            for unit in sorted(units, key=lambda unit: (self.had_s(unit, kind), unit.key)):
                if unit.workers <= left[kind] and unit.jobs[0].id not in self.kind_of and fits(unit, kind):
                    left[kind] -= unit.workers
                    self.kind_of.update((job.id, kind) for job in unit.jobs)

    def had_s(self, unit: Unit, kind: str = "") -> float:
        """On average, of this kind or of all."""
        kinds = [kind] if kind else list(self._had_s)
        return sum(self._had_s[each].get(job.id, 0.0) for each in kinds for job in unit.jobs) / len(unit.jobs)
