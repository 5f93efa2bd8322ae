"""The commands about the cluster itself: up, down, nodes, events."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import click

from restow import config
from restow.cli import bring_up
from restow.cli import show as out
from restow.cli.event_lines import concerns, event_line
from restow.cli.options import json_option
from restow.client import Client
from restow.errors import Refused, SpecError
from restow.own_policies import find_policy


@click.command()
@click.option("--join", "gcs", metavar="HOST:PORT", help="Join the cluster that runs there, instead of making one.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --join: a copy of the first machine's token.",
)
@click.option(
    "--port", type=click.IntRange(1024, 65535), help=f"Ray's port (default {bring_up.DEFAULT_PORT}, or a free one)."
)
@click.option("--name", help="This machine's name in the cluster (default $RESTOW_NODE_NAME, or the host's name).")
@click.option("--address", help="Where the others reach it (default $RESTOW_NODE_ADDRESS, or found out).")
@click.option("--policy", metavar="NAME|FILE", help="What decides: a name, or mine.py (default restow, or that of the last time).")
@click.option("--foreground", is_flag=True, help="Stay, and take everything down at Ctrl-C or SIGTERM.")
@json_option
def up(
    gcs: str | None,
    token_file: Path | None,
    port: int | None,
    name: str | None,
    address: str | None,
    policy: str | None,
    foreground: bool,
    json_: bool,
) -> None:
    """Start restow on this machine, or let this machine join others.

    Starts Ray (its own, apart from any other on this machine), one agent and the controller. Run again, it says what
    runs and starts what is missing: after the controller was killed, it finds the jobs again.

    \b
      restow up
      restow up --join 10.0.0.1:6479 --token-file ~/token
      restow up --policy mine.py
      RESTOW_DEVICES=devices.json restow up --foreground
    """
    home = config.home()
    node = config.node(name=name or "", address=address or "")

    def say(line: str) -> None:
        click.echo(f"  {line}", err=json_)

    if policy is not None:
        find_policy(policy)  # what is wrong with it is said before anything is started
        policy = str(Path(policy).absolute()) if policy.endswith(".py") else policy
    if gcs:
        if policy is not None:
            raise SpecError("--policy goes with the first machine of a cluster, not with --join")
        if token_file is None:
            raise SpecError("--join needs --token-file; copy $RESTOW_HOME/token from the first machine (mode 0600)")
        joined = bring_up.join(home, node, gcs=gcs, token_file=token_file.absolute(), say=say)
        answer = {"node": joined.name, "address": joined.address, "gcs": joined.gcs, "cluster_id": joined.cluster_id}
        click.echo(f"{joined.name} is part of cluster {joined.cluster_id}", err=json_)
    elif token_file is not None:
        raise SpecError("--token-file goes with --join; without it a token is made in $RESTOW_HOME")
    else:
        about = bring_up.up(home, node, port=port, say=say, policy=policy)
        answer = {**about, "token_file": str(home.token)}
        click.echo(f"cluster {about['cluster_id']} is up: {', '.join(about['joined'])}", err=json_)
        click.echo("on a further machine, with a copy of the token:", err=json_)
        click.echo(f"  restow up --join {about['gcs']} --token-file {shlex.quote(str(home.token))}", err=json_)
    if json_:
        out.as_json(answer)
    if foreground:
        _stay(home)


@click.command()
@click.option("-y", "--yes", is_flag=True, help="End running jobs without asking.")
@click.option("--purge", is_flag=True, help="Remove logs, the journal, suspended jobs and the token, too.")
@json_option
def down(yes: bool, purge: bool, json_: bool) -> None:
    """End everything that `restow up` started from this home: jobs, agents, Ray, the controller.

    On the first machine this ends the whole cluster, on a joined one only that node. No process, socket or shared memory
    is left; logs, the journal and the state of suspended jobs stay, unless --purge.

    \b
      restow down
      restow down --yes --purge
    """
    home = config.home()
    unfinished, suspended = bring_up.unfinished_jobs(home)
    if suspended and not purge:
        click.echo(f"{', '.join(suspended)}: suspended, there again after restow up", err=True)
        for job, nodes in suspended.items():
            if nodes:
                names = " and ".join(nodes)
                click.echo(f"{job}: its state is not on the disk of {names}, and lost if that machine restarts meanwhile", err=True)
    unfinished += list(suspended) if purge else []
    if unfinished and not yes:
        what = f"{len(unfinished)} job{'s are' if len(unfinished) > 1 else ' is'} not finished ({', '.join(unfinished[:5])})"
        if json_ or not sys.stdin.isatty():
            raise Refused(f"{what}; restow down --yes ends them")
        click.confirm(f"{what}; end them?", abort=True)
    was_up = bring_up.down(home, say=lambda line: click.echo(f"  {line}", err=json_), purge=purge)
    if json_:
        out.as_json({"was_up": was_up})
    else:
        click.echo("down" if was_up else "nothing was up")


@click.command()
@json_option
def nodes(json_: bool) -> None:
    """List machines and devices, and which rank is on which.

    \b
      restow nodes
    """
    found = Client().nodes()
    if json_:
        out.as_json(found)
        return
    rows = [
        [
            node["name"], node["address"], _condition(node), str(device["index"]),
            device["kind"] + ("" if device["share"] == 1.0 else f" x{device['share']:g}"),
            out.size(device["memory_bytes"]) if device["memory_bytes"] else "-", " ".join(device["jobs"]) or "-",
        ]
        for node in found
        for device in node["devices"]
    ]  # fmt: skip
    out.table(["NODE", "ADDRESS", "", "DEVICE", "KIND", "MEMORY", "JOBS"], rows)


def _condition(node: dict[str, Any]) -> str:
    if not node["alive"]:
        return "lost"
    return "drained" if node["draining"] else "cordoned" if node["cordoned"] else "up"


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on for ever; Ctrl-C ends it.")
@click.option("--after", type=int, default=0, help="Only events numbered above this (default 0: all).")
@click.option("--job", help="Only events of this job; an id, or the beginning of one.")
@json_option
def events(follow: bool, after: int, job: str | None, json_: bool) -> None:
    """Print what happened, one line per event, from the journal; with --json one object per line.

    With --job also what the job had a part in: schedules that place it, devices that it shares.

    \b
      restow events -f
      restow events --job digits-1 --json
    """
    client = Client()
    job = client.show(job)["id"] if job is not None else None
    for event in client.events(after=after, follow=follow):
        if job is not None and not concerns(event, job):
            continue
        if json_:
            out.as_json_line(event)
        else:
            click.echo(event_line(event, job))


def _stay(home: config.Home) -> None:
    """Until Ctrl-C or SIGTERM; then take everything down."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
    click.echo("Ctrl-C takes everything down", err=True)
    try:
        while True:
            time.sleep(3600)
    finally:
        bring_up.down(home, say=lambda line: click.echo(f"  {line}", err=True))
