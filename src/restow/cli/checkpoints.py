"""The commands about checkpoints: now, ls, verify, restore."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from restow import checkpoint as files
from restow.cli import show as out
from restow.cli.options import json_option
from restow.client import Client
from restow.errors import NotFound, Refused

WAIT_S_MAX = 600.0
POLL_S = 0.2


@click.group()
def checkpoint() -> None:
    """Make checkpoints of jobs that train, list and verify them, and go on from one.

    A checkpoint is a folder that torch.distributed.checkpoint loads too, without restow and with another number of ranks. Jobs
    make them by themselves where their spec says so (checkpoint: every: 10min), and start again from the last one when nothing
    else is left of them.
    """


@checkpoint.command(short_help="Let a job make one now.")
@click.argument("job")
@click.option("--no-wait", is_flag=True, help="Return when the wish is accepted.")
@json_option
def now(job: str, no_wait: bool, json_: bool) -> int:
    """Let a job make a checkpoint now, while it trains; kill -USR1 to one of its workers does the same.

    \b
      restow checkpoint now gpt-1
    """
    client = Client()
    after = max((event["number"] for event in client.events()), default=0)
    asked = client.checkpoint(job)
    found: dict[str, Any] | None = None
    deadline_s = time.monotonic() + WAIT_S_MAX
    while not no_wait and found is None:
        if time.monotonic() > deadline_s:
            raise Refused(f"job {asked['id']} made no checkpoint within {WAIT_S_MAX:.0f} s; restow events tells what it does")
        events = [event for event in client.events(after=after) if event.get("job") == asked["id"]]
        found = next((e for e in events if e["type"] in ("CheckpointWritten", "CheckpointFailed")), None)
        if found is None and client.show(asked["id"])["ended_s"] is not None:
            raise Refused(f"job {asked['id']} ended before it made a checkpoint")
        time.sleep(POLL_S if found is None else 0.0)
    if json_:
        out.as_json(found or asked)
    elif found is None:
        click.echo(f"{asked['id']}: will make one in {asked['folder']}")
    elif found["type"] == "CheckpointFailed":
        raise Refused(f"job {asked['id']} made no checkpoint: {found['reason']}")
    else:
        click.echo(
            f"{found['path']}: step {found['step']}, {out.size(found['bytes'])}, written in {out.seconds(found['write_s'])};"
            f" training stood still for {out.seconds(found['blocked_s'])}"
        )
    return 0


@checkpoint.command(short_help="List those of a job, or in a folder.")
@click.argument("where", metavar="JOB|FOLDER")
@json_option
def ls(where: str, json_: bool) -> None:
    """List the checkpoints of a job, or those in a folder.

    \b
      restow checkpoint ls gpt-1
      restow checkpoint ls checkpoints/gpt-1
    """
    rows: list[list[str]] = []
    said: list[dict[str, Any]] = []
    for folder in _folders(where):
        try:
            manifest = files.read(folder)
        except Refused as error:
            rows.append([folder.rpartition("/")[2], "-", "-", "-", str(error)])
            said.append({"path": folder, "error": str(error)})
            continue
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.time_s))
        rows.append([folder.rpartition("/")[2], manifest.job, out.size(manifest.bytes), str(manifest.workers), when])
        said.append({
            "path": folder, "time_s": manifest.time_s, "step": manifest.step, "job": manifest.job, "bytes": manifest.bytes,
            "workers": manifest.workers,
        })  # fmt: skip
    if json_:
        out.as_json(said)
    elif not rows:
        click.echo(f"no checkpoints of {where}")
    else:
        out.table(["CHECKPOINT", "JOB", "SIZE", "RANKS", "MADE"], rows)


@checkpoint.command(short_help="Read them as a whole and compare checksums.")
@click.argument("where", metavar="JOB|FOLDER|CHECKPOINT")
@json_option
def verify(where: str, json_: bool) -> int:
    """Read checkpoints as a whole and compare sizes and checksums; the exit code is 1 if one is damaged or unfinished.

    \b
      restow checkpoint verify gpt-1
      restow checkpoint verify checkpoints/gpt-1/step-00001200
    """
    said: list[dict[str, Any]] = []
    for folder in _folders(where):
        try:
            manifest = files.verify(folder)
            said.append({"path": folder, "ok": True, "step": manifest.step, "bytes": manifest.bytes})
        except Refused as error:
            said.append({"path": folder, "ok": False, "error": str(error)})
    if json_:
        out.as_json(said)
    else:
        for one in said:
            click.echo(f"{one['path']}: whole, {out.size(one['bytes'])}" if one["ok"] else one["error"])
        if not said:
            raise NotFound(f"no checkpoints of {where}")
    return 0 if all(one["ok"] for one in said) else 1


@checkpoint.command(short_help="Hand in a job again, which goes on from one.")
@click.argument("job")
@click.option("--step", type=int, default=-1, help="Of this step; default: the newest.")
@json_option
def restore(job: str, step: int, json_: bool) -> None:
    """Hand in a job again, as another one that goes on from a checkpoint of the first.

    Its script has to build the same things; where it runs and on how many devices does not matter.

    \b
      restow checkpoint restore gpt-1
      restow checkpoint restore gpt-1 --step 1200
    """
    view = Client().restore(job, step=step)
    if json_:
        out.as_json(view)
    else:
        click.echo(f"{view['id']}: {view['state']}, goes on from step {view['kept']['step']} of {job}")


def _folders(where: str) -> list[str]:
    """Of checkpoints: those of a job, those in a folder, or the one that is meant itself."""
    folder = where
    if "://" not in where and not Path(where).is_dir():
        if "/" in where:
            raise NotFound(f"there is no folder {where!r}")
        folder = Client().checkpoints(where)["folder"]
    folder = folder.rstrip("/")
    if files.step_of(folder.rpartition("/")[2]) is not None:
        return [folder]
    return [f"{folder}/{files.name_of(step)}" for step in files.steps_in(folder)]
