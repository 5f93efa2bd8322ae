"""One row of a trace: a job that came, when, and what it wanted. A value; who reads traces is traces/."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from restow.errors import TraceError

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
    tenant: str = ""
    priority: int = 0
    deadline_s: float = math.inf
    batch: int = 0  # global batch size, samples
    plan: str = ""  # how it is parallelized, as the trace has it
    resources_s: tuple[float, ...] = field(default=())  # of one step: storage, CPU, GPU, network, each alone

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
        if not 0 < self.share <= 1:
            raise TraceError(f"its share of a device is {self.share:g}; it must be above 0 and at most 1")
        if not (self.steps or self.duration_s or self.model):
            raise TraceError("neither steps nor a duration above 0, nor a model: nothing says how long it is")

    @property
    def work(self) -> float:
        """Steps to make; 0: its model's world knows."""
        return self.steps or self.duration_s
