"""Free devices while one decision is made: by kind and by machine, so that a gang is found a place without a look at every machine.

Decides nothing but where a gang of a given size fits best: on one machine, the fullest that has room, else on as few as possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from restow.cluster import Node, Snapshot
from restow.placement import Placement, Slot


class Room:
    """Whole devices of machines that are alive and not cordoned. O(devices) to make; a place is found in O(devices of a machine +
    machines used)."""

    def __init__(self, nodes: Sequence[Node], taken: Iterable[Slot] = ()):
        self._kind: dict[tuple[str, int], str] = {}
        self._free: dict[str, dict[str, list[int]]] = {}  # kind → machine → its free devices, the highest index first
        self._by_count: dict[str, list[dict[str, None]]] = {}  # kind → number of free devices → machines that have so many
        self._total: dict[str, int] = {}
        self._kinds: list[str] = []
        used = {slot[:2] for slot in taken}
        for node in nodes:
            if not node.is_alive or node.is_cordoned:
                continue
            for device in reversed(node.devices):
                self._kind[node.name, device.index] = device.kind
                if (node.name, device.index) not in used:
                    self._free.setdefault(device.kind, {}).setdefault(node.name, []).append(device.index)
        for kind, machines in self._free.items():
            self._total[kind] = sum(map(len, machines.values()))
            counts = self._by_count[kind] = [{} for _ in range(max(map(len, machines.values())) + 1)]
            for name, free in machines.items():
                counts[len(free)][name] = None

    @classmethod
    def of(cls, snapshot: Snapshot, keeping: Iterable[Placement]) -> Room:
        """What is left beside these placements, switches under way, and processes that have not gone yet."""
        taken = {slot for placement in keeping for slot in placement} | set(snapshot.residue)
        taken |= {slot for job in snapshot.jobs if job.switch for slot in job.switch.placement}
        return cls(snapshot.nodes, taken)

    @property
    def kinds(self) -> list[str]:
        if len(self._kinds) != len(self._by_count):
            self._kinds = sorted(self._by_count)
        return self._kinds

    def free(self, kind: str = "") -> int:
        """Devices; of all kinds if none is named."""
        return self._total.get(kind, 0) if kind else sum(self._total.values())

    def most_on_one(self, kind: str) -> int:
        """The most free devices of this kind that one machine has."""
        counts = self._by_count.get(kind, [])
        return next((count for count in range(len(counts) - 1, 0, -1) if counts[count]), 0)

    def free_on(self, node: str, kind: str) -> Placement:
        """The free devices of this kind on one machine, ascending."""
        return tuple(Slot(node, index) for index in reversed(self._free.get(kind, {}).get(node, [])))

    def all_free(self, kind: str) -> list[Slot]:
        """Every free device of this kind."""
        return [Slot(node, index) for node, free in self._free.get(kind, {}).items() for index in reversed(free)]

    def find(self, workers: int, kind: str) -> Placement | None:
        """A device of this kind for each worker; None if there are not so many."""
        if self._total.get(kind, 0) < workers:
            return None
        picked: list[Slot] = []
        for name in self._machines(workers, kind):
            free = self._free[kind][name]
            picked += [Slot(name, index) for index in free[: -(workers - len(picked)) - 1 : -1]]
        return tuple(picked)

    def _machines(self, workers: int, kind: str) -> Iterator[str]:
        """The fullest that has room for what is left, else the emptiest, and again."""
        counts, left, used = self._by_count[kind], workers, set[str]()
        while left:
            fits = (name for count in range(left, len(counts)) for name in counts[count] if name not in used)
            name = next(fits, None)
            if name is None:
                largest = range(min(left, len(counts)) - 1, 0, -1)
                name = next(name for count in largest for name in counts[count] if name not in used)
            used.add(name)
            left -= min(left, len(self._free[kind][name]))
            yield name

    def take(self, placement: Placement) -> None:
        self._change(placement, is_taken=True)

    def give(self, placement: Placement) -> None:
        """Devices of machines that nothing may be started on are not given back."""
        self._change(placement, is_taken=False)

    def _change(self, placement: Placement, is_taken: bool) -> None:
        for slot in placement:
            kind = self._kind.get(slot[:2])
            if kind is None:
                continue
            free = self._free.setdefault(kind, {}).setdefault(slot.node, [])
            if (slot.device in free) != is_taken:
                continue
            counts = self._by_count.setdefault(kind, [{}])
            counts[len(free)].pop(slot.node, None)
            if is_taken:
                free.remove(slot.device)
            else:
                free.append(slot.device)
                free.sort(reverse=True)
            while len(counts) <= len(free):
                counts.append({})
            counts[len(free)][slot.node] = None
            self._total[kind] = self._total.get(kind, 0) + (-1 if is_taken else 1)
