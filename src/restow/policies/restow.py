"""The default policy: consolidate scattered jobs, and let jobs share devices where that is worth it.

Placing and moving is policies/consolidate.py, who shares and how is policies/sharing.py; here they meet: a pending job that
found no free devices may join others, one that should not share any more gets free devices by an ordinary move, and every
job's share of its devices follows from who else is there.
"""

from __future__ import annotations

from restow.cluster import Snapshot
from restow.job import Job, JobState
from restow.placement import Schedule
from restow.policies import sharing
from restow.policies.consolidate import Board, Consolidate, ConsolidateConfig
from restow.policies.layout import best_start
from restow.policies.sharing import SharingConfig


class Restow:
    """See the module. Stateless: everything it needs is in the snapshot."""

    def __init__(self, consolidate: ConsolidateConfig | None = None, share: SharingConfig | None = None):
        self.consolidate = Consolidate(consolidate)
        self.share = share or SharingConfig()

    def decide(self, snapshot: Snapshot) -> Schedule:
        return self.consolidate.pruned(self.plan(snapshot), snapshot)

    def plan(self, snapshot: Snapshot) -> Schedule:
        schedule = self.consolidate.plan(snapshot)
        self._part(snapshot, schedule)
        self._join(snapshot, schedule)
        self._regulate(snapshot, schedule)
        return schedule

    # ------------------------------------------------------------ joining

    def _join(self, snapshot: Snapshot, schedule: Schedule) -> None:
        """Pending jobs without devices, oldest first; one group takes one newcomer per decision, so that each is measured."""
        joined: set[str] = set()
        for job in snapshot.jobs:
            if job.state is not JobState.PENDING or schedule.placement(job.id) or job.pinned:
                continue
            if "has waited" in schedule.reasons.get(job.id, ""):
                continue  # an older job must not wait longer because of it
            pairing, why_not = sharing.pairing_for(job, snapshot, self.share)
            if pairing and not any(
                host.id in joined or host.id in schedule.moves or schedule.placement(host.id) != host.intended
                for host in pairing.hosts
            ):
                names = " and ".join(host.id for host in pairing.hosts)
                reason = f"shares {_devices(pairing.hosts[0])} with {names}: together {pairing.total:.2f} times one alone at best"
                schedule.put(job.id, pairing.placement, reason)
                joined |= {job.id, *(host.id for host in pairing.hosts)}
            elif why_not:
                before = schedule.reasons.get(job.id, "")
                schedule.explain(job.id, f"{before}; {why_not}" if before else why_not)

    # ------------------------------------------------------------ parting

    def _part(self, snapshot: Snapshot, schedule: Schedule) -> None:
        """Whoever should not share any more, or need not since devices are free, moves to devices of its own."""
        board = Board.of(snapshot)
        for id, placement in schedule.placements.items():
            board.take(id, placement)
        for jobs in sharing.groups(snapshot):
            if len(jobs) < 2:
                continue
            found = sharing.who_leaves(jobs, self.share)
            last = max(jobs, key=lambda job: (sharing.levels_of(jobs)[job.id], job.submitted_s, job.id))
            leaver, reason = found or (last, "has devices of its own again")
            if leaver.id in schedule.moves or self.consolidate.hindrance(leaver, snapshot):
                continue
            free = [slot for slot in board.usable(leaver) if slot[:2] not in board.taken]
            then = best_start(leaver.workers, free, leaver.profile.wire_bytes, snapshot)
            if then is None:
                continue
            move = self.consolidate.move(leaver, then, snapshot, f"leaves {_devices(leaver)} to the others: {reason}")
            if found or move.saves_s > move.downtime_s * self.consolidate.config.margin:
                schedule.put(leaver.id, then, move.reason)
                schedule.moves[leaver.id] = move
                board.take(leaver.id, then)

    # ------------------------------------------------------------ everybody's share

    def _regulate(self, snapshot: Snapshot, schedule: Schedule) -> None:
        """Shares and gates, from who will be where."""
        jobs = {job.id: job for job in snapshot.jobs}
        groups: dict[frozenset[tuple[str, int]], list[Job]] = {}
        for id, placement in schedule.placements.items():
            groups.setdefault(sharing.devices_of(placement), []).append(jobs[id])
        for members in groups.values():
            for job in members:
                whole = schedule.placements[job.id]
                schedule.placements[job.id] = sharing.shared(whole, len(members))
            if len(members) > 1:
                ordered = sorted(members, key=lambda job: (job.submitted_s, job.id))
                found = sharing.regulated(ordered, snapshot, self.share)
                schedule.sharing.update(found)
                for job in ordered:
                    if job.id not in schedule.moves and schedule.placement(job.id) == job.intended:
                        schedule.explain(job.id, sharing.why(job, found[job.id], job.share))


def _devices(job: Job) -> str:
    return " ".join(f"{slot.node}:{slot.device}" for slot in job.intended)
