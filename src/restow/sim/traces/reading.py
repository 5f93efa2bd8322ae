"""A trace file as rows, in the order in which they came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from restow.errors import TraceError
from restow.sim.rows import Row
from restow.sim.traces import table
from restow.sim.traces.generated import PREFIX, generated
from restow.sim.traces.layouts import layout_of

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    path: str
    layout: str  # which project's way to write it, see layouts.py
    rows: tuple[Row, ...]  # by submission
    skipped: int = 0  # lines that are no jobs here: without a GPU, or of no length

    def __str__(self) -> str:
        """What was read, in one line."""
        sizes = [row.workers for row in self.rows]
        span_h = (self.rows[-1].submitted_s - self.rows[0].submitted_s) / HOUR_S
        skipped = f", {self.skipped} lines skipped (without a GPU, or of no length)" if self.skipped else ""
        gangs = f"gangs of {min(sizes)} to {max(sizes)}" if max(sizes) > 1 else "one device each"
        return f"{self.path}: {len(self.rows)} jobs ({self.layout}) over {span_h:.1f} h, {gangs}{skipped}"

    def compressed(self, times: float) -> Trace:
        """The same jobs, arriving so many times as fast, and with as much time until their deadlines."""
        if not (times > 0 and math.isfinite(times)):
            raise TraceError(f"a trace cannot be compressed {times:g} times; give a number above 0")
        earlier_s = [row.submitted_s - row.submitted_s / times for row in self.rows]
        rows = (
            replace(row, submitted_s=row.submitted_s / times, deadline_s=row.deadline_s - earlier)
            for row, earlier in zip(self.rows, earlier_s, strict=True)
        )
        return replace(self, rows=tuple(rows))

    def elastic(self, least: int, most: int) -> Trace:
        """The same jobs, whose gangs may have any number of devices in this range."""
        return replace(self, rows=tuple(replace(row, elastic=(least, most)) for row in self.rows))


def find_trace(name: str) -> Trace:
    """Of a file, or `random:...`, see generated.py. Raises TraceError."""
    if name.startswith(PREFIX):
        return Trace(path=name, layout="random", rows=generated(name))
    return read(Path(name))


def read(path: Path) -> Trace:
    """Raises TraceError with file, line and column for the first thing that is wrong."""
    header = table.columns_of(path)
    tabs = table.columns_of(path, "\t")
    pipes = table.columns_of(path, "|")
    columns, delimiter = (pipes, "|") if len(pipes) > len(header) else (header, ",")
    if not columns:
        raise TraceError(f"trace {path} is empty; it holds no jobs")
    layout = layout_of(path, columns, len(tabs))
    rows: list[Row] = []
    seen: set[str] = set()
    skipped = 0
    for number, line in enumerate(table.lines(path, layout.headless or None, "\t" if layout.headless else delimiter)):
        try:
            row = layout.row(line, number)
        except TraceError as error:
            raise error if str(error).startswith(str(path)) else line.error("", str(error)) from None
        if row is None:
            skipped += 1
        elif not row.id:
            raise line.error("", "it has no id")
        elif row.id in seen:
            raise line.error("", f"two jobs are called {row.id}")
        else:
            seen.add(row.id)
            rows.append(row)
    if not rows:
        only = f", only {skipped} lines without a GPU or of no length" if skipped else ""
        raise TraceError(f"trace {path} holds no jobs{only}")
    return Trace(path=path.name, layout=layout.name, rows=_ordered(rows, layout.is_dated), skipped=skipped)


def _ordered(rows: Sequence[Row], is_dated: bool) -> tuple[Row, ...]:
    first_s = min(row.submitted_s for row in rows) if is_dated else 0.0
    counted = (replace(row, submitted_s=row.submitted_s - first_s) if first_s else row for row in rows)
    return tuple(sorted(counted, key=lambda row: row.submitted_s))
