"""The commands about jobs that share devices: share and explain."""

from __future__ import annotations

from typing import Any

import click

from restow.cli import show as out
from restow.cli.options import json_option
from restow.client import Client
from restow.errors import SpecError
from restow.job import LINK_CHOICES, SHARE_MODES, ShareSpec
from restow.spec import parse_bytes


@click.command()
@click.argument("job")
@click.option("--mode", metavar="MODE", help=f"One of {', '.join(SHARE_MODES)}.")
@click.option("--allow/--no-allow", default=None, help="May others use its devices too?")
@click.option("--protect/--no-protect", default=None, help="It goes first; others run in its idle time only.")
@click.option("--max-slowdown", type=float, metavar="PART", help="Longer steps than this part are too much (0.03: 3 %).")
@click.option("--quantum", type=float, metavar="SECONDS", help="Of a turn in time slices; 0: restow chooses.")
@click.option("--link", metavar="WHEN", help=f"Are collectives sent in turns, too? One of {', '.join(LINK_CHOICES)}.")
@click.option("--memory", metavar="SIZE", help="The most that a worker may take of its device; counts from its next start.")
@json_option
def share(
    job: str, mode: str | None, allow: bool | None, protect: bool | None, max_slowdown: float | None, quantum: float | None,
    link: str | None, memory: str | None, json_: bool,
) -> None:  # fmt: skip
    """Say how a running job shares its devices from now on, instead of what its spec says.

    \b
      restow share train-1 --protect            others run in its idle time only
      restow share sweep-3 --mode best-effort   it runs in the idle time of others only
      restow share train-1 --no-allow           its devices are its own
    """
    wanted: dict[str, Any] = {
        "mode": mode, "allow": allow, "protect": protect, "max_slowdown": max_slowdown,
        "quantum_s": quantum, "link": link,
        "memory_bytes": parse_bytes("memory", memory) if memory else None,
    }  # fmt: skip
    wanted = {name: value for name, value in wanted.items() if value is not None}
    if not wanted:
        raise SpecError("nothing to change; give --mode, --allow, --protect, --max-slowdown, --quantum, --link or --memory")
    ShareSpec(**{**wanted, "protect": False})  # a wrong value is one line from here; what it may not go with, the controller knows
    view = Client().share(job, **wanted)
    if json_:
        out.as_json(view)
    else:
        click.echo(f"{view['id']}: {out.sharing(view['sharing'])}")


@click.command()
@click.argument("job")
@json_option
def explain(job: str, json_: bool) -> None:
    """Say why a job is where it is and shares its devices as it does, what was predicted, and what was then measured.

    \b
      restow explain digits-1
      restow explain digits-1 --json
    """
    found = Client().explain(job)
    if json_:
        out.as_json(found)
        return
    profile = found["profile"]
    lines = [
        ("state", found["state"]),
        ("where", out.places(found["placement"])),
        ("why", found["reason"] or "-"),
        ("shares", out.sharing(found["sharing"]) if found["placement"] else "nothing, it has no devices now"),
        ("may share", _terms(found["share"])),
        ("a step", _step(profile, (found["sharing"] or {}).get("alone_step_s") or profile["alone_step_s"])),
        ("memory", _memory(profile)),
    ]
    for pair in found["pairs"][-5:]:
        speeds = ", ".join(f"{name} {speed:.2f}" for name, speed in zip(pair["jobs"], pair["speeds"], strict=True))
        together = f"together {pair['total']:.2f}, at best {pair['predicted']:.2f}"
        lines.append(("measured", f"{pair['mode']}: {speeds}; {together}; {pair['reason']}"))
    lines += [("moved", out.move_line(move)) for move in found["moves"][-5:]]
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        click.echo(f"{click.style(name.ljust(width), bold=True)}  {text}")


def _step(profile: dict[str, Any], alone_s: float) -> str:
    """One step of the job and what it waits for in it; parts that take no time are said to."""
    if not profile["step_s"]:
        return "not measured yet"
    waits = {"for communication": "exposed_s", "for data": "data_s", "at the gate": "waited_s"}
    parts = [f"{out.seconds(profile[key]) if profile[key] else 'nothing'} {where}" for where, key in waits.items()]
    alone = f"; alone {out.seconds(alone_s)}" if alone_s else ""
    return f"{out.seconds(profile['step_s'])}, of it waiting {', '.join(parts)}{alone}"


def _memory(profile: dict[str, Any]) -> str:
    if not profile["memory_bytes"]:
        return "not measured yet"
    return f"{out.size(profile['memory_bytes'])} at most, {out.size(profile['valley_bytes'])} at save points"


def _terms(share: dict[str, Any]) -> str:
    words = ["yes", share["mode"]] if share["allow"] and share["mode"] != "exclusive" else ["no"]
    words += ["protected"] if share["protect"] else []
    words += [f"at most {share['max_slowdown']:.0%} slower"] if share["max_slowdown"] else []
    words += [f"at most {out.size(share['memory_bytes'])}"] if share["memory_bytes"] else []
    return ", ".join(words)
