"""Where a gang could lie: candidate placements on given slots, compared by predicted communication time. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from restow.cluster import Snapshot
from restow.job import Job
from restow.perf import UNKNOWN_WIRE_BYTES, communication_s
from restow.placement import Placement, Slot, devices_of, folded, moved_ranks, nodes_of, rearranged

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


def start(job: Job, usable: Iterable[Slot], snapshot: Snapshot) -> Placement | None:
    """For a pending job: on as many of these devices as it may have; None if they are fewer than it needs."""
    slots = list(usable)
    for workers in job.sizes:
        most, least = min(job.devices_max, workers, len(slots)), job.devices_min
        if job.is_resizable and not (job.kept and job.kept.is_rescued):
            least = workers  # it has fewer workers rather than let them take turns
        for number in range(most, least - 1, -1):
            found = on_devices(job, number, slots, snapshot, workers)
            if found:
                return found
    return None


def on_devices(job: Job, number: int, usable: Iterable[Slot], snapshot: Snapshot, workers: int = 0) -> Placement | None:
    """The best placement of `workers` ranks (0: as many as it has) on exactly `number` of these devices, ranks taking turns where
    these are fewer: the fewest nodes, the least communication, the fewest moved ranks. None where there are not so many with the
    memory for it."""
    workers = workers or job.workers
    now, bytes_each = job.intended, max(job.spec.memory_bytes, job.profile.memory_bytes)
    now = now if len(now) == workers else ()
    rounds = -(-workers // number)
    slots = [slot for slot in usable if rounds == 1 or _has_room(slot, rounds * bytes_each, snapshot)]
    if not now:
        devices = best_start(number, slots, job.profile.wire_bytes, snapshot)
        return folded(workers, devices) if devices else None

    def cost(placement: Placement) -> tuple[object, ...]:
        seconds = communication_s(placement, job.profile.wire_bytes or UNKNOWN_WIRE_BYTES, snapshot)
        moved = len(moved_ranks(now, placement))
        return (len(nodes_of(placement)) > 1, float(f"{seconds:.1g}"), len(nodes_of(placement)), moved, placement)

    found = (folded(workers, devices, now) for devices in _choices(number, slots, devices_of(now)))
    return min(found, key=cost, default=None)


def _choices(number: int, slots: list[Slot], own: Placement) -> Iterator[Placement]:
    """As `candidates`, without an order of ranks."""
    yield from candidates(number, slots)
    kept = [slot for slot in slots if slot[:2] in {mine[:2] for mine in own}]
    others = [slot for slot in slots if slot not in kept]
    if len(slots) >= number:
        yield tuple([*kept, *others][:number])


def _has_room(slot: Slot, memory_bytes: int, snapshot: Snapshot) -> bool:
    node = snapshot.node(slot.node)
    sizes = [device.memory_bytes for device in node.devices if device.index == slot.device] if node else []
    return all(not size or memory_bytes <= size for size in sizes)
