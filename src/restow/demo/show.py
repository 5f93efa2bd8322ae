"""A moment as it looks in the terminal: machines, their devices as tiles, the link, what is going on."""

from __future__ import annotations

from rich.align import Align
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from restow.demo.result import size
from restow.demo.timeline import JobSeen, Moment, Timeline
from restow.placement import Slot, is_scattered

COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
PICTURE_COLOURS = {
    "cyan": "#4c9fb5",
    "magenta": "#b8579f",
    "yellow": "#d8b13c",
    "green": "#5aa469",
    "blue": "#4f6fb8",
    "red": "#c4554d",
}
TILE_WIDTH = 17
HAPPENINGS_SHOWN = 8


def colour_of(names: tuple[str, ...], name: str) -> str:
    """Each job keeps its colour: by its place among the names of the scene."""
    return COLOURS[names.index(name) % len(COLOURS)] if name in names else "white"


def screen(
    timeline: Timeline, names: tuple[str, ...], *, title: str, rate_bits_per_s: float | None, act: str
) -> RenderableType:
    """The whole display at the newest moment."""
    moment = timeline.last
    if moment is None:
        return Panel(Text(act), title=title, title_align="left")
    return Panel(
        Group(
            _machines(timeline, moment, names, rate_bits_per_s),
            _jobs(timeline, moment, names),
            Text(),
            *(Text(line) for line in happening_lines(timeline)[-HAPPENINGS_SHOWN:]),
            Text(),
            Text(act, style="bold"),
        ),
        title=title,
        title_align="left",
        subtitle=f"{moment.time_s:.0f} s",
        subtitle_align="right",
    )


def happening_lines(timeline: Timeline) -> list[str]:
    return [f"{h.time_s:5.1f} s  {h.job + ': ' if h.job else ''}{h.text}" for h in timeline.happenings]


def _machines(
    timeline: Timeline, moment: Moment, names: tuple[str, ...], rate_bits_per_s: float | None
) -> RenderableType:
    nodes: dict[str, list[Slot]] = {}
    for device in moment.devices:
        nodes.setdefault(device.node, []).append(device)
    parts: list[RenderableType] = []
    for node, devices in nodes.items():
        if parts:
            parts.append(Align(link_text(timeline, rate_bits_per_s), vertical="middle", height=6))
        tiles = Columns([_tile(moment, device, names) for device in devices], width=TILE_WIDTH + 2)
        parts.append(Panel(tiles, title=node, width=len(devices) * (TILE_WIDTH + 3) + 4))
    return Columns(parts)


def _tile(moment: Moment, device: Slot, names: tuple[str, ...]) -> RenderableType:
    job, twin = moment.at(device), moment.coming_to(device)
    if job is None and twin is not None:
        colour = colour_of(names, twin.name)
        text = Text(f"{twin.name}\ntwin, {twin.phase}", style=f"italic {colour}")
        return Panel(text, title=str(device.device), width=TILE_WIDTH, border_style=f"dim {colour}")
    if job is None:
        return Panel(Text("free\n", style="dim"), title=str(device.device), width=TILE_WIDTH, border_style="dim")
    rank = next(rank for rank, slot in enumerate(job.slots) if slot[:2] == device[:2])
    colour = colour_of(names, job.name)
    below = f"rank {rank} of {len(job.slots)}" if len(job.slots) > 1 else job.state
    return Panel(
        Text(f"{job.name}\n{below}", style=f"bold {colour}"),
        title=str(device.device),
        width=TILE_WIDTH,
        border_style=colour,
    )


def link_text(timeline: Timeline, rate_bits_per_s: float | None) -> Text:
    used = timeline.link_bytes_per_s()
    if rate_bits_per_s is None or used is None:
        return Text("── no link ──", style="dim")
    share = min(1.0, used * 8 / (2 * rate_bits_per_s))  # both ways are counted
    bars = round(share * 10)
    style = "red" if share > 0.5 else "yellow" if share > 0.05 else "green"
    return Text(
        f"{rate_bits_per_s / 1e6:.0f} Mbit/s\n" + "━" * bars + "─" * (10 - bars) + f"\n{size(int(used))}/s", style=style
    )


def _jobs(timeline: Timeline, moment: Moment, names: tuple[str, ...]) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("job", "state", "where", "step", "steps/s", "loss", "why"):
        table.add_column(
            head,
            no_wrap=head != "why",
            overflow="fold",
            justify="right" if head in ("step", "steps/s", "loss") else "left",
        )
    for job in moment.jobs:
        speed = timeline.steps_per_s(job.name)
        table.add_row(
            Text(job.name, style=f"bold {colour_of(names, job.name)}"),
            state_text(job),
            Text(" ".join(map(str, job.slots)) or "-", style="red" if is_scattered(job.slots) else ""),
            str(job.step),
            f"{speed:.1f}" if speed is not None else "-",
            f"{job.loss:.3f}" if job.loss is not None else "-",
            Text(job.reason, style="dim"),
        )
    return table


def state_text(job: JobSeen) -> str:
    return f"{job.state}, moving ({job.phase})" if job.phase else job.state


def progress_line(timeline: Timeline) -> str:
    """The newest moment in one line, for where there is no terminal."""
    moment = timeline.last
    if moment is None:
        return ""
    parts = []
    for job in moment.jobs:
        if job.is_final:
            continue
        speed = timeline.steps_per_s(job.name)
        speed_text = f", {speed:.1f} steps/s" if speed is not None else ""
        where = " ".join(map(str, job.slots)) or "nowhere"
        parts.append(f"{job.name} {state_text(job)} on {where}, step {job.step}{speed_text}")
    return f"{moment.time_s:5.1f} s  " + "; ".join(parts)
