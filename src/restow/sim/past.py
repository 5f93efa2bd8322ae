"""What a job brings with it when a simulation goes on from a live cluster. A value; who reads it from a snapshot is standing.py."""

from __future__ import annotations

from dataclasses import dataclass

from restow.job import JobSpec, Profile, Sharing
from restow.placement import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """Times in seconds since the first submission of the snapshot, as in rows."""

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
