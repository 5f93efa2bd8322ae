"""A whole performance of each scene: the stage is set, the story is told, everything is taken down, the table is shown."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from restow.demo.audience import choose_audience
from restow.demo.multiplex.scene import multiplex
from restow.demo.multiplex.show import SharingLook
from restow.demo.multiplex.story import MultiplexStory
from restow.demo.picture import check_name, draw
from restow.demo.scene import consolidate
from restow.demo.stage import Kind, Stage, find_kind
from restow.demo.story import Story
from restow.demo.survive.result import SurviveResult
from restow.demo.survive.scene import survive
from restow.demo.survive.story import SurviveStory
from restow.errors import Refused, SpecError


def play_consolidate(json_file: Path | None, picture: Path | None, fast: bool) -> None:
    if picture:
        check_name(picture)
    origin_s = time.time()
    scene, console, kind = consolidate(fast=fast), Console(), find_kind()
    notes = _missing(kind, "the move was asked for by hand")
    with (
        tempfile.TemporaryDirectory(prefix="restow-demo-") as folder,
        choose_audience(console, scene, has_link=kind.has_link, origin_s=origin_s) as audience,
    ):
        with Stage(scene, kind, audience.say) as stage:
            story = Story(scene, stage, audience, Path(folder), origin_s=origin_s)
            move = story.play()
            audience.say("taking the cluster and the lab down")
        result = story.judge(move, notes)
        audience.say("done")

    console.print(result.table())
    _close(console, notes, json_file, result.numbers())
    if picture:
        names = tuple(part.name for part in scene.parts)
        draw(story.timeline, names, scene.gang.name, result, picture)
        console.print(f"picture: {picture}")
    if not result.comparison.is_identical or move["lost_steps"]:
        raise Refused("the moved job is not the one that was left alone; this is a bug in restow, please report it")


def play_multiplex(json_file: Path | None, picture: Path | None, fast: bool) -> None:
    if picture:
        raise SpecError("--picture draws the timeline of --scene consolidate; leave it out here")
    origin_s = time.time()
    scene, console, kind = multiplex(fast=fast), Console(), find_kind()
    notes = _missing(kind, "nobody waits for a network, so there is little to gain by sharing")
    look = SharingLook(scene=scene, has_link=kind.has_link)
    with (
        tempfile.TemporaryDirectory(prefix="restow-demo-") as folder,
        choose_audience(console, scene, has_link=kind.has_link, origin_s=origin_s, look=look) as audience,
    ):
        with Stage(scene, kind, audience.say) as stage:
            story = MultiplexStory(scene, stage, audience, look, Path(folder), origin_s=origin_s)
            demands, speeds, protection = story.play()
            audience.say("taking the cluster and the lab down")
        result = story.result(demands, speeds, protection, story.judge(), notes)
        audience.say("done")

    console.print(result.table())
    for line in result.closing_lines():
        console.print(line, soft_wrap=True, highlight=False)
    _close(console, notes, json_file, result.numbers())
    if not result.is_identical:
        raise Refused("a job that shared its devices is not the one left alone; this is a bug in restow, please report it")


def play_survive(json_file: Path | None, picture: Path | None, fast: bool) -> None:
    if picture:
        raise SpecError("--picture draws the timeline of --scene consolidate; leave it out here")
    origin_s = time.time()
    scene, console, kind = survive(fast=fast), Console(), find_kind()
    notes = _missing(kind, "no machine could be pulled out; a worker was killed instead")
    with (
        tempfile.TemporaryDirectory(prefix="restow-demo-") as folder,
        choose_audience(console, scene, has_link=kind.has_link, origin_s=origin_s) as audience,
    ):
        with Stage(scene, kind, audience.say) as stage:
            story = SurviveStory(scene, stage, audience, Path(folder), origin_s=origin_s)
            rows = (story.play(), *(() if fast else story.rival()))
            audience.say("taking the cluster and the lab down")
        result = SurviveResult(rows=rows, comparison=story.judge(), devices=story.devices, notes=notes)
        audience.say("done")

    console.print(result.table())
    for line in result.closing_lines():
        console.print(line, soft_wrap=True, highlight=False)
    _close(console, notes, json_file, result.numbers())
    if not result.comparison.is_identical:
        raise Refused("the job that lost its machine is not the one left alone; this is a bug in restow, please report it")


SCENES: dict[str, Callable[[Path | None, Path | None, bool], None]] = {
    "consolidate": play_consolidate,
    "multiplex": play_multiplex,
    "survive": play_survive,
}


def _missing(kind: Kind, consequence: str) -> tuple[str, ...]:
    """What cannot be had here, and what follows from it."""
    return () if kind.has_link else (f"one machine without a shaped link: {kind.missing}", consequence)


def _close(console: Console, notes: tuple[str, ...], json_file: Path | None, numbers: dict[str, Any]) -> None:
    for note in notes:
        console.print(f"missing here: {note}")
    if json_file:
        json_file.write_text(json.dumps(numbers, indent=2) + "\n")
        console.print(f"numbers: {json_file}")
