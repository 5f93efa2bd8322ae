"""What a policy is: a pure function of the snapshot that says where every job should be, each with a reason.

A policy never says start, stop or move: those are differences between its schedule and what is, found in core/reconcile.py.
It must be *steady*: adopted and asked again with nothing new, it gives the same schedule.
"""

from __future__ import annotations

from typing import Protocol

from restow.cluster import Snapshot
from restow.placement import Schedule


class Policy(Protocol):
    def decide(self, snapshot: Snapshot) -> Schedule:
        """Where every job should be. `reasons` only for what changes or waits; `moves` for what changes place."""

    def plan(self, snapshot: Snapshot) -> Schedule:
        """The same decision with a reason for every job, also for those that stay although they are scattered."""
