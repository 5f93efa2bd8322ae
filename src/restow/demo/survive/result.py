"""What the scene found: the closing table and the JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table

from restow.demo.alone import Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one system did when the machine was gone. None: it did not, or does not say."""

    system: str
    detect_s: float | None  # from the pull until it was noticed
    resume_s: float | None  # from the pull until the next step had been made
    lost_steps: int | None  # made again
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SurviveResult:
    rows: tuple[Row, ...]  # restow's first
    comparison: Comparison  # of the job that lost its machine with the same job left alone
    devices: tuple[int, int, int]  # of the job: before, while the machine was out, afterwards
    notes: tuple[str, ...] = ()

    def numbers(self) -> dict[str, Any]:
        """The JSON of `restow demo --scene survive --json`."""
        return {
            "rows": [
                {"system": row.system, "detect_s": row.detect_s, "resume_s": row.resume_s, "lost_steps": row.lost_steps,
                 "note": row.note}
                for row in self.rows
            ],
            "bit_identical": self.comparison.is_identical,
            "steps_compared": self.comparison.steps,
            "why_not_identical": self.comparison.why_not,
            "devices": list(self.devices),
            "notes": list(self.notes),
        }  # fmt: skip

    def table(self) -> Table:
        table = Table(title="What pulling out a machine did", title_justify="left")
        for head in ("", "noticed after", "training again after", "steps made again", ""):
            table.add_column(head, justify="left" if not head else "right", overflow="fold")
        for row in self.rows:
            lost = "-" if row.lost_steps is None else str(row.lost_steps)
            table.add_row(f"[bold]{row.system}[/]", _seconds(row.detect_s), _seconds(row.resume_s), lost, row.note)
        return table

    def closing_lines(self) -> list[str]:
        equal, (before, out, after) = self.comparison, self.devices
        same = f"{equal.steps} losses per rank, parameters and optimizer equal those of the same job left alone, bit by bit"
        went = f"devices of the job: {before} before, {out} while the machine was out, {after} afterwards"
        return [same if equal.is_identical else f"not the same numbers: {equal.why_not}", went]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
