"""Where workers are: slots, placements and schedules. Values only; nothing here knows what a job costs or does.

A slot is written `node:device`, for example `m1:0`; with a share of it, `m1:0@0.5`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from restow.errors import SpecError


class Slot(NamedTuple):
    """A device of a node and the share of it that is used (1.0 = all of it)."""

    node: str
    device: int
    share: float = 1.0

    def __str__(self) -> str:
        return f"{self.node}:{self.device}" + ("" if self.share == 1.0 else f"@{self.share:g}")


class Uses:
    """Who uses how much of which device. Shares of jobs add up to 1; ranks of one job may take turns on its share."""

    def __init__(self) -> None:
        self._shares: dict[tuple[str, int], dict[str, float]] = {}

    def add(self, slot: Slot, job: str) -> None:
        shares = self._shares.setdefault(slot[:2], {})
        shares[job] = max(slot.share, shares.get(job, 0.0))

    def fits(self, slot: Slot, share: float = 0.0) -> bool:
        """Is the device of `slot` used at most once, with `share` more of it?"""
        return sum(self._shares.get(slot[:2], {}).values()) + share <= 1.0 + 1e-9

    def jobs(self, slot: Slot) -> list[str]:
        return sorted(self._shares.get(slot[:2], {}))


Placement = tuple[Slot, ...]
"""Rank → slot: `placement[rank]`. One job's whole gang; never half of it."""


def parse_slot(text: str) -> Slot:
    """The slot that `str(slot)` wrote. Raises SpecError."""
    place, _, share = text.partition("@")
    node, _, device = place.rpartition(":")
    try:
        slot = Slot(node, int(device), float(share) if share else 1.0)
    except ValueError:
        slot = None
    if slot is None or not node or slot.device < 0 or not 0 < slot.share <= 1:
        raise SpecError(f"slot is {text!r}; write node:device or node:device@share, for example m1:0 or m1:0@0.5")
    return slot


def parse_placement(text: str) -> Placement:
    """`"m1:0 m2:1"` → the placement with rank 0 on m1:0 and rank 1 on m2:1."""
    return tuple(parse_slot(word) for word in text.split())


def nodes_of(placement: Iterable[Slot]) -> tuple[str, ...]:
    """The nodes used, in the order of the ranks, each once."""
    return tuple(dict.fromkeys(slot.node for slot in placement))


def is_scattered(placement: Iterable[Slot]) -> bool:
    """Does this gang need a link between machines at every step?"""
    return len(nodes_of(placement)) > 1


def moved_ranks(now: Placement, then: Placement) -> tuple[int, ...]:
    """The ranks whose slot changes, ascending: all where one placement is empty, since the job is suspended or comes back, and
    where it is to have another number of them."""
    if not now or not then or len(now) != len(then):
        return tuple(range(len(now or then)))
    return tuple(rank for rank, (a, b) in enumerate(zip(now, then, strict=True)) if a[:2] != b[:2])


def same_devices(a: Placement, b: Placement) -> bool:
    """Is every rank on the same device in both, whatever its share?"""
    return [slot[:2] for slot in a] == [slot[:2] for slot in b]


def rearranged(now: Placement, slots: Iterable[Slot]) -> Placement:
    """The placement on exactly these slots in which as few ranks as possible move.

    A rank whose slot is among them stays; the others take what is left, in order. So no rank ever waits for the slot
    of another rank of its own gang.
    """
    left = list(slots)
    stays: dict[int, Slot] = {}
    for rank, slot in enumerate(now):
        match = next((s for s in left if s[:2] == slot[:2]), None)
        if match is not None:
            stays[rank] = match
            left.remove(match)
    return tuple(stays[rank] if rank in stays else left.pop(0) for rank in range(len(now)))


def devices_of(placement: Iterable[Slot]) -> tuple[Slot, ...]:
    """The devices used, in the order of the ranks, each once: fewer than ranks where ranks take turns on one."""
    return tuple({slot[:2]: slot for slot in placement}.values())


def devices_held(placement: Iterable[Slot]) -> float:
    """How many devices that is, parts of them counted as such."""
    return sum({slot[:2]: slot.share for slot in placement}.values())


def ranks_per_device(placement: Iterable[Slot]) -> int:
    """The most ranks that one device holds; 0 of no placement."""
    return max(Counter(slot[:2] for slot in placement).values(), default=0)


def folded(workers: int, devices: Iterable[Slot], now: Placement = ()) -> Placement:
    """`workers` ranks on these devices, evenly: no device holds two more than another. As few ranks as possible move from `now`."""
    places = list(devices)
    some, more = divmod(workers, len(places))
    mine = Counter(slot[:2] for slot in now)
    full = sorted(range(len(places)), key=lambda at: (-mine[places[at][:2]], at))[:more]  # who has most already keeps one more
    slots = [slot for at, slot in enumerate(places) for _ in range(some + (at in full))]
    return rearranged(now, slots) if now else tuple(slots)


def main_node(placement: Placement) -> str:
    """The node that holds most ranks, the first by rank among equals: where the store of the generation is kept."""
    counts = count_by_node(placement)
    return max(nodes_of(placement), key=lambda node: counts[node])


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One job's way from one placement to another, and why it is worth it."""

    job: str
    now: Placement
    then: Placement
    reason: str
    step_now_s: float  # measured seconds per step today
    step_then_s: float  # predicted seconds per step afterwards
    downtime_s: float  # predicted
    wire_bytes: int  # predicted bytes that cross between machines
    saves_s: float  # predicted seconds saved over the job's remaining life, cost already taken off

    @property
    def ranks(self) -> tuple[int, ...]:
        return moved_ranks(self.now, self.then)


@dataclass(slots=True)
class Schedule:
    """The placements of all jobs that should run, each with a reason; jobs not named here should hold no slot.

    `moves` carries the prediction for each job whose placement differs from where it is now.
    """

    placements: dict[str, Placement] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    moves: dict[str, Move] = field(default_factory=dict)
    sharing: dict[str, Any] = field(default_factory=dict)
    """Job → job.Sharing, for those whose devices hold other jobs too."""

    def put(self, job: str, placement: Placement, reason: str = "") -> None:
        self.placements[job] = placement
        if reason:
            self.reasons[job] = reason

    def explain(self, job: str, reason: str) -> None:
        self.reasons[job] = reason

    def placement(self, job: str) -> Placement | None:
        return self.placements.get(job)


def count_by_node(placement: Iterable[Slot]) -> Mapping[str, int]:
    """How many ranks each node holds."""
    counts: dict[str, int] = {}
    for slot in placement:
        counts[slot.node] = counts.get(slot.node, 0) + 1
    return counts
