"""How the CLI writes things: tables, times, sizes, moves as sentences. Knows no commands."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import click


def as_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def as_json_line(value: Any) -> None:
    click.echo(json.dumps(value, separators=(",", ":")))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell, two blanks between. Lines end at the edge of a terminal; elsewhere they are whole."""
    edge = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for number, row in enumerate([head, *rows]):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if edge and len(line) > edge:
            line = line[: edge - 1] + "…"
        click.echo(click.style(line, bold=True) if number == 0 else line)


def seconds(value: float | None) -> str:
    if not value:
        return "-"
    if value < 0.1:
        return f"{value * 1000:.1f} ms"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.2f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def steps(job: dict[str, Any]) -> str:
    return f"{job['step']}/{job['steps_total']}" if job["steps_total"] else str(job["step"])


def places(placement: Sequence[str]) -> str:
    return " ".join(placement) or "-"


def clock(time_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time_s))


def move_line(move: dict[str, Any], write: Any = None) -> str:
    """before / predicted / after of one move."""
    write = write or places
    return (
        f"{write(move['now'])} → {write(move['then'])}: step {seconds(move['step_before_s'])}"
        f" → {seconds(move['step_after_s'])} (predicted {seconds(move['step_predicted_s'])}),"
        f" paused {seconds(move['downtime_s'])}, {size(move['wire_bytes'])} over the wire, {move['lost_steps']} steps lost"
    )


def sharing(terms: dict[str, Any] | None) -> str:
    """How a job shares now, in words."""
    if not terms:
        return "nothing, its devices are its own"
    level = {0: ", goes first", 1: "", 2: f", best effort, {terms['part']:.0%} of what it asks for"}[terms["level"]]
    turns = f", turns of {terms['quantum_s']:g} s" if terms["mode"] == "time-slice" else ""
    return f"its devices with {' and '.join(terms['partners'])}: {terms['mode']}{level}{turns}"
