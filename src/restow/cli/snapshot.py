"""The command snapshot: the live cluster as JSON, for `restow simulate`."""

from __future__ import annotations

import click

from restow.cli import show as out
from restow.cli.options import json_option
from restow.client import Client


@click.command()
@json_option
def snapshot(json_: bool) -> None:
    """Print machines, devices, links, and every job with what was measured of it, as JSON.

    Nothing of the environment of a job is in it; its command is, as it was submitted. What would another policy do from here?

    \b
      restow snapshot > now.json
      restow simulate now.json --policy restow,worth,srtf --report now.html
    """
    out.as_json(Client().snapshot())  # always JSON: --json is taken, since every command has it
