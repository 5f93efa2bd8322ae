"""The default policy: consolidate scattered jobs, and let jobs share devices where that is worth it.

Placing and moving is policies/consolidate.py, who shares and how is policies/sharing.py; here they meet: a pending job that
found no free devices may join others, or take those of a running job that joins others in its place; one that should not share
any more gets free devices by an ordinary move, and every job's share of its devices follows from who else is there.
"""

from __future__ import annotations

from restow.cluster import Snapshot
from restow.job import Job, JobState
from restow.perf import steps_left
from restow.placement import Move, Schedule
from restow.policies import sharing
from restow.policies.board import Board, waits_for_wish, why_not_back
from restow.policies.consolidate import Consolidate, ConsolidateConfig
from restow.policies.layout import best_start
from restow.policies.moves import move_to
from restow.policies.preemption import may_be_suspended, preempt
from restow.policies.sharing import Pairing, SharingConfig
from restow.policies.sizing import Sizing


class Restow:
    """See the module. Stateless: everything it needs is in the snapshot."""

    def __init__(self, consolidate: ConsolidateConfig | None = None, share: SharingConfig | None = None):
        self.consolidate = Consolidate(consolidate)
        self.share = share or SharingConfig()
        self.sizing = Sizing(self.consolidate)

    def decide(self, snapshot: Snapshot) -> Schedule:
        return self.consolidate.pruned(self.plan(snapshot), snapshot)

    def plan(self, snapshot: Snapshot) -> Schedule:
        schedule = self.consolidate.plan(snapshot)
        stuck = self._part(snapshot, schedule)
        joined = self._grant_wishes(snapshot, schedule)
        joined |= self._join(snapshot, schedule, joined)
        self._make_room(snapshot, schedule, joined)
        self.sizing.plan(snapshot, schedule)
        preempt(snapshot, schedule)
        self._regulate(snapshot, schedule, stuck)
        return schedule

    # ------------------------------------------------------------ joining

    def _grant_wishes(self, snapshot: Snapshot, schedule: Schedule) -> set[str]:
        """A person wants a job on devices that others hold: it joins them if it can. Returns who shares from now on."""
        joined: set[str] = set()
        for job in snapshot.jobs:
            is_open = job.state in (JobState.PENDING, JobState.RUNNING) and not job.switch and snapshot.now_s >= job.not_before_s
            if not is_open or job.paused or not job.pinned or schedule.placement(job.id) not in (None, job.intended):
                continue
            devices = sharing.devices_of(job.pinned)
            hosts = next((hosts for hosts in sharing.groups(snapshot) if devices == sharing.devices_of(hosts[0].intended)), ())
            if not hosts or job in hosts:
                continue
            why_not = sharing.hindrance(job, hosts, snapshot, self.share)
            if why_not:
                schedule.explain(job.id, f"{schedule.reasons.get(job.id, '')}; {why_not}")
            elif self._are_settled(hosts, schedule, joined):
                names = " and ".join(host.id for host in hosts)
                joined |= self._move_in(job, hosts, snapshot, schedule, f"shares {_devices(hosts[0])} with {names}, as was asked")
        return joined

    @staticmethod
    def _are_settled(hosts: tuple[Job, ...], schedule: Schedule, joined: set[str]) -> bool:
        """Does nothing else happen to these jobs in this decision?"""
        return all(
            host.id not in joined and host.id not in schedule.moves and schedule.placement(host.id) == host.intended
            for host in hosts
        )

    def _move_in(
        self, job: Job, hosts: tuple[Job, ...], snapshot: Snapshot, schedule: Schedule, reason: str
    ) -> set[str]:  # fmt: skip
        """`job`, pending or running elsewhere, is to be on the devices of `hosts`; returns all of them."""
        then = sharing.shared(hosts[0].intended, len(hosts) + 1)
        if job.placement:
            move = schedule.moves[job.id] = move_to(job, then, snapshot, reason)
            reason = move.reason
        schedule.put(job.id, then, reason)
        return {job.id, *(host.id for host in hosts)}

    def _join(self, snapshot: Snapshot, schedule: Schedule, taken: set[str]) -> set[str]:
        """Pending jobs without devices, oldest first; one group takes one newcomer per decision, so that each is measured."""
        joined = set(taken)
        for job in snapshot.jobs:
            if not job.waits or schedule.placement(job.id) or job.pinned or why_not_back(job, snapshot):
                continue
            if "has waited" in schedule.reasons.get(job.id, ""):
                continue  # an older job must not wait longer because of it
            pairing, why_not = sharing.pairing_for(job, snapshot, self.share)
            if pairing and self._are_settled(pairing.hosts, schedule, joined):
                names = " and ".join(host.id for host in pairing.hosts)
                promised = f"together {pairing.total:.2f} of one job alone is expected"
                promised = "in turns, since their memory does not fit at once" if pairing.in_turns else promised
                reason = f"shares {_devices(pairing.hosts[0])} with {names}: {promised}"
                joined |= self._move_in(job, pairing.hosts, snapshot, schedule, reason)
            elif why_not:
                before = schedule.reasons.get(job.id, "")
                schedule.explain(job.id, f"{before}; {why_not}" if before else why_not)
        return joined

    def _make_room(self, snapshot: Snapshot, schedule: Schedule, joined: set[str]) -> None:
        """For the oldest pending job that has nowhere to go, one running job joins another, so that its devices become free."""
        if snapshot.moves_last_hour + len(schedule.moves) >= self.consolidate.config.moves_per_hour:
            return
        board = Board.of(snapshot)
        for id, placement in schedule.placements.items():
            board.take(id, placement)
        for job in snapshot.jobs:
            is_waiting = job.waits and not why_not_back(job, snapshot) and not schedule.placement(job.id) and not job.pinned
            if not is_waiting or "has waited" in schedule.reasons.get(job.id, ""):
                continue
            ways = []
            for other in snapshot.jobs:
                may_go = not (other.sharing or other.share.protect or self.consolidate.hindrance(other, snapshot))
                if not may_go or not self._are_settled((other,), schedule, joined):
                    continue
                room = best_start(job.workers, board.usable(job, {other.id}), job.profile.wire_bytes, snapshot)
                pairing, _ = sharing.pairing_for(other, snapshot, self.share) if room else (None, "")
                if room and pairing and self._is_worth(other, pairing, snapshot, schedule, joined):
                    ways.append((-pairing.total, other.id, other, pairing.hosts, room))
            if ways:
                total, _, other, hosts, room = min(ways, key=lambda way: way[:2])
                names = " and ".join(host.id for host in hosts)
                promised = f"together {-total:.2f} of one job alone is expected"
                reason = f"joins {names} on {_devices(hosts[0])} to make room for {job.id}, {promised}"
                self._move_in(other, hosts, snapshot, schedule, reason)
                schedule.put(job.id, room, f"starts on {' '.join(map(str, room))}, once {other.id} has made room")
                return

    def _is_worth(self, other: Job, pairing: Pairing, snapshot: Snapshot, schedule: Schedule, joined: set[str]) -> bool:
        pause_s = move_to(other, pairing.placement, snapshot, "").downtime_s
        is_settled = self._are_settled(pairing.hosts, schedule, joined)
        return is_settled and pairing.total >= self.share.total_min and pause_s <= other.spec.max_pause_s

    # ------------------------------------------------------------ parting

    def _part(self, snapshot: Snapshot, schedule: Schedule) -> dict[str, str]:
        """Whoever should not share any more, or need not since devices are free, moves to devices of its own; where a person has
        taken them from it and there are no others, it is suspended. Returns why each job that should leave cannot."""
        board, stuck = Board.of(snapshot), dict[str, str]()
        for id, placement in schedule.placements.items():
            board.take(id, placement)
        for jobs in sharing.groups(snapshot):
            if len(jobs) < 2 or any(schedule.placement(job.id) != job.intended for job in jobs):
                continue  # one is leaving already, or a wish takes it away
            found = sharing.who_leaves(jobs, snapshot.now_s, self.share)
            last = max(jobs, key=lambda job: (sharing.levels_of(jobs)[job.id], job.submitted_s, job.id))
            leaver, reason = found or (last, "has devices of its own again")
            hindrance = self.consolidate.hindrance(leaver, snapshot)
            then = best_start(leaver.workers, board.usable(leaver), leaver.profile.wire_bytes, snapshot)
            if hindrance or then is None:
                is_told = any(job.share.is_exclusive for job in jobs)
                if is_told and then is None and may_be_suspended(leaver):
                    schedule.placements.pop(leaver.id)
                    schedule.explain(leaver.id, f"suspended: {reason}, and no other devices are free; goes on when there are some")
                elif found:
                    stuck[leaver.id] = f"should leave, since {reason}, but {hindrance or 'no other devices are free'}"
                continue
            move = move_to(leaver, then, snapshot, f"leaves {_devices(leaver)} to the others: {reason}")
            if move.downtime_s > leaver.spec.max_pause_s:
                stuck[leaver.id] = f"could leave, but would pause for about {move.downtime_s:.3g} s, more than max_pause_s allows"
            elif found or self._saves_s(leaver, move, snapshot) > move.downtime_s * self.consolidate.config.margin:
                schedule.put(leaver.id, then, move.reason)
                schedule.moves[leaver.id] = move
                board.take(leaver.id, then)
        return stuck

    @staticmethod
    def _saves_s(leaver: Job, move: Move, snapshot: Snapshot) -> float:
        """With what it now waits for the others' turns: a step's time does not hold that."""
        turns = len(leaver.sharing.partners) if leaver.sharing and leaver.sharing.mode == "time-slice" else 0
        return move.saves_s + turns * leaver.profile.step_s * steps_left(leaver, snapshot.now_s)

    # ------------------------------------------------------------ everybody's share

    def _regulate(self, snapshot: Snapshot, schedule: Schedule, stuck: dict[str, str]) -> None:
        """Shares and gates, from who will be where."""
        jobs = {job.id: job for job in snapshot.jobs}
        groups: dict[frozenset[tuple[str, int]], list[Job]] = {}
        for id, placement in schedule.placements.items():
            groups.setdefault(sharing.devices_of(placement), []).append(jobs[id])
        for members in groups.values():
            for job in members:
                whole = schedule.placements[job.id]
                schedule.placements[job.id] = sharing.shared(whole, len(members))
            if len(members) == 1:
                [job] = members
                if job.sharing and job.id not in schedule.moves:
                    schedule.explain(job.id, "has its devices to itself again")
            else:
                ordered = sorted(members, key=lambda job: (job.submitted_s, job.id))
                found = sharing.regulated(ordered, snapshot, self.share)
                schedule.sharing.update(found)
                for job in ordered:
                    if job.id not in schedule.moves and schedule.placement(job.id) == sharing.shared(job.intended, len(members)):
                        wish = schedule.reasons.get(job.id, "") if waits_for_wish(job) else ""
                        words = [wish or sharing.why(found[job.id]), stuck.get(job.id, "")]
                        schedule.explain(job.id, "; ".join(filter(None, words)))


def _devices(job: Job) -> str:
    return " ".join(f"{slot.node}:{slot.device}" for slot in job.intended)
