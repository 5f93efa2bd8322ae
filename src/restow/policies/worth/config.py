"""The constants of this policy: one set, for every cluster and workload."""

from __future__ import annotations

from dataclasses import dataclass, field

from restow.policies.worth.urgency import Urgency


@dataclass(frozen=True, slots=True, kw_only=True)
class WorthConfig:
    first_s: float = 7200.0  # what a job that does not say how long it is counts as having left when it has just come
    power: float = 0.8  # of what is left: 1 is best for the average completion time, less for the longest ones
    urgency: Urgency = field(default_factory=Urgency)  # of jobs that the others would end before
    spread_min: float = 0.8  # of its speed together, that a gang must have on several machines to be started there
    join_min: float = 0.05  # of its worth, that must be left to a job beside another when that one's loss is taken off
    take_min: float = 1.6  # a job must be worth so many times what those are whose devices it takes ...
    take_over: float = 2.0  # ... and bring so many times what it would bring elsewhere
    move_min: float = 0.15  # of the worth of all concerned, that a move must bring ...
    swap_min: float = 0.2  # ... and that two jobs must bring that change their places
    change_s: float = 60.0  # what a change is taken to cost each job, with all that follows from it
    pays: float = 2.0  # what a move brings in the time that is left must be so many times what it costs ...
    swap_pays: float = 6.0  # ... and of a swap, for which both are suspended
    horizon_s: float = 3600.0  # over which what a move costs is spread, at most
    moves: bool = True  # also of jobs that run: aside, to free devices, in each other's places
    shares: bool = True  # of a device between two jobs
