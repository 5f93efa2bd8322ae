"""The commands about one machine: drain, undrain, cordon, uncordon."""

from __future__ import annotations

from typing import Any

import click

from restow.cli import show as out
from restow.cli.moves import sentence
from restow.cli.options import json_option
from restow.client import Client
from restow.errors import SpecError


@click.command()
@click.argument("node")
@click.option("--deadline", type=float, default=0.0, metavar="SECONDS", help="Wait so long for room elsewhere (default 0).")
@click.option("--plan", is_flag=True, help="Only say what it would do.")
@json_option
def drain(node: str, deadline: float, plan: bool, json_: bool) -> None:
    """Empty a machine: its jobs move to others while they train; those that find no room there are suspended. The state of
    suspended jobs moves, too. When --plan says that it is empty, it can be switched off.

    Says first what happens to each job. Nothing new is started there until restow undrain.

    \b
      restow drain m2 --plan
      restow drain m2 --deadline 600
    """
    if not deadline >= 0:
        raise SpecError(f"--deadline is {deadline:g}; write seconds, 0 or more")
    client = Client()
    answer = client.drain(node, deadline_s=deadline, apply=False)
    if not json_:
        _say(answer, plan)
    if not plan:
        answer = client.drain(node, deadline_s=deadline)
    if json_:
        out.as_json(answer)


@click.command()
@click.argument("node")
@json_option
def undrain(node: str, json_: bool) -> None:
    """Use a drained machine again.

    \b
      restow undrain m2
    """
    _done(Client().drain(node, on=False), f"{node} is in use again", json_)


@click.command()
@click.argument("node")
@json_option
def cordon(node: str, json_: bool) -> None:
    """Start nothing new on a machine; what runs there goes on.

    \b
      restow cordon m2
    """
    _done(Client().cordon(node), f"nothing new is started on {node}", json_)


@click.command()
@click.argument("node")
@json_option
def uncordon(node: str, json_: bool) -> None:
    """Start jobs on a cordoned machine again.

    \b
      restow uncordon m2
    """
    _done(Client().cordon(node, on=False), f"{node} is in use again", json_)


def _say(answer: dict[str, Any], is_plan: bool) -> None:
    will = "would" if is_plan else "will"
    for move in answer["moves"]:
        click.echo(f"{will} move {sentence(move)}")
    for job, reason in sorted(answer["others"].items()):
        click.echo(f"{job}: {reason}")
    for kept in answer["kept"]:
        click.echo(_kept(kept, answer["node"], will))
    if not (answer["moves"] or answer["others"] or answer["kept"]):
        click.echo(f"{answer['node']} is empty")


def _kept(kept: dict[str, Any], node: str, will: str) -> str:
    """What becomes of the state of a suspended job."""
    if kept["to"]:
        why = f" (the last try failed: {kept['why']})" if kept["why"] else ""
        return f"{will} move the state of {kept['job']}, suspended at step {kept['step']}, to {kept['to']}{why}"
    if kept["checkpoint"]:
        return f"{kept['job']}: its checkpoint lies on {node}; it comes back only while that machine is there"
    return f"{kept['job']}: its suspended state lies on {node}, and no other machine can take it; it comes back only from there"


def _done(answer: dict[str, Any], line: str, json_: bool) -> None:
    if json_:
        out.as_json(answer)
    else:
        click.echo(line)
