"""What the demo found: the closing table and the JSON. The numbers come from the controller's record of the move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from restow.demo.alone import Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    move: Mapping[str, Any]  # of `restow ps --json`: step_before_s, step_predicted_s, step_after_s, downtime_s …
    comparison: Comparison
    notes: tuple[str, ...] = ()  # what was missing here

    def numbers(self) -> dict[str, Any]:
        """The JSON of `restow demo --json`."""
        keys = ("step_before_s", "step_predicted_s", "step_after_s", "downtime_s", "wire_bytes", "lost_steps")
        return {
            **{key: self.move[key] for key in keys},
            "bit_identical": self.comparison.is_identical,
            "steps_compared": self.comparison.steps,
            "why_not_identical": self.comparison.why_not,
            "reason": self.move.get("reason", ""),
            "from": self.move["now"],
            "to": self.move["then"],
            "switch_step": self.move.get("step"),
            "notes": list(self.notes),
        }

    def table(self) -> Table:
        move, before_s, after_s = self.move, self.move["step_before_s"], self.move["step_after_s"]
        table = Table(title="What the move did", title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_column(style="dim")
        table.add_row("step before", milliseconds(before_s), " ".join(move["now"]))
        off = f"{(after_s / move['step_predicted_s'] - 1) * 100:+.0f} % off" if move["step_predicted_s"] else ""
        table.add_row("step predicted", milliseconds(move["step_predicted_s"]), "by the policy, before it moved")
        faster = f"{before_s / after_s:.1f} times as fast" if after_s else ""
        table.add_row(
            "step after", milliseconds(after_s), ", ".join(filter(None, [" ".join(move["then"]), faster, off]))
        )
        table.add_row("downtime", milliseconds(move["downtime_s"]), "last step there to first step here")
        table.add_row("over the wire", size(move["wire_bytes"]), "received by the moved rank while it paused")
        table.add_row("lost steps", str(move["lost_steps"]), "steps done twice")
        equal = self.comparison
        table.add_row(
            "bit-identical",
            "[bold green]yes[/]" if equal.is_identical else "[bold red]no[/]",
            f"{equal.steps} losses per rank, parameters and optimizer, against the same job left alone"
            if equal.is_identical
            else equal.why_not,
        )
        return table


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.0995 else f"{seconds * 1000:.1f} ms"


def size(count_bytes: int) -> str:
    """`12.6 KB`, `1.8 MB`: decimal, as networks count."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count_bytes >= scale:
            return f"{count_bytes / scale:.1f} {unit}"
    return f"{count_bytes} B"
