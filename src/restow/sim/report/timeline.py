"""Who was on which device: a bar for each stay, with what brought and ended it; shared devices are parted between their jobs."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from html import escape

from restow.sim.history import Band, Bar, History
from restow.sim.recorder import Came, Went
from restow.sim.report import style, words
from restow.sim.report.axes import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Frame, linear, time_ticks, x_range

ROW, ROW_FEW = 9, 20  # height of a device where there are many, and few
FEW = 20
LETTER = 6.2  # width
LABEL_LEAST = 13  # height of a bar with words in it


def timeline(history: History) -> str:
    """As SVG. Only until `bars_to_s`, from where on not all are known."""
    row = ROW_FEW if len(history.rows) <= FEW else ROW
    height = TOP + row * len(history.rows) + BOTTOM
    to_s = history.bars_to_s
    frame = Frame(height, x_range(linear, history.from_s, to_s), lambda value: TOP + value * row)
    shown = [bar for bar in history.bars if bar.stay.from_s < to_s or to_s == history.from_s]
    troubles = "".join(_trouble(band, frame, row, to_s) for band in history.bands if band.trouble.from_s < to_s)
    bars = "".join(_bar(bar, frame, row, to_s) for bar in shown)
    body = _bands(history, row) + bars + troubles + _moves(history, frame, to_s)
    return frame.svg("who was on which device", time_ticks(history.from_s, to_s), _names(history, row), body)


def cut(history: History) -> str:
    """What is not drawn; empty where everything is."""
    parts = []
    if len(history.rows) < history.devices:
        parts.append(f"the first {len(history.rows)} of {history.devices} devices")
    if history.bars_to_s < history.to_s:
        parts.append(f"until {words.moment(history.bars_to_s)} of {words.moment(history.to_s)}")
    if history.bands_to_s < history.bars_to_s:
        parts.append(f"what befell machines and devices until {words.moment(history.bands_to_s)}")
    return f"Cut: drawn are {' and '.join(parts)}." if parts else ""


def _names(history: History, row: int) -> list[tuple[float, str]]:
    """Each device, or only the first of each machine where there are many."""
    found = []
    for number, (node, device) in enumerate(history.rows):
        if row == ROW_FEW:
            found.append((number + 0.5, _short(f"{node}:{device}")))
        elif number == 0 or history.rows[number - 1][0] != node:
            found.append((number + 0.5, _short(node)))
    return found


def _short(name: str, most: int = 8) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]


def _bands(history: History, row: int) -> str:
    """Every second machine is shaded."""
    names = list(dict.fromkeys(node for node, _ in history.rows))
    parts = []
    for name in names[1::2]:
        mine = [number for number, (node, _) in enumerate(history.rows) if node == name]
        y, height = TOP + mine[0] * row, len(mine) * row
        parts.append(f'<rect class="band" x="{LEFT}" y="{y}" width="{WIDTH - LEFT - RIGHT}" height="{height}"/>')
    return "".join(parts)


def _trouble(band: Band, frame: Frame, row: int, to_s: float) -> str:
    """Over the bars, which shine through."""
    trouble = band.trouble
    x, end = frame.x(trouble.from_s), frame.x(min(trouble.to_s, to_s))
    kind, name = ("away", trouble.node) if trouble.device is None else ("slow", f"{trouble.node}:{trouble.device}")
    told = f"{name} {kind}\n{words.moment(trouble.from_s)} to {words.moment(trouble.to_s)}"
    y, height = frame.y(band.row), row * band.rows
    part = f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(end - x, 0.6):.1f}" height="{height:.1f}">'
    return part + f"<title>{escape(told)}</title></rect>"


def _bar(bar: Bar, frame: Frame, row: int, to_s: float) -> str:
    stay = bar.stay
    x, end = frame.x(stay.from_s), frame.x(min(stay.to_s, to_s))
    y = frame.y(bar.row) + bar.offset * row
    height = row * (bar.rows if bar.share == 1.0 else bar.share)
    fill = style.colour(zlib.crc32(bar.job.encode()))
    part = f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{max(end - x, 0.6):.1f}" height="{height:.1f}" fill="{fill}">'
    part += f"<title>{escape(_told(bar))}</title></rect>"
    if stay.came is Came.RESUMED:
        part += f'<path class="back" d="M{x + 1:.1f} {y:.1f}v{height:.1f}"/>'
    if stay.went is Went.SUSPENDED and stay.to_s <= to_s:
        part += f'<path class="gone" d="M{end - 1:.1f} {y:.1f}v{height:.1f}"/>'
    if stay.went is Went.LOST and stay.to_s <= to_s:
        part += f'<path class="lost" d="M{end - 1:.1f} {y:.1f}v{height:.1f}"/>'
    if len(bar.job) * LETTER < end - x - 6 and height >= LABEL_LEAST:
        part += f'<text class="job" x="{x + 4:.1f}" y="{y + height / 2 + 4:.1f}">{escape(bar.job)}</text>'
    return part


def _told(bar: Bar) -> str:
    stay = bar.stay
    came = f"{stay.came.value}: {stay.came_why}" if stay.came_why else stay.came.value
    went = f"{stay.went.value}: {stay.went_why}" if stay.went_why else stay.went.value
    when = f"{words.moment(stay.from_s)} to {words.moment(stay.to_s)}"
    return f"{bar.job} on {words.place(stay.placement)}\n{when}\n{came}\n{went}"


def _moves(history: History, frame: Frame, to_s: float) -> str:
    """From where a job left to where it came, at that moment."""
    left: dict[tuple[str, float], list[Bar]] = {}
    came: dict[tuple[str, float], list[Bar]] = {}
    for bar in history.bars:
        if bar.stay.went is Went.MOVED:
            left.setdefault((bar.job, bar.stay.to_s), []).append(bar)
        if bar.stay.came is Came.MOVED:
            came.setdefault((bar.job, bar.stay.from_s), []).append(bar)
    parts = []
    for (job, time_s), bars in came.items():
        before = left.get((job, time_s), [])
        if before and time_s <= to_s:
            x, middle = frame.x(time_s), _middle(frame.y)
            y, end = middle(before[0]), middle(bars[0])
            parts.append(f'<path class="move" d="M{x:.1f} {y:.1f}V{end:.1f}"/>')
            parts.append(f'<circle class="tip" cx="{x:.1f}" cy="{end:.1f}" r="2.6"/>')
    return "".join(parts)


def _middle(y: Callable[[float], float]) -> Callable[[Bar], float]:
    return lambda bar: y(bar.row + (bar.rows / 2 if bar.share == 1.0 else bar.offset + bar.share / 2))
