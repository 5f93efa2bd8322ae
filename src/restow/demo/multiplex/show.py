"""A moment of sharing as it looks in the terminal: who holds which device, both speeds, what they make together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.align import Align
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from restow.demo.multiplex.gates import GateSeen
from restow.demo.multiplex.result import Row
from restow.demo.scene import Scene
from restow.demo.show import colour_of, happening_lines, link_text
from restow.demo.timeline import JobSeen, Moment, Timeline
from restow.placement import Slot

BOX_WIDTH = 40
BAR_WIDTH = 30
HAPPENINGS_SHOWN = 5
PARTS_OVER_S = 4.0  # who held a device for how much of this time: two rounds of turns


@dataclass(slots=True)
class SharingLook:
    """What the story knows beside the timeline; it fills this in as it goes on."""

    scene: Scene
    has_link: bool
    phase: str = ""
    alone_s: dict[str, float] = field(default_factory=dict)  # job → seconds per step alone, once measured
    bound: float | None = None  # of the two gangs, once both were measured
    rows: list[Row] = field(default_factory=list)  # phases that are over
    gates: list[GateSeen] = field(default_factory=list)  # in the order of time

    # ------------------------------------------------------------ numbers

    def speed(self, timeline: Timeline, name: str) -> float | None:
        """Relative to alone, now."""
        steps_per_s = timeline.steps_per_s(name)
        return steps_per_s * self.alone_s[name] if steps_per_s is not None and name in self.alone_s else None

    def gate(self, device: Slot) -> tuple[GateSeen, dict[str, float]] | None:
        """The newest look at a device's gate, and for which part of the last seconds each job (by id) held it."""
        seen = [gate for gate in self.gates if gate.device[:2] == device[:2]]
        if not seen:
            return None
        newest = seen[-1]
        earlier = next((gate for gate in reversed(seen) if newest.time_s - gate.time_s >= PARTS_OVER_S), seen[0])
        return newest, newest.parts(earlier)

    # ------------------------------------------------------------ the terminal

    def screen(self, timeline: Timeline, act: str) -> RenderableType:
        moment = timeline.last
        if moment is None:
            return Panel(Text(act), title=self.scene.title, title_align="left")
        parts: list[RenderableType] = [
            self._machines(timeline, moment),
            self._jobs(timeline, moment),
            Text(),
            self._together(timeline, moment),
        ]
        if self.rows:
            parts += [Text(), *(Text(row_line(row), style="dim") for row in self.rows)]
        lines = happening_lines(timeline)[-HAPPENINGS_SHOWN:]
        parts += [Text(), *(Text(line) for line in lines), Text(), Text(act, style="bold")]
        return Panel(
            Group(*parts),
            title=self.scene.title,
            title_align="left",
            subtitle=f"{self.phase + ', ' if self.phase else ''}{moment.time_s:.0f} s",
            subtitle_align="right",
        )

    def _machines(self, timeline: Timeline, moment: Moment) -> RenderableType:
        rate = self.scene.rate_bits_per_s if self.has_link else None
        parts: list[RenderableType] = []
        for device in moment.devices:
            if parts:
                parts.append(Align(link_text(timeline, rate), vertical="middle", height=5))
            parts.append(self._device(moment, device))
        return Columns(parts)

    def _device(self, moment: Moment, device: Slot) -> RenderableType:
        jobs = jobs_at(moment, device)
        seen = self.gate(device)
        lines = []
        for job in jobs:
            rank = next(rank for rank, slot in enumerate(job.slots) if slot[:2] == device[:2])
            line = Text(style=colour_of(self._names, job.name))
            if len(jobs) < 2 or seen is None or seen[0].is_free:
                line.append(f"● {job.name}, rank {rank}", style="bold")
            else:
                newest, parts = seen
                holds = newest.holder == job.id
                line.append(f"{'●' if holds else '○'} {job.name}, rank {rank}", style="bold" if holds else "")
                line.append(f"  holds {parts.get(job.id, 0.0):.0%}")
            lines.append(line)
        title = f"{device.node}:{device.device}"
        if len(jobs) > 1 and seen:
            title += " · no gate, all at once" if seen[0].is_free else " · ● computes, ○ waits"
        lines += [Text("free" if not jobs else "", style="dim")] * (2 - len(lines))
        return Panel(Group(*lines), title=title, title_align="left", width=BOX_WIDTH)

    def _jobs(self, timeline: Timeline, moment: Moment) -> RenderableType:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for head in ("job", "state", "shares", "step", "steps/s", "of its own speed", "loss"):
            table.add_column(head, no_wrap=True, justify="left" if head in ("job", "state", "shares") else "right")
        for job in moment.jobs:
            steps_per_s, speed = timeline.steps_per_s(job.name), self.speed(timeline, job.name)
            table.add_row(
                Text(job.name, style=f"bold {colour_of(self._names, job.name)}"),
                job.state,
                job.sharing or "nothing",
                str(job.step),
                f"{steps_per_s:.1f}" if steps_per_s is not None else "-",
                f"{speed:.2f}" if speed is not None else "-",
                f"{job.loss:.3f}" if job.loss is not None else "-",
            )
        return table

    def _together(self, timeline: Timeline, moment: Moment) -> RenderableType:
        """The sum of relative speeds as a bar that is full at the bound."""
        total = self._total(timeline, moment)
        if total is None or self.bound is None:
            return Text("together: measured as soon as both are here", style="dim")
        bars = min(BAR_WIDTH, round(total / self.bound * BAR_WIDTH))
        text = Text("together ")
        text.append("━" * bars, style="green")
        text.append("─" * (BAR_WIDTH - bars), style="dim")
        text.append(f" {total:.2f}", style="bold green")
        text.append(f" times one alone; no schedule can make more than {self.bound:.2f}")
        return text

    def _total(self, timeline: Timeline, moment: Moment) -> float | None:
        """Of the two gangs of the comparison; None unless both are here and have a speed."""
        gangs = self._names[:2]
        speeds = [self.speed(timeline, job.name) for job in moment.jobs if job.name in gangs]
        known = [speed for speed in speeds if speed is not None]
        return sum(known) if len(known) == len(gangs) else None

    # ------------------------------------------------------------ plain lines

    def line(self, timeline: Timeline) -> str:
        moment = timeline.last
        if moment is None:
            return ""
        parts = []
        for job in moment.jobs:
            steps_per_s, speed = timeline.steps_per_s(job.name), self.speed(timeline, job.name)
            words = [job.state, f"step {job.step}"] if steps_per_s is None else [f"{steps_per_s:.1f} steps/s"]
            words += [f"{speed:.2f} of its own"] if speed is not None else []
            parts.append(f"{job.name} {', '.join(words)}")
        total = self._total(timeline, moment)
        if total is not None and self.bound is not None:
            parts.append(f"together {total:.2f} of {self.bound:.2f}")
        held = [self.gate(device) for device in moment.devices]
        holders = [f"{seen[0].device.node}:{seen[0].device.device} {seen[0].holder or 'nobody'}" for seen in held if seen]
        if holders and any(seen and not seen[0].is_free for seen in held):
            parts.append(f"now computing: {', '.join(holders)}")
        return f"{moment.time_s:5.1f} s  {self.phase + ': ' if self.phase else ''}{'; '.join(parts)}"

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.scene.parts)


def jobs_at(moment: Moment, device: Slot) -> list[JobSeen]:
    """Everybody on this device."""
    return [job for job in moment.jobs if any(slot[:2] == device[:2] for slot in job.slots) and not job.is_final]


def row_line(row: Row) -> str:
    speeds: Sequence[str] = [f"{speed:.2f}" for speed in row.speeds]
    return f"{row.phase:<6} {' + '.join(speeds)} = {row.total:.2f}, {row.ratio_to_bound:.0%} of the bound   {row.what}"
