"""What the harness asks of a system, and what it gets back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.cases import Case
from bench.timeline import Mark


@dataclass(slots=True, kw_only=True)
class Trial:
    """One measured move."""

    marks: list[Mark]
    began_s: float  # when the first thing was done for the move
    wire: Any  # place.Wire over the time of the move
    since_s: float = float("-inf")  # when the link got the rate at which the move is measured
    until_s: float = float("inf")  # the next thing that was done to this job
    digests: dict[int, str] = field(default_factory=dict)  # rank → digest of the final state, of the run as a whole
    state_bytes: int = 0
    told: dict[str, float] = field(default_factory=dict)  # what the system itself says about the move


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The same job, left alone."""

    marks: list[Mark]
    digests: dict[int, str]


class System(Protocol):
    name: str
    script: Path  # compared with rivals/plain.py
    note: str  # settings, and what to know when reading its row

    def why_not(self) -> str:
        """Empty where it can run here; else one line."""
        ...

    def trials(self, case: Case, place: Any, folder: Path, moves: int, options: list[str]) -> Iterator[Trial]:
        """Measured moves, as many as asked. Everything that was started has ended when the iterator is exhausted."""
        ...

    def reference(self, case: Case, place: Any, folder: Path, options: list[str]) -> Reference:
        """The same job with as many steps on one node, never moved."""
        ...
