"""Who gives which bytes to whom when ranks change places: a pure planner over named boxes.

A box is a rectangle of a named tensor. Each box that a twin wants is taken from the nearest holder: the same device,
the same node (or a twin there that will just have received it), another node. A byte crosses to a node at most once, so
the bytes that cross equal `lower_bound_bytes` by construction. Knows nothing of torch, sockets or time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from restow.errors import Refused

Rectangle = tuple[tuple[int, ...], tuple[int, ...]]  # first corner, one past the last corner


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of the tensor `name`; offsets and lengths in items, one per dimension (none: a scalar)."""

    name: str
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    item_bytes: int

    @property
    def bytes(self) -> int:
        return prod(self.lengths) * self.item_bytes

    def __str__(self) -> str:
        return f"{self.name}[{', '.join(f'{a}:{a + n}' for a, n in zip(self.offsets, self.lengths, strict=True))}]"


@dataclass(frozen=True, slots=True)
class Holding:
    """What one process has or wants, and where it is."""

    node: str
    device: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """Write `box` of twin `target` with the bytes of `source`. A twin that is a source has received the box by an
    earlier copy of the list, over the link and not from a further twin."""

    box: Box
    source: tuple[Literal["rank", "twin"], int]
    target: int
    crosses: bool  # between nodes


def plan(holders: Mapping[int, Holding], wanted: Mapping[int, Holding]) -> list[Copy]:
    """The copies that give every twin in `wanted` (by rank) what it wants, in an order in which they can be done.

    Every wanted byte is written exactly once, also where the boxes of one twin overlap. Senders on other nodes are
    chosen by what their node, then they themselves, have been given to send so far; big tensors first, so that the load
    evens out. Raises Refused when nobody holds a wanted byte. O(tensors * twins * holders of the tensor).
    """
    have, want = _by_name(holders), _by_name(wanted)
    node_load: dict[str, int] = {holding.node: 0 for holding in holders.values()}
    rank_load: dict[int, int] = dict.fromkeys(holders, 0)
    copies: list[Copy] = []
    for name, twins in sorted(want.items(), key=lambda item: -max(box.bytes for _, _, box in item[1])):
        sources = [(rank, at, _rectangle(held)) for rank, at, held in have.get(name, ()) if held.bytes]
        received: dict[str, list[tuple[int, Rectangle]]] = {}  # node → what crossed to it, and to which twin
        written: dict[int, list[Rectangle]] = {}
        for target, holding, box in twins:
            _check_items(box, have.get(name, []))
            whole = _rectangle(box)
            rest = [whole] if box.bytes else []
            for done in written.get(target, ()):
                rest = _take(rest, done)[1]
            written.setdefault(target, []).append(whole)

            of_use = [source for source in sources if _meet(whole, source[2])]
            near = [source for source in of_use if source[1].node == holding.node]
            near.sort(key=lambda source: source[1].device != holding.device)  # stable: ranks ascending
            for rank, _, held in near:
                taken, rest = _take(rest, held)
                copies += [Copy(_box(name, part, box), ("rank", rank), target, False) for part in taken]
            for twin, held in received.get(holding.node, ()):
                taken, rest = _take(rest, held)
                copies += [Copy(_box(name, part, box), ("twin", twin), target, False) for part in taken]
            if not rest:
                continue
            far = [source for source in of_use if source[1].node != holding.node]
            far.sort(key=lambda source: (node_load[source[1].node], rank_load[source[0]], source[0]))
            for rank, sender, held in far:
                taken, rest = _take(rest, held)
                for part in taken:
                    piece = _box(name, part, box)
                    copies.append(Copy(piece, ("rank", rank), target, True))
                    received.setdefault(holding.node, []).append((target, part))
                    node_load[sender.node] += piece.bytes
                    rank_load[rank] += piece.bytes
            if rest:
                raise Refused(
                    f"{_box(name, rest[0], box)}, wanted by rank {target} on {holding.node}, is held by nobody; "
                    "start the job again from its last checkpoint"
                )
    return copies


def crossing_bytes(copies: Iterable[Copy]) -> int:
    """Bytes that these copies send between nodes."""
    return sum(copy.box.bytes for copy in copies if copy.crosses)


def lower_bound_bytes(holders: Mapping[int, Holding], wanted: Mapping[int, Holding]) -> int:
    """Bytes that must cross whatever the plan: over all nodes, what its twins need and no rank of that node holds."""
    have, total = _by_name(holders), 0
    for name, twins in _by_name(wanted).items():
        needs: dict[str, list[Rectangle]] = {}
        for _, holding, box in twins:
            rest = [_rectangle(box)] if box.bytes else []
            for counted in needs.get(holding.node, ()):
                rest = _take(rest, counted)[1]
            needs.setdefault(holding.node, []).extend(rest)
        for node, rest in needs.items():
            for _, holding, held in have.get(name, ()):
                if holding.node == node and rest:
                    rest = _take(rest, _rectangle(held))[1]
            total += sum(_items(part) for part in rest) * twins[0][2].item_bytes
    return total


# ---------------------------------------------------------------- rectangles


def _by_name(holdings: Mapping[int, Holding]) -> dict[str, list[tuple[int, Holding, Box]]]:
    found: dict[str, list[tuple[int, Holding, Box]]] = {}
    for rank in sorted(holdings):
        for box in holdings[rank].boxes:
            found.setdefault(box.name, []).append((rank, holdings[rank], box))
    return found


def _check_items(box: Box, sources: list[tuple[int, Holding, Box]]) -> None:
    for rank, _, held in sources:
        if held.item_bytes != box.item_bytes or len(held.lengths) != len(box.lengths):
            raise Refused(
                f"{box} has {len(box.lengths)} dimensions of {box.item_bytes} byte items, rank {rank} holds it with "
                f"{len(held.lengths)} of {held.item_bytes}; both must run the same script"
            )


def _rectangle(box: Box) -> Rectangle:
    return box.offsets, tuple(a + n for a, n in zip(box.offsets, box.lengths, strict=True))


def _box(name: str, part: Rectangle, like: Box) -> Box:
    low, high = part
    if low == like.offsets:
        lengths = tuple(b - a for a, b in zip(low, high, strict=True))
        return like if lengths == like.lengths else Box(name, low, lengths, like.item_bytes)
    return Box(name, low, tuple(b - a for a, b in zip(low, high, strict=True)), like.item_bytes)


def _items(part: Rectangle) -> int:
    return prod(b - a for a, b in zip(*part, strict=True))


def _meet(a: Rectangle, b: Rectangle) -> bool:
    """May they overlap? Looks at the first dimension only, along which shards are usually cut."""
    return not a[0] or (a[0][0] < b[1][0] and b[0][0] < a[1][0])


def _overlap(a: Rectangle, b: Rectangle) -> Rectangle | None:
    if a == b:
        return a
    low = tuple(map(max, a[0], b[0]))
    high = tuple(map(min, a[1], b[1]))
    for first, last in zip(low, high, strict=True):
        if first >= last:
            return None
    return low, high


def _take(parts: list[Rectangle], held: Rectangle) -> tuple[list[Rectangle], list[Rectangle]]:
    """What `held` has of `parts`, and the rest."""
    taken: list[Rectangle] = []
    rest: list[Rectangle] = []
    for part in parts:
        common = _overlap(part, held)
        if common is None:
            rest.append(part)
            continue
        taken.append(common)
        if common != part:
            rest.extend(_around(part, common))
    return taken, rest


def _around(part: Rectangle, hole: Rectangle) -> Iterator[Rectangle]:
    """`part` without `hole`, which lies inside it, cut into at most two rectangles per dimension."""
    low, high = part
    for axis in range(len(low)):
        if low[axis] < hole[0][axis]:
            yield low, (*high[:axis], hole[0][axis], *high[axis + 1 :])
        if hole[1][axis] < high[axis]:
            yield (*low[:axis], hole[1][axis], *low[axis + 1 :]), high
        low = (*low[:axis], hole[0][axis], *low[axis + 1 :])
        high = (*high[:axis], hole[1][axis], *high[axis + 1 :])
