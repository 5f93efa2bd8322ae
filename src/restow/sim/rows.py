"""One row of a trace: a job that came, when, and what it wanted. A value; who reads traces is traces/."""

from __future__ import annotations

import math
from dataclasses import dataclass

from restow.errors import TraceError
from restow.sim.past import Past

NUMBER_MAX = 1e15  # seconds or steps: thirty million years


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Times in seconds since the trace began."""

    id: str
    submitted_s: float
    workers: int  # size of the gang, a device each
    steps: float = 0.0  # that it makes; 0: as many as `duration_s` takes, one each second
    duration_s: float = 0.0  # as recorded, on the devices that it had there; 0: not recorded
    model: str = ""  # what a world knows its speed by
    share: float = 1.0  # of each device; less than 1: it wants a part of one
    cores: float = 0.0  # of its machine, for each worker; 0: not counted
    host_bytes: int = 0  # of its machine's memory, for each worker; 0: not counted
    tenant: str = ""
    priority: int = 0
    deadline_s: float = math.inf
    batch: int = 0  # global batch size, samples
    elastic: tuple[int, int] = (0, 0)  # fewest and most devices that its gang may have; (0, 0): as many as it wants
    epoch: int = 0  # of its training, where a world knows what that changes
    plan: str = ""  # how it is parallelized, as the trace has it
    stages_s: tuple[float, float, float] | None = None  # of a step, each alone: data (storage and CPU), computing, communicating
    start_s: float = 0.0  # from a launch, a move or a return to its first step, beside what every job takes for it
    past: Past | None = None  # of a job that was there before the simulation began

    def __post_init__(self) -> None:
        for name, value in (("submitted", self.submitted_s), ("steps", self.steps), ("duration", self.duration_s)):
            if not (value >= 0 and math.isfinite(value)):
                raise TraceError(f"{name} is {value:g}; it must be a number of 0 or more")
            if value > NUMBER_MAX:
                raise TraceError(f"{name} is {value:g}; more than {NUMBER_MAX:.0e} is taken for a mistake")
        if not self.deadline_s > self.submitted_s:
            raise TraceError(f"its deadline is {self.deadline_s:g}, which is not after it is submitted ({self.submitted_s:g})")
        if self.workers < 1:
            raise TraceError(f"it wants {self.workers} devices; a job needs at least 1")
        low, high = self.elastic
        if (low or high) and not 1 <= low <= high:
            raise TraceError(f"its gang may have {low} to {high} devices; write the smaller number first, 1 or more")
        if not 0 < self.share <= 1 and not (self.share == 0 and self.cores > 0):
            raise TraceError(f"its share of a device is {self.share:g}; it must be above 0 and at most 1")
        if not (self.steps or self.duration_s or self.model):
            raise TraceError("neither steps nor a duration above 0, nor a model: nothing says how long it is")

    @property
    def work(self) -> float:
        """Steps to make; 0: its model's world knows."""
        return self.steps or self.duration_s
