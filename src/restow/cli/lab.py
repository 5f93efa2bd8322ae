"""`restow lab`: a small cluster on this Linux machine, to try restow and to test one's own scripts on slow links."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any

import click

from restow.errors import NotFound, SpecError, Unreachable
from restow.lab.lab import KEEP, Keep, Lab, all_labs
from restow.lab.shape import format_rate, parse_delay, parse_rate

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_LAB = click.option("--lab", "name", metavar="NAME", help="Which lab; not needed while there is only one.")


@click.group()
def lab() -> None:
    """A small cluster on this machine: nodes with their own address and devices, links with a rate.

    Each node is a network namespace, each device a bounded share of a core. Works as root, and as an ordinary
    user where the kernel allows user namespaces. A lab stays until `restow lab down` or a reboot.

    \b
    restow lab up --nodes 2 --devices 2 --rate 200mbit
    restow lab exec m1 -- ip addr
    restow lab link m1 m2 --rate 10mbit
    restow lab link m2 --cut
    restow lab down
    """


@lab.command()
@click.option("--nodes", default=2, show_default=True, help="How many machines; they are named m1, m2, ...")
@click.option("--devices", default=2, show_default=True, help="Devices of each.")
@click.option(
    "--rate", default="200mbit", show_default=True, help="Of each NIC, both directions: 200mbit, 1gbit, none."
)
@click.option(
    "--delay", default="0", show_default=True, help="One way between two nodes: 10ms. Needs netem in the kernel."
)
@click.option("--share", type=float, help="Of a core, per device. Default: equal, together 90 % of the cores.")
@click.option("--name", "--lab", "name", metavar="NAME", help="Default: a fresh one.")
@_JSON
def up(nodes: int, devices: int, rate: str, delay: str, share: float | None, name: str | None, as_json: bool) -> None:
    """Make a lab and leave it up.

    \b
    restow lab up --nodes 3 --devices 1 --rate 1gbit
    restow lab up --lab trial --rate 200mbit --delay 5ms
    """
    made = Lab(nodes, devices, parse_rate(rate), parse_delay(delay), share, name)
    try:
        described = _describe(made)
        made.detach()
    except BaseException:  # Ctrl-C too
        made.close()
        raise
    described["owner"] = None
    click.echo(json.dumps(described) if as_json else "\n".join(_lines(described)))
    for note in made.notes:
        click.echo(f"note: {note}", err=True)


@lab.command()
@click.argument("named", required=False, metavar="[NAME]")
@_LAB
def down(named: str | None, name: str | None) -> None:
    """End every process in the lab and remove it. NAME is not needed while only one is up.

    \b
    restow lab down
    restow lab down --lab trial
    """
    if named and name and named != name:
        raise SpecError(f"down got two labs, {named} and --lab {name}; give one")
    all_labs()
    found = Lab.open(named or name)
    found.close()
    click.echo(f"{found.name} is down")


@lab.command()
@_LAB
@_JSON
def ls(name: str | None, as_json: bool) -> None:
    """The labs that are up, or only one. Removes those whose maker was killed.

    \b
    restow lab ls
    restow lab ls --json
    """
    described = [_describe(Lab.open(name))] if name else []
    for state in all_labs() if not name else ():
        with suppress(NotFound, Unreachable):  # it is being made, or just went down
            described.append(_describe(Lab.open(state.name)))
    if as_json:
        click.echo(json.dumps(described))
    elif not described:
        click.echo("no lab is up; start one with restow lab up")
    else:
        click.echo("\n".join(line for one in described for line in _lines(one)))


@lab.command()
@click.argument("nodes", nargs=-1, required=True, metavar="NODE [NODE]")
@click.option("--rate", help="200mbit, 1gbit, 100kbit or none.")
@click.option("--delay", help="10ms, 500us. Needs netem in the kernel.")
@click.option("--cut/--heal", "cut", default=None, help="Pull the cable, or plug it in again.")
@_LAB
def link(nodes: tuple[str, ...], rate: str | None, delay: str | None, cut: bool | None, name: str | None) -> None:
    """Change the NIC of one node, or the link between two, while everything runs.

    \b
    restow lab link m1 m2 --rate 10mbit --delay 5ms
    restow lab link m2 --cut
    restow lab link m2 --heal
    """
    if len(nodes) > 2:
        raise SpecError(f"link got {len(nodes)} nodes; give one (its NIC) or two (the link between them)")
    if rate is None and delay is None and cut is None:
        raise SpecError("link got nothing to change; give --rate, --delay, --cut or --heal")
    a, b = nodes[0], nodes[1] if len(nodes) == 2 else None
    wanted_rate: float | Keep | None = KEEP if rate is None else parse_rate(rate)
    wanted_delay: float | Keep = KEEP if delay is None else parse_delay(delay)
    found = Lab.open(name)
    if wanted_rate is not KEEP or wanted_delay is not KEEP:
        found.set_link(a, b, rate_bits_per_s=wanted_rate, delay_s=wanted_delay)
    if cut is not None:
        (found.cut if cut else found.heal)(a, b)


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_LAB
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str | None, node: str, command: tuple[str, ...]) -> None:
    """Run a command inside a node: restow lab exec m1 -- python train.py. Its exit code is ours; Ctrl-C goes to it."""
    if command[0] == "--":
        command = command[1:]
    if not command:
        raise SpecError("exec got no command; write restow lab exec NODE -- COMMAND")
    argv = Lab.open(name).node(node).enter_command(command)
    sys.stdout.flush()
    os.execv(argv[0], argv)  # becomes it: signals, terminal and exit code need no passing on


def _describe(found: Lab) -> dict[str, Any]:
    links = found.links()
    nodes = [
        {
            "name": node.name,
            "address": node.address,
            "interface": node.interface,
            "devices": found.devices,
            "devices_file": str(node.devices_file),
            **links["nodes"][node.name],
        }
        for node in found.nodes.values()
    ]
    pairs = [{"nodes": [a, b], **shape} for a, b, shape in links["pairs"]]
    owner = found.owner.pid if found.owner else None
    return {"name": found.name, "how": found.how, "owner": owner, "nodes": nodes, "pairs": pairs, "notes": found.notes}


def _lines(described: dict[str, Any]) -> list[str]:
    owner = f"ends with process {described['owner']}" if described["owner"] else "stays until restow lab down"
    lines = [f"lab {described['name']} (as {described['how']}, {owner})"]
    for node in described["nodes"]:
        devices = f"{node['devices']} device{'' if node['devices'] == 1 else 's'}"
        lines.append(f"  {node['name']}  {node['address']}  {devices}  {_shape(node)}")
    lines += [f"  {pair['nodes'][0]}–{pair['nodes'][1]}  {_shape(pair)}" for pair in described["pairs"]]
    return lines


def _shape(shape: dict[str, Any]) -> str:
    rate = shape["rate_bits_per_s"]
    words = ["unshaped" if rate is None else format_rate(rate)]
    if shape["delay_s"]:
        words.append(f"+{shape['delay_s'] * 1e3:g} ms")
    if shape["is_cut"]:
        words.append("cut")
    return " ".join(words)
