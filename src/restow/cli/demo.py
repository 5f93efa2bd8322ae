"""`restow demo`: a scattered job is moved, gangs share devices, or a machine is lost, live, on two machines made for it."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import click

from restow.errors import SpecError

LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SCENES = ("consolidate", "multiplex", "survive")  # as in demo/perform.py, which is imported late


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
    help="Draw the timeline of the consolidate scene: .png, .svg or .pdf.",
)
@click.option(
    "--scene",
    type=click.Choice(SCENES),
    default="consolidate",
    show_default=True,
    help="consolidate: a scattered job is moved onto one machine. multiplex: two gangs share the same two devices. survive: a"
    " machine is pulled out.",
)
@click.option("--fast", is_flag=True, help="Fewer steps.")
def demo(json_file: Path | None, picture: Path | None, scene: str, fast: bool) -> None:
    """A scattered job is moved, live, onto one machine, and loses nothing; or gangs share devices; or a machine dies.

    Two machines are made on this one, with a link of 200 Mbit/s between them, and real jobs come and go there.

    consolidate: a gang of two ends up with one worker on each machine. A neighbour finishes; restow notices, explains,
    and moves the gang together while it trains. At the end the same gang runs once more, never moved, and every loss
    and every parameter is compared. Takes about two minutes.

    multiplex: two gangs on the same two devices, alone, taking turns, packed freely and through the gate, against what
    any schedule could reach at best; then one is protected and a background job takes what it leaves. At the end both
    gangs run once more, alone, and every loss is compared. Takes about two minutes.

    survive: the cable of a machine is pulled while a gang trains on it; the gang goes on with what is left, and has the
    machine again when it is back. The same script under elastic torchrun, the same cable, and every loss compared at the
    end. Takes under three minutes.

    All leave nothing behind, after Ctrl-C neither.

    \b
      restow demo
      restow demo --json numbers.json --picture timeline.png
      restow demo --scene multiplex --json numbers.json
      restow demo --scene survive
    """
    for file in (json_file, picture):
        if file and not file.absolute().parent.is_dir():
            raise SpecError(f"{file} cannot be written: the folder {file.absolute().parent} does not exist")
    for number in LEAVING:
        signal.signal(number, _leave)
    from restow.demo import perform  # late: it brings rich and more, and the other commands start without it

    perform.SCENES[scene](json_file, picture, fast)


def _leave(number: int, frame: FrameType | None) -> None:
    """Everything is taken down, once: a second Ctrl-C must not interrupt that."""
    for other in LEAVING:
        signal.signal(other, signal.SIG_IGN)
    click.echo("taking everything down, a moment", err=True)
    raise KeyboardInterrupt
