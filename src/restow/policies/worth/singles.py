"""Jobs that have their devices to themselves, sorted by what a partner, or one that changes places with them, has to know: the
same for all that are alike on places that are.

Made once for a decision; who was touched since is passed over.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from restow.job import Job
from restow.placement import Placement
from restow.policies.worth.floor import Floor, Group
from restow.policies.worth.valuation import Valuation


@dataclass(slots=True)
class Kin:
    """Jobs that are alike, on places that are, as one of them (`job`) shows: the one with the least weight first."""

    job: Job
    placement: Placement
    key: tuple[Hashable, Hashable]  # what they are, and where
    groups: list[Group] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def within(self, least: float, most: float) -> list[Group]:
        """Those whose weight lies there."""
        return self.groups[bisect_left(self.weights, least) : bisect_left(self.weights, most)]


class Singles:
    """Of the groups of one job that may be changed when it is first asked."""

    def __init__(self, valuation: Valuation, floor: Floor):
        self._valuation, self._floor = valuation, floor

    @cached_property
    def _kin(self) -> dict[int, dict[tuple[Hashable, Hashable], Kin]]:
        """Workers → (alike, place) → who."""
        found: dict[int, dict[tuple[Hashable, Hashable], Kin]] = defaultdict(dict)
        weighed = [(self._valuation.weight(group.jobs[0]), group) for group in self._floor.still(size=1)]
        weighed.sort(key=lambda item: item[0])
        for weight, group in weighed:
            job = group.jobs[0]
            key = self._valuation.alike(job), self._valuation.place(group.placement)
            kin = found[job.workers].get(key)
            if kin is None:
                kin = found[job.workers][key] = Kin(job, group.placement, key)
            kin.groups.append(group)
            kin.weights.append(weight)
        return found

    @property
    def are_all_alike(self) -> bool:
        """Does it make no difference who is where?"""
        return len({kin.key[1] for kins in self._kin.values() for kin in kins.values()}) < 2

    def of_size(self, workers: int) -> Iterable[Kin]:
        return self._kin.get(workers, {}).values()
