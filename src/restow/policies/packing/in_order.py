"""First come, first served, each on the machine that a measure says; nobody moves: so far are published packing policies alike."""

from __future__ import annotations

from collections.abc import Callable

from restow.cluster import Snapshot
from restow.job import Job
from restow.placement import Schedule
from restow.policies.board import why_not_back
from restow.policies.packing.packing import Packing
from restow.policies.packing.wants import Want, want_of


def in_order(
    snapshot: Snapshot, packing: Packing, reason: Callable[[Job], str], lot: Callable[[Job], int] = lambda job: 0
) -> Schedule:  # fmt: skip
    """Later jobs may fill what the first ones cannot use. `lot`: chooses among equally good machines, see Packer.best."""
    packing.renew(snapshot)
    schedule = Schedule()
    full: set[Want] = set()
    for job in snapshot.jobs:
        if job.intended and not job.paused:
            schedule.put(job.id, job.intended)
    for job in snapshot.jobs:
        if not job.waits or job.intended:
            continue
        if why_not := why_not_back(job, snapshot):
            schedule.explain(job.id, why_not)
            continue
        want = want_of(job)
        found = None if want in full else packing.find(job, snapshot, lot=lot(job))
        if found is None:
            full.add(want)
            schedule.explain(job.id, "waits: no machine has as much left as it wants")
        else:
            schedule.put(job.id, found[1], reason(job))
            packing.ground.take(job, found[1])
    return schedule
