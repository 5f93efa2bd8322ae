"""A run made small enough to be drawn: how full the cluster was, who was on the first devices, what was done to jobs; each bounded.

Made from the stays that a recorder kept. Times are seconds of virtual time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from restow.cluster import Node
from restow.placement import Placement, devices_of
from restow.sim.machines import Machines
from restow.sim.recorder import Came, Stay, Went
from restow.sim.troubles import Trouble

PARTS = 240  # of the time, for what is drawn over it
DEVICES_MAX = 64
BARS_MAX = 1500
CHANGES_MAX = 300
BANDS_MAX = 1500
_NONE = 1e-6  # of a device: less is a sum of shares that did not come out even


@dataclass(frozen=True, slots=True, kw_only=True)
class Fullness:
    """Means over one part of the time."""

    to_s: float
    held: float  # share of all devices
    together: float | None  # of the devices that nobody holds, the part on machines that are wholly free; None: all were held


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A job on devices that lie one below the other."""

    job: str
    row: int  # the first of them
    rows: int
    offset: float  # of the part of each that it has, from its upper edge: 0 unless it shares it
    share: float
    stay: Stay


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A trouble on devices that lie one below the other."""

    row: int  # the first of them
    rows: int
    trouble: Trouble


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What was done to a job."""

    time_s: float
    job: str
    what: str  # moved, suspended, lost, resumed or reshared
    now: Placement
    then: Placement
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    from_s: float
    to_s: float
    fullness: tuple[Fullness, ...]
    rows: tuple[tuple[str, int], ...]  # the devices that are drawn
    devices: int  # that there are
    bars: tuple[Bar, ...]  # by their beginning
    bars_to_s: float  # until when all of them are here
    changes: tuple[Change, ...]  # the first ones, by time
    changes_all: int
    bands: tuple[Band, ...] = ()  # by their beginning
    bands_to_s: float = math.inf  # until when all of them are here


def history(stays: Sequence[Stay], machines: Machines, from_s: float, troubles: Sequence[Trouble] = ()) -> History:
    """`stays`: of a run that is over."""
    stays = sorted(stays, key=lambda stay: (stay.from_s, stay.job))
    to_s = max((stay.to_s for stay in stays), default=from_s)
    rows = _rows(machines)
    bars, bars_to_s = _bars(stays, rows, to_s)
    bands, bands_to_s = _bands(sorted(troubles, key=lambda trouble: trouble.from_s), rows, to_s)
    changes = sorted(_changes(stays), key=lambda change: (change.time_s, change.job))
    return History(
        from_s=from_s, to_s=to_s, fullness=tuple(_fullness(stays, machines.nodes, from_s, to_s)), rows=rows,
        devices=machines.devices, bars=bars, bars_to_s=bars_to_s, changes=tuple(changes[:CHANGES_MAX]), changes_all=len(changes),
        bands=bands, bands_to_s=bands_to_s,
    )  # fmt: skip


# -------------------------------------------------------------------- how full it was


def _fullness(stays: Sequence[Stay], nodes: Sequence[Node], from_s: float, to_s: float) -> Iterator[Fullness]:
    """Device seconds in each part of the time. O(stays log stays + slots)."""
    part_s = (to_s - from_s) / PARTS
    if part_s <= 0:
        return
    sizes = {node.name: len(node.devices) for node in nodes}
    total = sum(sizes.values())
    used: dict[tuple[str, int], float] = {}
    busy = dict.fromkeys(sizes, 0)  # devices of each machine that somebody holds
    held, free, together = 0.0, total, total
    sums = [[0.0, 0.0, 0.0] for _ in range(PARTS)]
    since_s = from_s
    for time_s, sign, placement in _turns(stays, to_s):
        _spread(sums, (held, free, together), since_s - from_s, time_s - from_s, part_s)
        since_s = time_s
        for slot in devices_of(placement):
            before = used.get(slot[:2], 0.0)
            after = used[slot[:2]] = max(0.0, before + sign * slot.share)
            held += sign * slot.share
            turned = (after > _NONE) - (before > _NONE)
            if turned:
                free -= turned
                together += sizes[slot.node] * ((busy[slot.node] + turned == 0) - (busy[slot.node] == 0))
                busy[slot.node] += turned
    for number, (held_s, free_s, together_s) in enumerate(sums):
        part = together_s / free_s if free_s > _NONE * part_s else None
        yield Fullness(to_s=from_s + (number + 1) * part_s, held=held_s / part_s / total, together=part)


def _turns(stays: Sequence[Stay], to_s: float) -> list[tuple[float, int, Placement]]:
    """Who leaves before who comes, at the same moment; the end is one, too."""
    turns = [(stay.from_s, 1, stay.placement) for stay in stays] + [(stay.to_s, -1, stay.placement) for stay in stays]
    return [*sorted(turns, key=lambda turn: turn[:2]), (to_s, 1, ())]


def _spread(sums: list[list[float]], values: Sequence[float], from_s: float, to_s: float, part_s: float) -> None:
    """Add the values, times seconds, to each part that lies between."""
    at = min(int(from_s / part_s), PARTS - 1)
    while from_s < to_s:
        end_s = to_s if at == PARTS - 1 else min(to_s, (at + 1) * part_s)
        for index, value in enumerate(values):
            sums[at][index] += value * max(0.0, end_s - from_s)
        from_s, at = max(end_s, from_s), at + 1
        if at == PARTS:
            return


# -------------------------------------------------------------------- who was where


def _rows(machines: Machines) -> tuple[tuple[str, int], ...]:
    """Devices of the first machines, whole ones as far as they fit; at least one."""
    rows: list[tuple[str, int]] = []
    for node in machines.nodes:
        more = [(node.name, device.index) for device in node.devices]
        if rows and len(rows) + len(more) > DEVICES_MAX:
            break
        rows += more
    return tuple(rows[:DEVICES_MAX])


def _bars(stays: Sequence[Stay], rows: Sequence[tuple[str, int]], to_s: float) -> tuple[tuple[Bar, ...], float]:
    """And until when none is left out."""
    numbers = {device: number for number, device in enumerate(rows)}
    lanes: dict[int, list[tuple[float, float, float]]] = {}  # row → of who is on it: until when, from where, how much
    bars: list[Bar] = []
    for stay in stays:
        mine: list[tuple[int, float, float]] = []
        for slot in sorted(devices_of(stay.placement)):
            if (row := numbers.get(slot[:2])) is not None:
                beside = [lane for lane in lanes.get(row, []) if lane[0] > stay.from_s]
                offset = _offset(beside, slot.share)
                lanes[row] = [*beside, (stay.to_s, offset, slot.share)]
                mine.append((row, offset, slot.share))
        found = list(_joined(mine, stay))
        if len(bars) + len(found) > BARS_MAX:
            return tuple(bars), stay.from_s
        bars += found
    return tuple(bars), to_s


def _bands(troubles: Sequence[Trouble], rows: Sequence[tuple[str, int]], to_s: float) -> tuple[tuple[Band, ...], float]:
    """And until when none is left out."""
    numbers: dict[str, list[tuple[int, int]]] = {}  # machine → its rows, and the devices in them
    for number, (node, device) in enumerate(rows):
        numbers.setdefault(node, []).append((number, device))
    bands: list[Band] = []
    for trouble in troubles:
        here = [number for number, device in numbers.get(trouble.node, []) if trouble.device in (None, device)]
        if here and trouble.from_s < to_s:
            if len(bands) == BANDS_MAX:
                return tuple(bands), trouble.from_s
            bands.append(Band(row=here[0], rows=len(here), trouble=trouble))
    return tuple(bands), math.inf


def _offset(beside: Sequence[tuple[float, float, float]], share: float) -> float:
    """The uppermost place on a device for one more."""
    at = 0.0
    for _, offset, width in sorted(beside, key=lambda lane: lane[1]):
        if offset - at >= share - 1e-9:
            break
        at = max(at, offset + width)
    return min(at, 1.0 - share)


def _joined(mine: Sequence[tuple[int, float, float]], stay: Stay) -> Iterator[Bar]:
    """One bar for whole devices that lie one below the other."""
    at = 0
    while at < len(mine):
        row, offset, share = mine[at]
        end = at + 1
        while end < len(mine) and mine[end] == (row + end - at, 0.0, 1.0) and share == 1.0:
            end += 1
        yield Bar(job=stay.job, row=row, rows=end - at, offset=offset, share=share, stay=stay)
        at = end


# -------------------------------------------------------------------- what was done to jobs


def _changes(stays: Sequence[Stay]) -> Iterator[Change]:
    last: dict[str, Stay] = {}
    for stay in stays:
        before = last.get(stay.job)
        now = before.placement if before and stay.came in (Came.MOVED, Came.RESHARED) else ()
        if stay.came in (Came.MOVED, Came.RESUMED, Came.RESHARED):
            yield Change(time_s=stay.from_s, job=stay.job, what=stay.came.value, now=now, then=stay.placement, why=stay.came_why)
        if stay.went in (Went.SUSPENDED, Went.LOST):
            yield Change(time_s=stay.to_s, job=stay.job, what=stay.went.value, now=stay.placement, then=(), why=stay.went_why)
        last[stay.job] = stay
