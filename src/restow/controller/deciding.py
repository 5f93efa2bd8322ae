"""The policy as the controller asks it: told what is believed of the jobs' speeds, and never the end of a live cluster.

A policy may be of a user's own. Whatever is wrong with it - it raises, loops, answers with something else, gives a device away
twice - is one line for people, everything stays as it was adopted, and after a while it is asked again.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from restow.cluster import Snapshot
from restow.faults import place_of, words_of
from restow.forecast import FromProfiles
from restow.placement import Schedule
from restow.policies.base import Policy

log = logging.getLogger(__name__)

WAIT_S_MAX = 60.0  # before it is asked again, after failures in a row


class Deciding:
    """`failure`: what is wrong with the last answer, empty if nothing is."""

    def __init__(self, policy: Policy):
        self.policy = policy
        self.failure = ""
        self._failures = 0
        self._not_before_s = 0.0

    def decide(self, snapshot: Snapshot) -> Schedule:
        """Its schedule; what is adopted already where it gives none."""
        if snapshot.now_s < self._not_before_s:
            return unchanged(snapshot, self.failure)
        return self._ask(self.policy.decide, snapshot)

    def plan(self, snapshot: Snapshot) -> Schedule:
        """The same with a reason for every job. What it does not know to do, decide does."""
        return self._ask(getattr(self.policy, "plan", self.policy.decide), snapshot)

    def _ask(self, question: Any, snapshot: Snapshot) -> Schedule:
        try:
            schedule: Any = question(replace(snapshot, forecast=FromProfiles(snapshot)))
            if not isinstance(schedule, Schedule):
                raise TypeError(f"it answered with a {type(schedule).__name__}; decide(snapshot) returns a Schedule")
        except (Exception, SystemExit) as error:  # whatever is wrong in somebody's file
            return self.failed(f"{words_of(error)} ({place_of(error)})", snapshot)
        self.failure, self._failures = "", 0
        return schedule

    def failed(self, reason: str, snapshot: Snapshot) -> Schedule:
        """Its answer was of no use: everything stays, and it is asked again later, the later the more often it failed."""
        self._failures += 1
        self._not_before_s = snapshot.now_s + min(WAIT_S_MAX, 2.0 ** min(self._failures, 10) - 1.0)
        self.failure = f"the policy failed: {reason}"
        log.error("%s", self.failure)
        return unchanged(snapshot, self.failure)


def unchanged(snapshot: Snapshot, reason: str) -> Schedule:
    """Everybody where it is meant to be now; who waits is told why."""
    schedule = Schedule()
    for job in snapshot.jobs:
        if job.intended:
            schedule.put(job.id, job.intended)
        elif job.waits:
            schedule.explain(job.id, f"{reason}; nothing changes until it works again")
        if job.sharing:
            schedule.sharing[job.id] = job.sharing
    return schedule
