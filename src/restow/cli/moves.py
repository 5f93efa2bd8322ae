"""The commands that move jobs, onto other, more, fewer or no devices: migrate, scale, pause, resume and defrag."""

from __future__ import annotations

from typing import Any

import click

from restow.cli import show as out
from restow.cli.options import json_option
from restow.client import Client
from restow.errors import SpecError
from restow.placement import parse_placement


@click.command()
@click.argument("job")
@click.option("--to", metavar="SLOTS", help='As many slots as it has ranks: "m1:0 m1:1". Who is on one stays there.')
@click.option("--pack", is_flag=True, help="To the fewest machines that free devices allow.")
@json_option
def migrate(job: str, to: str | None, pack: bool, json_: bool) -> None:
    """Move a running job to other devices while it trains.

    Returns when the move is accepted; restow show JOB tells how far it is and, when it is done, what it cost and brought.
    A job that does not use the SDK is stopped with SIGTERM and started again at the new place.

    \b
      restow migrate digits-1 --to "m1:0 m1:1"
      restow migrate digits-1 --pack
    """
    if bool(to) == pack:
        raise SpecError('give either --to "m1:0 m1:1" or --pack')
    parse_placement(to or "")  # a slot that is none is one line from here
    moving = Client().migrate(job, to=to, pack=pack)
    if json_:
        out.as_json(moving)
    else:
        wanted = moving["switch"]["placement"] if moving["switch"] else moving["intended"]
        if wanted == moving["placement"]:
            click.echo(f"{moving['id']} is on {out.places(wanted)} already")
        else:
            click.echo(f"{moving['id']}: {out.places(moving['placement'])} → {out.places(wanted)}")


@click.command()
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
@json_option
def pause(jobs: tuple[str, ...], json_: bool) -> None:
    """Let jobs give their devices back and keep their state, until restow resume.

    At its next save point each rank writes its state into the vault of its node (memory, then disk) and ends. A job that does
    not use the SDK is stopped with SIGTERM and starts again from its own checkpoint. Returns when the wish is accepted;
    restow show JOB tells when it is suspended.

    \b
      restow pause digits-1
      restow pause digits-1 gpt-2 --json
    """
    client = Client()
    _say([client.pause(job) for job in jobs], json_)


@click.command()
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
@json_option
def resume(jobs: tuple[str, ...], json_: bool) -> None:
    """Let paused jobs go on from where they were, on any devices, as soon as there are some.

    \b
      restow resume digits-1
    """
    client = Client()
    _say([client.resume(job) for job in jobs], json_)


@click.command()
@click.argument("job")
@click.argument("devices", metavar="DEVICES|auto")
@json_option
def scale(job: str, devices: str, json_: bool) -> None:
    """Let a job have so many devices from now on, while it trains.

    Where these are fewer than its workers, workers take turns on a device through its gate: slower, with the same numbers.
    A job with a range of workers (workers: 2..8) gets so many workers instead, one on each device; the batch of all of them
    together stays the same. `auto` takes the wish back; then its spec counts. Returns when the wish is accepted; restow show
    JOB tells how far it is.

    \b
      restow scale gpt-1 2
      restow scale gpt-1 auto
    """
    if devices != "auto" and not (devices.isdecimal() and int(devices) > 0):
        raise SpecError(f"devices is {devices!r}; write a number above 0, or auto")
    _say([Client().scale(job, 0 if devices == "auto" else int(devices))], json_)


def _say(views: list[dict[str, Any]], json_: bool) -> None:
    if json_:
        out.as_json(views)
        return
    for view in views:
        click.echo(f"{view['id']}: {view['state']}" + (f"; {view['reason']}" if view["reason"] else ""))


@click.command()
@click.option("--plan", is_flag=True, help="Only say it (the default).")
@click.option("--apply", "apply_", is_flag=True, help="Begin the moves now.")
@json_option
def defrag(plan: bool, apply_: bool, json_: bool) -> None:
    """Say which moves would bring scattered jobs together, what each costs and saves, and why others stay.

    The controller does the same by itself; this shows it, or does it at once.

    \b
      restow defrag --plan
      restow defrag --apply
    """
    if plan and apply_:
        raise SpecError("give either --plan or --apply")
    answer = Client().defrag(apply=apply_)
    if json_:
        out.as_json(answer)
        return
    for move in answer["moves"]:
        click.echo(f"{'moving' if apply_ else 'would move'} {sentence(move)}")
    moved = {move["job"] for move in answer["moves"]}
    for job, reason in sorted(answer["reasons"].items()):
        if job not in moved:
            click.echo(f"{job}: {reason}")
    if not answer["moves"]:
        click.echo("nothing to move")


def sentence(move: dict[str, Any]) -> str:
    """A move as predicted, in words."""
    return (
        f"{move['job']}: {out.places(move['now'])} → {out.places(move['then'])}; step {out.seconds(move['step_now_s'])} →"
        f" {out.seconds(move['step_then_s'])}, pause {out.seconds(move['downtime_s'])}, {out.size(move['wire_bytes'])} over"
        f" the wire, saves {out.seconds(move['saves_s'])}; {move['reason']}"
    )
