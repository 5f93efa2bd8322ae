"""How the CLI writes things: tables, times, sizes, events as sentences. Knows no commands."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import click


def as_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def as_json_line(value: Any) -> None:
    click.echo(json.dumps(value, separators=(",", ":")))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell, two blanks between; the last one is as long as it is."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for number, row in enumerate([head, *rows]):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
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


def event_line(event: dict[str, Any]) -> str:
    """One event as one line: time, kind, job, and what matters of the rest."""
    skipped = {
        "type",
        "number",
        "time_s",
        "job",
        "generation",
        "spec",
        "placements",
        "reasons",
        "phases",
        "secret",
        "move",
        "devices",
    }
    words = [
        f"{name}={_short(value)}"
        for name, value in event.items()
        if name not in skipped and value not in ("", None, [])
    ]
    match event["type"]:
        case "ScheduleAdopted":
            words = [f"{job}→{_short(placement)}" for job, placement in event["placements"]]
            words += [f"({job}: {reason})" for job, reason in event["reasons"]]
        case "JobSubmitted":
            words = [f"workers={event['spec']['workers']}", " ".join(event["spec"]["command"])[:100]]
        case "MovePredicted":
            move = event["move"]
            words = [
                move["job"], f"{_short(move['now'])} → {_short(move['then'])}", move["reason"],
                f"step {seconds(move['step_now_s'])} → {seconds(move['step_then_s'])}", f"pause {seconds(move['downtime_s'])}",
            ]  # fmt: skip
        case "MoveMeasured":
            words = [move_line(event, _short)]
        case "NodeJoined":
            words = [event["node"], event["address"], f"devices={len(event['devices'])}"]
    job = event.get("job", "")
    generation = f" g{event['generation']}" if event.get("generation") else ""
    return f"{clock(event['time_s'])}  {event['type']:<16} {job}{generation} {' '.join(words)}".rstrip()


def move_line(move: dict[str, Any], write: Any = None) -> str:
    """before / predicted / after of one move."""
    write = write or places
    return (
        f"{write(move['now'])} → {write(move['then'])}: step {seconds(move['step_before_s'])}"
        f" → {seconds(move['step_after_s'])} (predicted {seconds(move['step_predicted_s'])}),"
        f" paused {seconds(move['downtime_s'])}, {size(move['wire_bytes'])} over the wire, {move['lost_steps']} steps lost"
    )


def _short(value: Any) -> str:
    """A slot [node, device, share] or a list of them as it is written elsewhere; anything else as it is."""
    if isinstance(value, list) and value and all(isinstance(item, list) and len(item) == 3 for item in value):
        return " ".join(f"{node}:{device}" for node, device, _ in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
