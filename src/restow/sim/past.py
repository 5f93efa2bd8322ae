"""What is known of a job that has run before: in the live cluster from which a simulation goes on, or once, to be measured, before
it comes again. A value; who reads it from a snapshot is standing.py."""

from __future__ import annotations

from dataclasses import dataclass

from restow.job import JobSpec, Profile, Sharing
from restow.placement import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """Times in seconds since the first submission of the snapshot, as in rows. One that comes again has made no steps yet."""

    spec: JobSpec
    placement: Placement  # where it stands; empty: it waits
    measured_on: Placement  # where its profile was measured
    profile: Profile
    steps: float  # that it has made
    says_total: bool  # did it say how many it will make?
    started_s: float | None  # when it first ran
    service_s: float  # device seconds that it has held
    is_movable: bool
    why_not: str  # if not
    sharing: Sharing | None
    reason: str  # why it is where it is
    elsewhere: tuple[tuple[Placement, Profile], ...] = ()  # other places where it was measured, and what
