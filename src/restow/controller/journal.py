"""The append-only record of everything that happened, in SQLite (WAL). Written before it has an effect.

Progress is not appended, since it comes twice a second from every rank and only the last word counts: it is kept once
per rank and overwritten every few seconds. Nothing is ever removed; a busy month is some tens of megabytes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from restow.codec import from_json, to_json
from restow.errors import SetupError
from restow.messages import Event, Progressed

_TABLES = """
create table if not exists events (number integer primary key, time_s real not null, type text not null, body text not null);
create table if not exists progress (job text not null, rank integer not null, body text not null, primary key (job, rank));
"""


class Journal:
    """Events numbered from 1. One writer; readers may open the file at any time."""

    def __init__(self, path: Path):
        try:
            path.touch(mode=0o600)
            self._database = sqlite3.connect(path, isolation_level=None)
            self._database.execute("pragma journal_mode = wal")
            self._database.execute("pragma synchronous = full")  # what was answered must survive a power cut too
            self._database.executescript(_TABLES)
            (self.last,) = self._database.execute("select coalesce(max(number), 0) from events").fetchone()
        except (sqlite3.Error, OSError) as error:
            raise SetupError(f"journal {path}: {error}; move it away to start with an empty one") from None

    def append(self, events: Iterable[Event]) -> list[int]:
        """Write all of them or none, to the disk; returns their numbers."""
        rows = []
        for number, event in enumerate(events, self.last + 1):
            rows.append((number, event.time_s, type(event).__name__, json.dumps(to_json(event), separators=(",", ":"))))
        if rows:
            self._database.execute("begin")
            try:
                self._database.executemany("insert into events values (?, ?, ?, ?)", rows)
            except BaseException:
                self._database.execute("rollback")
                raise
            self._database.execute("commit")
            self.last = rows[-1][0]
        return [row[0] for row in rows]

    def keep_progress(self, events: Iterable[Progressed]) -> None:
        """Remember the last word of each rank."""
        self._database.execute("begin")
        self._database.executemany(
            "insert or replace into progress values (?, ?, ?)",
            [(event.job, event.rank, json.dumps(to_json(event), separators=(",", ":"))) for event in events],
        )
        self._database.execute("commit")

    def events(self, after: int = 0) -> Iterator[tuple[int, Event]]:
        """Every event with a number above `after`, in order. Raises SpecError where a later restow wrote what we don't know."""
        for number, body in self._database.execute(
            "select number, body from events where number > ? order by number", (after,)
        ):
            yield number, from_json(json.loads(body))

    def progress(self) -> list[Progressed]:
        """The last kept word of each rank."""
        return [
            from_json(json.loads(body))
            for (body,) in self._database.execute("select body from progress order by job, rank")
        ]

    def close(self) -> None:
        self._database.close()
