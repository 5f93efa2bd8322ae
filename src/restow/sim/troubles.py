"""What goes wrong with machines. A value; what makes it happen is losses.py and stragglers.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A machine that was away, or a device that was slow. Seconds of virtual time."""

    node: str
    device: int | None = None  # None: all of the machine was away
    from_s: float
    to_s: float
