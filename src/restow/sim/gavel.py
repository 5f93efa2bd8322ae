"""Gavel's world: steps per second of 26 kinds of jobs on K80, P100 and V100: alone, over several machines, and two on a GPU.

Source: Narayanan et al., OSDI 2020; `scheduler/simulation_throughputs.json` of its repository (MIT licence). The two-machine
measurements, which its own simulator leaves out, count here: a gang on more than one machine is as fast as `<kind>_unconsolidated`
says. Shockwave's tables (NSDI 2023) have the same form.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from restow.errors import TraceError
from restow.placement import Placement, is_scattered
from restow.sim.rows import Row
from restow.sim.world import Nodes, kind_of

SPREAD = "_unconsolidated"
_KEY = re.compile(r"\('(.+)', (\d+)\)")

Key = tuple[str, int]
"""Model with its batch size, as the trace has it, and workers."""


class GavelWorld:
    """`spreads`: do gangs on several machines have the speed measured there? Without, as in Gavel's simulator, nobody loses."""

    def __init__(self, path: Path, *, spreads: bool = True):
        self._path, self._spreads = path, spreads
        self._alone: dict[str, dict[Key, float]] = {}  # kind → job → steps per second
        self._pairs: dict[str, dict[tuple[Key, Key], float]] = {}  # kind → job, partner → steps per second of the job
        try:
            tables: Any = json.loads(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise TraceError(f"table {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
        except ValueError as error:
            raise TraceError(f"table {path} is not JSON: {error}") from None
        for kind, table in _entries(path, "the table", tables).items():
            self._read(kind, _entries(path, kind, table))

    def _read(self, kind: str, table: dict[str, dict[str, Any]]) -> None:
        alone, pairs = self._alone.setdefault(kind, {}), self._pairs.setdefault(kind, {})
        for name, entries in table.items():
            key = self._key(name)
            for partner, value in _entries(self._path, f"{kind}, {name}", entries).items():
                if partner == "null":
                    alone[key] = self._speed(f"{kind}, {name}", value)
                elif isinstance(value, list) and len(value) == 2:
                    pairs[key, self._key(partner)] = self._speed(f"{kind}, {name} beside {partner}", value[0])

    def _speed(self, where: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise TraceError(f"table {self._path}: {where} is {value!r}; a speed is steps per second, 0 or more")
        return float(value)

    def _key(self, name: str) -> Key:
        found = _KEY.fullmatch(name)
        if not found:
            raise TraceError(f"table {self._path} names {name!r}; a job there is written ('model', workers)")
        return found[1], int(found[2])

    @property
    def kinds(self) -> list[str]:
        return sorted(kind for kind in self._alone if not kind.endswith(SPREAD))

    def work(self, row: Row) -> float:
        if not any((row.model, row.workers) in table for table in self._alone.values()):
            if not row.model:
                raise TraceError(f"job {row.id} names no model; give the trace a column model, with names of {self._path.name}")
            raise TraceError(f"job {row.id}: {row.model!r} with {row.workers} workers is not in {self._path.name}")
        return row.steps

    def step_s(self, row: Row, placement: Placement, nodes: Nodes, beside: Sequence[tuple[Row, Placement]] = ()) -> float:
        """Who shares with several, or with a gang of another size or place, is not measured: infinite."""
        kind = kind_of(placement, nodes).lower()
        if self._spreads and is_scattered(placement):
            kind += SPREAD
        key = row.model, row.workers
        if not beside:
            speed = self._alone.get(kind, {}).get(key, 0.0)
        elif len(beside) == 1:
            other, _ = beside[0]
            speed = self._pairs.get(kind, {}).get((key, (other.model, other.workers)), 0.0)
        else:
            speed = 0.0
        return 1.0 / speed if speed > 0 else math.inf

    def alike(self, row: Row) -> Hashable:
        return row.model, row.workers

    def place(self, placement: Placement, nodes: Nodes) -> Hashable:
        return self._spreads and is_scattered(placement)


def _entries(path: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        what = type(value).__name__
        raise TraceError(f"table {path}: {where} is a {what}; it is kind → ('model', workers) → null → steps per second")
    return value
