"""A frame for lines over an axis, as SVG: scales, round ticks, gridlines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 960, 52, 12, 10, 26
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_TIMES_S = (1, 10, 60, 600, 3600, 6 * 3600, 86400, 3 * 86400, 7 * 86400, 30 * 86400, 365 * 86400)
Tick = tuple[float, str]
Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Frame:
    """`x` and `y` give the place of a value."""

    height: int
    x: Scale
    y: Scale

    def svg(self, label: str, x_ticks: Iterable[Tick], y_ticks: Iterable[Tick], body: str) -> str:
        bottom = self.height - BOTTOM
        parts = [f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escape(label)}">']
        for value, words in y_ticks:
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(words)}</text>')
        for value, words in x_ticks:
            x = self.x(value)
            parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
            anchor = "end" if x > WIDTH - 2 * RIGHT else "middle"
            parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{escape(words)}</text>')
        return "".join([*parts, body, "</svg>"])


def linear(low: float, high: float, from_px: float, to_px: float) -> Scale:
    span = high - low or 1.0
    return lambda value: from_px + (value - low) / span * (to_px - from_px)


def logarithmic(low: float, high: float, from_px: float, to_px: float) -> Scale:
    scale = linear(math.log(low), math.log(high), from_px, to_px)
    return lambda value: scale(math.log(max(value, low)))


def x_range(scale: Callable[[float, float, float, float], Scale], low: float, high: float) -> Scale:
    return scale(low, high, LEFT, WIDTH - RIGHT)


def time_ticks(from_s: float, to_s: float) -> list[Tick]:
    """Five to ten round moments."""
    span_s = to_s - from_s
    unit_s, name = next((unit for unit in _UNITS if span_s >= 2 * unit[0]), _UNITS[-1])
    rough = span_s / unit_s / 8 or 1.0
    power = 10 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough)
    first, last = math.ceil(from_s / unit_s / step), math.floor(to_s / unit_s / step)
    return [(number * step * unit_s, f"{number * step:g} {name}") for number in range(first, last + 1)]


def log_time_ticks(low_s: float, high_s: float) -> list[Tick]:
    found = [(float(s), _said(s)) for s in _TIMES_S if low_s <= s <= high_s]
    return found if len(found) > 1 else [(low_s, _said(low_s)), (high_s, _said(high_s))]


def _said(seconds: float) -> str:
    unit_s, name = next((unit for unit in _UNITS if seconds >= unit[0]), _UNITS[-1])
    return f"{seconds / unit_s:.3g} {name}"


PERCENTS: Sequence[Tick] = [(part / 4, f"{25 * part} %") for part in range(5)]
