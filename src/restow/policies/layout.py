"""Where a gang could lie: candidate placements on given slots, compared by predicted communication time. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from restow.cluster import Snapshot
from restow.perf import UNKNOWN_WIRE_BYTES, communication_s
from restow.placement import Placement, Slot, nodes_of, rearranged

Places = dict[str, list[Slot]]
"""Node → slots there, devices ascending."""


def by_node(slots: Iterable[Slot]) -> Places:
    ordered = sorted(slots)
    return {node: list(group) for node, group in groupby(ordered, key=lambda slot: slot.node)}


def candidates(workers: int, usable: Iterable[Slot], now: Placement = ()) -> Iterator[Placement]:
    """One placement for each node to start from: that node is filled first, then those where most ranks are already, then
    the emptiest. Ranks that can stay where they are do. O(nodes^2); not every subset, which would be exponential."""
    places, own = by_node(usable), {slot[:2] for slot in now}

    def ranks_here(node: str) -> int:
        return sum(slot[:2] in own for slot in places[node])

    for first in places:
        others = sorted((node for node in places if node != first), key=lambda n: (-ranks_here(n), -len(places[n]), n))
        picked: list[Slot] = []
        for node in (first, *others):
            here = sorted(places[node], key=lambda slot: (slot[:2] not in own, slot.device))
            picked += here[: workers - len(picked)]
        if len(picked) == workers:
            yield rearranged(now, picked) if now else tuple(picked)


def best_start(workers: int, usable: Iterable[Slot], wire_bytes: int, snapshot: Snapshot) -> Placement | None:
    """Where to start a gang: the least predicted communication, then the fewest nodes, then the tightest fit, then names."""
    slots = list(usable)
    places = by_node(slots)

    def cost(placement: Placement) -> tuple[object, ...]:
        left = sum(len(places[node]) for node in nodes_of(placement)) - workers
        seconds = communication_s(placement, wire_bytes or UNKNOWN_WIRE_BYTES, snapshot)
        return (len(nodes_of(placement)) > 1, round(seconds, 9), len(nodes_of(placement)), left, placement)

    return min(candidates(workers, slots), key=cost, default=None)
