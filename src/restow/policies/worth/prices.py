"""What devices cost: what those lose who would have to leave them, the cheapest ones of each machine and of each kind.

Made once for a decision. During it groups only cease to be there for the taking, and what each of them costs stays, so that
the cheapest devices found once are the cheapest until one of theirs is touched.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from dataclasses import dataclass

from restow.job import Job, JobState
from restow.placement import Placement, Slot
from restow.policies.worth.floor import Floor, Group
from restow.policies.worth.valuation import Valuation

Priced = tuple[float, Group]
"""Worth that is lost with each of its devices, and whose they are."""


@dataclass(frozen=True, slots=True)
class Devices:
    """So many devices, free or taken from these groups, which lose `lost`."""

    lost: float
    groups: tuple[Group, ...]
    placement: Placement


class Prices:
    """Of the groups that may be changed when it is made. `kinds`: of which somebody has devices."""

    def __init__(self, valuation: Valuation, floor: Floor):
        self._floor = floor
        self._on_machine: dict[str, dict[str, list[Priced]]] = defaultdict(lambda: defaultdict(list))  # kind → machine
        self._of_kind: dict[str, list[Priced]] = defaultdict(list)
        for group in floor.still():
            if all(may_move(job) for job in group.jobs):
                kind = valuation.kind(group.placement)
                priced = valuation.worth(group) / len(group.devices), group
                self._of_kind[kind].append(priced)
                if len({node for node, _ in group.devices}) == 1:
                    self._on_machine[kind][group.placement[0].node].append(priced)
        for found in (*self._of_kind.values(), *(each for machines in self._on_machine.values() for each in machines.values())):
            found.sort(key=_lost)
        self.kinds = sorted(self._of_kind)
        self._ones: dict[tuple[str, int], list[tuple[float, int, str, Devices]]] = {}  # a heap: machines, the cheapest first
        self._several: dict[tuple[str, int], tuple[int, Devices | None]] = {}  # version of the floor when found

    def machines(self, kind: str) -> dict[str, list[Group]]:
        """Machine → groups that lie on it alone and may be changed."""
        still = self._floor.is_still
        machines = self._on_machine.get(kind, {}).items()
        return {node: left for node, found in machines if (left := [group for _, group in found if still(group)])}

    # ------------------------------------------------------------ on one machine

    def on_one(self, kind: str, workers: int) -> Devices | None:
        """The cheapest ones that are others' and lie on one machine. O(groups) when asked first for so many."""
        heap = self._ones.get((kind, workers))
        if heap is None:
            heap = self._ones[kind, workers] = []
            for number, node in enumerate(self._on_machine.get(kind, {})):
                if found := self._on(kind, node, workers):
                    heap.append((found.lost, number, node, found))
            heapq.heapify(heap)
        while heap:
            _, number, node, found = heap[0]
            if all(map(self._floor.is_still, found.groups)):
                return found
            again = self._on(kind, node, workers)
            if again:
                heapq.heapreplace(heap, (again.lost, number, node, again))
            else:
                heapq.heappop(heap)
        return None

    def _on(self, kind: str, node: str, workers: int) -> Devices | None:
        chosen: list[Group] = []
        lost, left = 0.0, workers
        for each, group in self._on_machine[kind][node]:
            if self._floor.is_still(group):
                chosen.append(group)
                lost += each * len(group.devices)
                left -= len(group.devices)
                if left <= 0:
                    placement = tuple(sorted(slot for group in chosen for slot in group.placement))[:workers]
                    return Devices(lost, tuple(chosen), placement)
        return None

    # ------------------------------------------------------------ on several

    def on_several(self, kind: str, workers: int) -> Devices | None:
        """What is free of this kind, and the cheapest ones of others; on the machines with most of them. O(free devices + groups)
        after a change."""
        version, found = self._several.get((kind, workers), (-1, None))
        if version != self._floor.version:
            found = self._find_several(kind, workers)
            self._several[kind, workers] = self._floor.version, found
        return found

    def _find_several(self, kind: str, workers: int) -> Devices | None:
        count = self._floor.room.free(kind)
        if count >= workers:
            return None
        chosen: list[Priced] = []
        for each, group in self._of_kind.get(kind, ()):
            if self._floor.is_still(group):
                chosen.append((each, group))
                count += len(group.devices)
                if count >= workers:
                    break
        else:
            return None
        slots = [*self._floor.room.all_free(kind), *(slot for _, group in chosen for slot in group.placement)]
        placement = _on_fewest_machines(slots, workers)
        devices = {slot[:2] for slot in placement}
        needed = [(each, group) for each, group in chosen if not group.devices.isdisjoint(devices)]
        return Devices(sum(each * len(group.devices) for each, group in needed), tuple(group for _, group in needed), placement)


def _lost(priced: Priced) -> float:
    return priced[0]


def _on_fewest_machines(slots: list[Slot], workers: int) -> Placement:
    """So many of these, from the machines with most of them on."""
    counts = Counter(slot.node for slot in slots)
    ordered = sorted(slots, key=lambda slot: (-counts[slot.node], slot))
    return tuple(ordered[:workers])


def may_move(job: Job) -> bool:
    """May a policy move or suspend it?"""
    return job.state is JobState.RUNNING and job.movable and job.spec.migrate and not job.pinned
