"""How long simulated agents take. A value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """Seconds."""

    start_s: float = 0.0  # from a launch to the first step
    standby_s: float = 0.0  # until the twins of a move have parked, while the gang trains on
    move_s: float | None = None  # that a gang stands still for a move; None: what perf.py predicts
    resume_s: float = 0.0  # from its devices to the first step, for a job that comes back
    suspend_s: float = 0.0  # from its last step until its devices are free
    end_s: float = 0.0  # the same of a job that is done
