"""A bar of what is done, on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tell = Callable[[int, float], None]
"""So much is done, and so many virtual seconds (0: of no use here)."""


@contextmanager
def progress(words: str, total: int) -> Iterator[Tell | None]:
    """None where nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    done_of = TextColumn(words + "{task.completed}/{task.total}")
    columns = (done_of, BarColumn(), TextColumn("{task.fields[day]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, day="")

        def tell(done: int, now_s: float) -> None:
            bar.update(task, completed=done, day=f"day {now_s / 86400:.1f}" if now_s else "")

        yield tell
