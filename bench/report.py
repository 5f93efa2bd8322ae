"""The rows of a benchmark as JSON, as a table and as a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

COLUMNS = (
    ("system", "system"), ("case", "case"), ("downtime", "downtime_s"), ("floor", "floor_s"), ("lost step-s", "lost_step_s"),
    ("lost steps", "lost_steps"), ("wire", "wire_bytes"), ("at rest", "idle_wire_bytes"), ("bound", "lower_bound_bytes"),
    ("bit-identical", "bit_identical"), ("lines", "lines_changed"),
)  # fmt: skip


def write_json(path: Path, rows: Sequence[Row]) -> None:
    """All rows so far; whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps({"rows": list(rows)}, indent=1) + "\n")
    os.replace(fresh, path)


def table(rows: Sequence[Row]) -> str:
    """The rows for people; one that has no numbers says why."""
    cells = [[head for head, _ in COLUMNS]] + [[_cell(name, row.get(name)) for _, name in COLUMNS] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    for number, row in enumerate(rows, start=1):
        if row.get("error"):
            lines[number] = f"{row['system']:<{widths[0]}}  {row['case']:<{widths[1]}}  {row['error']}"
    return "\n".join(lines)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_s"):
        return f"{value:.2f} s" if abs(value) >= 1 else f"{value * 1e3:.1f} ms"
    if name.endswith("_bytes"):
        return f"{value / 1e6:.1f} MB" if abs(value) >= 1e6 else f"{value / 1e3:.1f} KB"
    return f"{value:g}" if isinstance(value, float) else str(value)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Downtime on a log axis: every move a dot, the median a bar, the floor of each case a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [row for row in rows if row.get("downtime_s") is not None]
    cases = list(dict.fromkeys(row["case"] for row in measured))
    if not cases:
        return
    figure, axes = pyplot.subplots(len(cases), 1, sharex=True, squeeze=False, figsize=(8, 1.1 + 1.5 * len(cases)))
    for axis, case in zip(axes[:, 0], cases, strict=True):
        of_case = [row for row in measured if row["case"] == case][::-1]
        for height, row in enumerate(of_case):
            colour = "#0b7a75" if row["system"] == "restow" else "#8a8f98"
            dots = [max(move["downtime_s"], 1e-3) for move in row["moves"]]
            axis.barh(height, max(row["downtime_s"], 1e-3), left=0, color=colour, alpha=0.35, height=0.6)
            axis.plot(dots, [height] * len(dots), "o", color=colour, markersize=4)
        floor = min(row["floor_s"] for row in of_case)
        axis.axvline(floor, color="#c2410c", linewidth=1, linestyle="--")
        axis.set_title(f"{case}   (floor {_cell('floor_s', floor)})", fontsize=9, loc="left")
        axis.set_yticks(range(len(of_case)), [row["system"] for row in of_case], fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(left=1e-3)
        axis.grid(axis="x", which="major", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("downtime of one move in seconds (log); dashed: the floor; values under 1 ms are drawn at 1 ms")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
