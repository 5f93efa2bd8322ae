"""The command sweep: one job that trains every combination of some settings."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from restow import spec as specs
from restow.cli import show as out
from restow.cli.jobs import exit_code, pairs, print_logs, say_end
from restow.cli.options import json_option
from restow.client import Client
from restow.errors import SpecError

VARIABLE = "RESTOW_SWEEP"  # read by restow.sweep_members in the script


@click.command()
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[SPEC.yaml | -- COMMAND...]")
@click.option("--set", "sets", multiple=True, metavar="KEY=V,V...", help="Values of one setting; repeated: every combination.")
@click.option("--name", help="The job's id is made from it; default: the script's name.")
@click.option("--env", multiple=True, metavar="K=V", help="Set a variable for the worker; may be repeated.")
@click.option("--cwd", type=click.Path(file_okay=False), help="Where the command runs; default: here.")
@click.option("--memory", metavar="SIZE", help="Peak device memory of the worker with all members, for example 8GB.")
@click.option("--no-migrate", is_flag=True, help="restow must not move it by itself.")
@click.option("--max-pause-s", type=float, help="The longest pause that one move may cost (default 60).")
@click.option("-f", "--follow", is_flag=True, help="Print what it prints until it has ended.")
@click.option("-w", "--wait", "wait_", is_flag=True, help="Return when it has ended.")
@json_option
def sweep(
    words: tuple[str, ...], sets: tuple[str, ...], name: str | None, env: tuple[str, ...], cwd: str | None, memory: str | None,
    no_migrate: bool, max_pause_s: float | None, follow: bool, wait_: bool, json_: bool,
) -> int:  # fmt: skip
    """Hand in one job that trains many small models at once, one for each combination of settings.

    \b
      restow sweep --set lr=1e-3,1e-2,1e-1 --set seed=1,2 -- python train.py       6 members
      restow sweep --set lr=0.1,0.3 --set betas=[0.9,0.999],[0.8,0.99] -f train.yaml

    The script asks restow.sweep_members(default=[...]) for the members and trains them with restow.sweep; under plain
    python it gets its own default. Numbers, true, false and lists in brackets are understood; anything else is text.
    With -f or -w the exit code is 0 if the job ended with success, else 1. Ctrl-C stops the following, never the job.
    """
    members = grid(sets)
    written: dict[str, Any] = {
        "name": name, "env": pairs(env), "cwd": cwd, "memory": memory, "max_pause_s": max_pause_s,
        "migrate": False if no_migrate else None,
    }  # fmt: skip
    written = {key: value for key, value in written.items() if value is not None}
    if not words:
        raise SpecError("nothing to run; give a command: restow sweep --set lr=0.1,0.3 -- python train.py")
    if len(words) == 1 and words[0].endswith((".yaml", ".yml")):
        asked = specs.load(Path(words[0]), cwd=Path.cwd(), instead=written)
    else:
        asked = specs.build({"command": list(words), **written}, cwd=Path.cwd())
    if asked.workers != 1:
        raise SpecError(f"workers is {asked.workers}; all members of a sweep train in one worker, leave it out")
    asked = dataclasses.replace(asked, env=(*asked.env, (VARIABLE, json.dumps(members))))
    client = Client()
    job = client.submit(dataclasses.asdict(asked))
    try:
        if not json_:
            click.echo(f"{job['id']}: {job['state']}, {len(members)} member{'s' * (len(members) != 1)}")
        if follow:
            print_logs(client.logs(job["id"], follow=True), prefixed=False, json_=json_)
        if follow or wait_:
            job = client.wait(job["id"])
    except KeyboardInterrupt:
        click.echo(f"\n{job['id']} goes on; restow cancel {job['id']} ends it", err=True)
        raise
    if (follow or wait_) and not json_:
        say_end(job)
    if json_:
        out.as_json(job)
    return exit_code(job)


def grid(sets: Sequence[str]) -> list[dict[str, Any]]:
    """Every combination of `KEY=V,V...`, the last key changing fastest. Raises SpecError."""
    columns: dict[str, list[Any]] = {}
    for text in sets:
        key, equals, values = text.partition("=")
        if not equals or not key.isidentifier() or not values:
            raise SpecError(f"--set is {text!r}; write KEY=value,value, for example --set lr=1e-3,1e-2")
        if key in columns:
            raise SpecError(f"--set {key} is given twice; write all its values in one: --set {key}=value,value")
        columns[key] = _values(values)
    if not columns:
        raise SpecError("nothing to sweep; give at least one --set, for example --set lr=1e-3,1e-2")
    return [dict(zip(columns, combination, strict=True)) for combination in itertools.product(*columns.values())]


def _values(text: str) -> list[Any]:
    try:
        return list(json.loads(f"[{text}]"))
    except ValueError:  # names, or numbers that JSON does not know, such as .1
        return [_value(word.strip()) for word in text.split(",")]


def _value(word: str) -> Any:
    for read in (int, float):
        try:
            return read(word)
        except ValueError:
            pass  # not such a number
    return {"true": True, "false": False}.get(word.lower(), word)
