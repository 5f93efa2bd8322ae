"""`restow demo`: a scattered job is found and moved, live, onto one machine, and loses nothing."""

from __future__ import annotations

import json
import signal
import tempfile
import time
from pathlib import Path
from types import FrameType

import click

from restow.errors import Refused, SpecError

LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the numbers of the closing table.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw the timeline: .png, .svg or .pdf.",
)
@click.option(
    "--scene", type=click.Choice(["consolidate"]), default="consolidate", show_default=True, help="What to play."
)
@click.option("--fast", is_flag=True, help="Fewer steps.")
def demo(json_file: Path | None, picture: Path | None, scene: str, fast: bool) -> None:
    """A scattered job is moved, live, onto one machine, and loses nothing.

    Two machines with two devices each are made on this one, with a link of 200 Mbit/s between them. Real jobs come and
    go, so that a gang of two ends up with one worker on each machine. A neighbour finishes; restow notices, explains,
    and moves the gang together while it trains. At the end the same gang runs once more, never moved, and every loss
    and every parameter is compared. Takes under two minutes; leaves nothing behind, after Ctrl-C neither.

    \b
      restow demo
      restow demo --json numbers.json --picture timeline.png
    """
    for file in (json_file, picture):
        if file and not file.absolute().parent.is_dir():
            raise SpecError(f"{file} cannot be written: the folder {file.absolute().parent} does not exist")
    for number in LEAVING:
        signal.signal(number, _leave)
    _play(json_file, picture, scene, fast)


def _leave(number: int, frame: FrameType | None) -> None:
    """Everything is taken down, once: a second Ctrl-C must not interrupt that."""
    for other in LEAVING:
        signal.signal(other, signal.SIG_IGN)
    click.echo("taking everything down, a moment", err=True)
    raise KeyboardInterrupt


def _play(json_file: Path | None, picture: Path | None, scene_name: str, fast: bool) -> None:
    from rich.console import Console  # all of it is imported late: the other commands start without it

    from restow.demo.audience import choose_audience
    from restow.demo.picture import check_name, draw
    from restow.demo.scene import SCENES
    from restow.demo.stage import Stage, find_kind
    from restow.demo.story import Story

    if picture:
        check_name(picture)
    origin_s = time.time()
    scene, console, kind = SCENES[scene_name](fast=fast), Console(), find_kind()
    notes = (
        ()
        if kind.has_link
        else (f"one machine without a shaped link: {kind.missing}", "the move was asked for by hand")
    )
    with (
        tempfile.TemporaryDirectory(prefix="restow-demo-") as folder,
        choose_audience(console, scene, has_link=kind.has_link, origin_s=origin_s) as audience,
    ):
        with Stage(scene, kind, audience.say) as stage:
            story = Story(stage, audience, Path(folder), origin_s=origin_s)
            move = story.play()
            audience.say("taking the cluster and the lab down")
        result = story.judge(move, notes)
        audience.say("done")

    console.print(result.table())
    for note in notes:
        console.print(f"missing here: {note}")
    if json_file:
        json_file.write_text(json.dumps(result.numbers(), indent=2) + "\n")
        console.print(f"numbers: {json_file}")
    if picture:
        names = tuple(part.name for part in scene.parts)
        draw(story.timeline, names, scene.gang.name, result, picture)
        console.print(f"picture: {picture}")
    if not result.comparison.is_identical or move["lost_steps"]:
        raise Refused("the moved job is not the one that was left alone; this is a bug in restow, please report it")
