"""What is drawn as lines: how many jobs were done within which time, and how full the cluster was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from restow.sim.history import Fullness, History
from restow.sim.report import style
from restow.sim.report.axes import (
    BOTTOM,
    PERCENTS,
    TOP,
    Frame,
    linear,
    log_time_ticks,
    logarithmic,
    time_ticks,
    x_range,
)

HEIGHT = 280
POINTS_MAX = 300  # of a line
SHORTEST_S = 0.1  # a logarithmic axis has no 0


def completions(times_s: Mapping[str, Sequence[float]]) -> str:
    """Policy → completion times of its jobs, any order. A step for each job, or for each of 300 parts of them."""
    everything = [max(SHORTEST_S, seconds) for found in times_s.values() for seconds in found]
    low, high = min(everything), max(max(everything), 1.01 * min(everything))
    frame = Frame(HEIGHT, x_range(logarithmic, low, high), linear(0, 1, HEIGHT - BOTTOM, TOP))
    lines = []
    for number, found in enumerate(times_s.values()):
        times = sorted(max(SHORTEST_S, seconds) for seconds in found)
        last = len(times)
        ranks = sorted({round(last * part / POINTS_MAX) for part in range(1, POINTS_MAX + 1)} - {0})
        path = f"M{frame.x(times[0]):.1f} {frame.y(0):.1f}"
        path += "".join(f"H{frame.x(times[rank - 1]):.1f}V{frame.y(rank / last):.1f}" for rank in ranks)
        lines.append(_line(path + f"H{frame.x(high):.1f}", number, 1.0))
    return frame.svg("part of the jobs that were done within a time", log_time_ticks(low, high), PERCENTS, "".join(lines))


def fullness(histories: Sequence[tuple[int, History]], value: Callable[[Fullness], float | None], label: str) -> str:
    """`histories`: each with the number of its policy. Where there is no value the line is broken."""
    low = min(history.from_s for _, history in histories)
    high = max(history.to_s for _, history in histories)
    frame = Frame(HEIGHT, x_range(linear, low, high), linear(0, 1, HEIGHT - BOTTOM, TOP))
    lines = []
    for number, history in histories:
        path, from_s, is_begun = "", history.from_s, False
        for part in history.fullness:
            found = value(part)
            if found is not None:
                y = frame.y(min(1.0, found))
                path += f"{'V' + format(y, '.1f') if is_begun else f'M{frame.x(from_s):.1f} {y:.1f}'}H{frame.x(part.to_s):.1f}"
            from_s, is_begun = part.to_s, found is not None
        lines.append(_line(path, number, 0.8))
    return frame.svg(label, time_ticks(low, high), PERCENTS, "".join(lines))


def key(names: Sequence[str], escape: Callable[[str], str]) -> str:
    """Which line is whose."""
    rows = []
    for number, name in enumerate(names):
        line = _line("M0 6H40", number, 1.0)
        rows.append(f'<span><svg viewBox="0 0 40 12" aria-hidden="true">{line}</svg> {escape(name)}</span>')
    return f'<div class="key">{"".join(rows)}</div>'


def _line(path: str, number: int, opacity: float) -> str:
    dash = f' stroke-dasharray="{style.dash(number)}"' if style.dash(number) else ""
    return f'<path class="curve" d="{path}" stroke="{style.colour(number)}" stroke-opacity="{opacity:g}"{dash}/>' if path else ""
