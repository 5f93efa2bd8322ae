"""What the nursery needs to know to bear a process: a value that crosses its socket."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """One process to start. `label` is kept for the agent and not looked at."""

    command: tuple[str, ...]
    environment: dict[str, str]  # all of it, nothing is inherited
    cwd: str
    log: str  # stdout and stderr, appended
    python: str  # the interpreter that `python` means
    core: int | None = None  # pinned to it
    cgroup: str | None = None  # put into it
    label: dict[str, Any]

    def to_wire(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Birth:
        return cls(**{**wire, "command": tuple(wire["command"])})
