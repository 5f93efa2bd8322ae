"""Who watches: a terminal with a live display, or a file that wants plain lines. Both are told the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Protocol, Self

from rich.console import Console, RenderableType
from rich.live import Live

from restow.demo.scene import Scene
from restow.demo.show import happening_lines, progress_line, screen
from restow.demo.timeline import Timeline

LINE_EVERY_S = 2.0


class Look(Protocol):
    """How a scene is shown."""

    def screen(self, timeline: Timeline, act: str) -> RenderableType:
        """The whole display."""
        ...

    def line(self, timeline: Timeline) -> str:
        """The newest moment, where there is no terminal."""
        ...


class MachinesLook:
    """Machines with their devices as tiles, and the jobs."""

    def __init__(self, scene: Scene, *, has_link: bool) -> None:
        self._scene = scene
        self._rate = scene.rate_bits_per_s if has_link else None
        self._names = tuple(part.name for part in scene.parts)

    def screen(self, timeline: Timeline, act: str) -> RenderableType:
        return screen(timeline, self._names, title=self._scene.title, rate_bits_per_s=self._rate, act=act)

    def line(self, timeline: Timeline) -> str:
        return progress_line(timeline)


class Audience(Protocol):
    def say(self, text: str) -> None:
        """The story goes on: one sentence."""
        ...

    def see(self, timeline: Timeline) -> None:
        """There is a new moment."""
        ...


class Lines:
    """Plain progress lines, for logs and pipes: each sentence and event once, the state now and then."""

    def __init__(
        self, output: IO[str], *, origin_s: float, line: Callable[[Timeline], str] = progress_line
    ) -> None:
        self._output, self._line = output, line
        self._origin_s = origin_s  # wall clock, as of the events that are told
        self._told = 0
        self._line_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._output.flush()

    def say(self, text: str) -> None:
        print(f"{time.time() - self._origin_s:5.1f} s  {text}", file=self._output, flush=True)

    def see(self, timeline: Timeline) -> None:
        lines = happening_lines(timeline)
        for line in lines[self._told :]:
            print(line, file=self._output, flush=True)
        self._told = len(lines)
        if timeline.last and timeline.last.jobs and timeline.last.time_s - self._line_s >= LINE_EVERY_S:
            self._line_s = timeline.last.time_s
            print(self._line(timeline), file=self._output, flush=True)


class Screen:
    """The live display of rich; repaints in place."""

    def __init__(self, console: Console, look: Look) -> None:
        self._look = look
        self._act = ""
        self._timeline = Timeline()
        self._live = Live(console=console, refresh_per_second=4, transient=False, redirect_stderr=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        self._act = text
        self._paint()

    def see(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._paint()

    def _paint(self) -> None:
        self._live.update(self._look.screen(self._timeline, self._act))


def choose_audience(
    console: Console, scene: Scene, *, has_link: bool, origin_s: float, look: Look | None = None
) -> Screen | Lines:
    """A live display where `console` is a terminal, else lines on its file. Without a `look`: machines and jobs."""
    look = look or MachinesLook(scene, has_link=has_link)
    if console.is_terminal and not console.is_dumb_terminal:
        return Screen(console, look)
    return Lines(console.file, origin_s=origin_s, line=look.line)
