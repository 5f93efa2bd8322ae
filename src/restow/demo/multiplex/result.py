"""What the scene found: the closing table and the JSON. All speeds are relative to the job alone in the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from restow.bound import Demand, best_total
from restow.demo.alone import Comparison

DRIFT_MAX = 0.1  # between two looks at a job alone; more is not the jobs' doing


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One phase with both gangs on the same devices."""

    phase: str
    what: str
    speeds: tuple[float, ...]  # 1.0: as fast as alone
    bound: float  # the largest possible sum

    @property
    def total(self) -> float:
        return sum(self.speeds)

    @property
    def ratio_to_bound(self) -> float:
        return self.total / self.bound

    def numbers(self) -> dict[str, Any]:
        return {
            "phase": self.phase,
            "speeds": list(self.speeds),
            "sum": self.total,
            "bound": self.bound,
            "ratio_to_bound": self.ratio_to_bound,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """A protected job beside a background job."""

    alone_s: float  # per step, of the protected one
    shared_s: float
    background_alone_s: float
    background_shared_s: float

    @property
    def slowdown_mean(self) -> float:
        return self.shared_s / self.alone_s - 1

    @property
    def background_share(self) -> float:
        return self.background_alone_s / self.background_shared_s


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiplexResult:
    names: tuple[str, ...]
    demands: tuple[Demand, ...]  # of each gang alone
    rows: tuple[Row, ...]
    protection: Protection
    comparisons: Mapping[str, Comparison]  # by job
    notes: tuple[str, ...] = ()  # what was missing here

    @property
    def is_identical(self) -> bool:
        return all(comparison.is_identical for comparison in self.comparisons.values())

    @property
    def fairness(self) -> float:
        """Through the gate: how much faster the faster gang is."""
        speeds = self.rows[-1].speeds
        return max(speeds) / min(speeds) - 1 if min(speeds) > 0 else float("inf")

    def numbers(self) -> dict[str, Any]:
        """The JSON of `restow demo --scene multiplex --json`."""
        return {
            "alone": [
                {
                    "job": name,
                    "step_s": demand.period_s,
                    "device_s": demand.device_s,
                    "network_s": demand.network_s,
                }
                for name, demand in zip(self.names, self.demands, strict=True)
            ],
            "rows": [row.numbers() for row in self.rows],
            "fairness": self.fairness,
            "bit_identical": self.is_identical,
            "steps_compared": {name: comparison.steps for name, comparison in self.comparisons.items()},
            "why_not_identical": [comparison.why_not for comparison in self.comparisons.values() if comparison.why_not],
            "protected_slowdown_mean": self.protection.slowdown_mean,
            "protected_step_alone_s": self.protection.alone_s,
            "protected_step_shared_s": self.protection.shared_s,
            "background_share": self.protection.background_share,
            "notes": [*self.notes, *self.cautions()],
        }

    def table(self) -> Table:
        table = Table(title="Two gangs on the same two devices; speeds relative to each alone", title_justify="left")
        table.add_column("", style="bold")
        for name in (*self.names, "together", "bound", "of bound"):
            table.add_column(name, justify="right")
        table.add_column("", style="dim")
        table.add_row("alone", *("1.00" for _ in self.names), "-", "-", "-", "one after the other")
        for row in self.rows:
            is_last = row is self.rows[-1]
            total = f"[bold green]{row.total:.2f}[/]" if is_last else f"{row.total:.2f}"
            speeds = (f"{speed:.2f}" for speed in row.speeds)
            fair = f"; the faster gang is {self.fairness:.0%} ahead" if is_last else ""
            table.add_row(row.phase, *speeds, total, f"{row.bound:.2f}", f"{row.ratio_to_bound:.0%}", row.what + fair)
        return table

    def closing_lines(self) -> list[str]:
        """What does not fit the columns, in rich's markup."""
        protection, first = self.protection, self.names[0]
        steps = "; ".join(f"{name} {words(demand)}" for name, demand in zip(self.names, self.demands, strict=True))
        compared = ", ".join(f"{comparison.steps} steps of {name}" for name, comparison in self.comparisons.items())
        why_not = "; ".join(f"{name}: {c.why_not}" for name, c in self.comparisons.items() if c.why_not)
        same = f"every printed loss of every rank, against the same job left alone: {compared}"
        return [
            f"[bold]a step alone[/]   {steps}",
            f"[bold]protected[/]      a step of {first} takes {protection.slowdown_mean:+.1%} ({protection.alone_s * 1e3:.0f} to "
            f"{protection.shared_s * 1e3:.0f} ms); the background job gets {protection.background_share:.2f} of its own speed",
            f"[bold]bit-identical[/]  {f'[bold red]no[/], {why_not}' if why_not else f'[bold green]yes[/], {same}'}",
            *self.cautions(),
        ]

    def cautions(self) -> tuple[str, ...]:
        """Reasons not to trust the numbers, seen by themselves."""
        first, again = self.demands[0].period_s, self.protection.alone_s
        if abs(again / first - 1) < DRIFT_MAX:
            return ()
        return (
            f"a step of {self.names[0]} alone took {first * 1e3:.0f} ms at first and {again * 1e3:.0f} ms later: this machine was "
            "busy with other things, and the speeds above are as uncertain as that",
        )


def rows_of(
    phases: Sequence[tuple[str, str]], speeds: Sequence[Sequence[float]], demands: Sequence[Demand]
) -> tuple[Row, ...]:
    """One row per phase (name, what) with the speeds of all gangs in it."""
    bound = best_total(demands)
    return tuple(
        Row(phase=name, what=what, speeds=tuple(of_phase), bound=bound)
        for (name, what), of_phase in zip(phases, speeds, strict=True)
    )


def words(demand: Demand) -> str:
    """What a step takes, for people."""
    parts = f"{demand.device_s * 1e3:.0f} ms computing, {demand.network_s * 1e3:.0f} ms on the link"
    return f"{demand.period_s * 1e3:.0f} ms ({parts})"
