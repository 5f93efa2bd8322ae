"""Times, shares and placements as people read them. What is returned is plain text, not yet escaped."""

from __future__ import annotations

from collections.abc import Iterable

from restow.placement import Placement, devices_of

HOURS_FROM_S, MINUTES_FROM_S = 7200.0, 120.0


def duration(seconds: float) -> str:
    if seconds >= HOURS_FROM_S:
        return f"{seconds / 3600:.2f} h"
    return f"{seconds / 60:.1f} min" if seconds >= MINUTES_FROM_S else f"{seconds:.1f} s"


def moment(seconds: float) -> str:
    """Of virtual time: 2 d 03:04:05."""
    whole = int(seconds)
    clock = f"{whole % 86400 // 3600:02d}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{whole // 86400} d {clock}" if whole >= 86400 else clock


def percent(part: float | None) -> str:
    return "–" if part is None else f"{100 * part:.0f} %"


def place(placement: Placement) -> str:
    """`gpu-0:0-3 gpu-1:0@0.5`: neighbours of a machine together."""
    found: list[str] = []
    by_node: dict[tuple[str, float], list[int]] = {}
    for slot in devices_of(placement):
        by_node.setdefault((slot.node, slot.share), []).append(slot.device)
    for (node, share), devices in by_node.items():
        part = "" if share == 1.0 else f"@{share:g}"
        found += [f"{node}:{span}{part}" for span in _spans(sorted(devices))]
    return " ".join(found) or "–"


def _spans(numbers: list[int]) -> Iterable[str]:
    first = last = numbers[0]
    for number in [*numbers[1:], -1]:
        if number != last + 1:
            yield str(first) if first == last else f"{first}-{last}"
            first = number
        last = number
