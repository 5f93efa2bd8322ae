"""The default policy: first come first served onto the fastest free slots, and scattered gangs are brought together.

In order: running jobs stay, unless their node is drained; a person's wish (MigrateAsked) comes next; pending jobs are placed, later
ones may fill what an earlier one cannot use; then moves. A move is made when the device seconds that it is expected to save over
the job's remaining life exceed what it costs, with a margin. If the gang cannot come together as things are, one other job may be
moved out of the way first, when the two moves together are worth it.

Not known here: how long jobs really last (steps_total or the time behind them is the guess), other traffic on a link, and
plans of three and more jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from restow.cluster import Snapshot
from restow.job import Job, JobState, Phase
from restow.placement import (
    Move,
    Placement,
    Schedule,
    Slot,
    devices_of,
    is_scattered,
    nodes_of,
    rearranged,
    same_devices,
)
from restow.policies.board import Board, waits_for_wish, why_not_back
from restow.policies.layout import candidates, start
from restow.policies.leaving import drain, relieve
from restow.policies.moves import move_to


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsolidateConfig:
    cool_down_s: float = 60.0  # between two moves of one job: what was measured after the first must be seen first
    moves_per_hour: int = 60  # of the whole cluster; standbys cost CPU, and people want to be able to follow
    steps_min: int = 10  # a median over fewer steps is warm-up
    gain_min: float = 0.05  # of the step time; below it the prediction's own error is larger
    margin: float = 2.0  # saved time must be so many times the cost
    trouble_s: float = (
        1.0  # what each move costs besides its pause: rehearsal beside the training, and nobody's surprise
    )
    patience_s: float = 1800.0  # a gang that waited longer is not overtaken any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """Moves that belong together, in order, with what they are worth in device seconds."""

    moves: tuple[Move, ...]
    saves: float
    costs: float

    @property
    def order(self) -> tuple[float, int, list[tuple[str, Placement]]]:
        """Best first: what is left after the cost, then fewer moved ranks, then names."""
        moved = sum(len(move.ranks) for move in self.moves)
        return (-(self.saves - self.costs), moved, [(move.job, move.then) for move in self.moves])


class Consolidate:
    """See the module. Stateless: everything it needs is in the snapshot."""

    def __init__(self, config: ConsolidateConfig | None = None):
        self.config = config or ConsolidateConfig()

    def decide(self, snapshot: Snapshot) -> Schedule:
        return self.pruned(self.plan(snapshot), snapshot)

    @staticmethod
    def pruned(schedule: Schedule, snapshot: Snapshot) -> Schedule:
        """Without the reasons of jobs that stay as they are."""
        for job in snapshot.jobs:
            is_as_before = schedule.placement(job.id) == job.intended and schedule.sharing.get(job.id) == job.sharing
            if job.intended and is_as_before and not waits_for_wish(job):
                schedule.reasons.pop(job.id, None)  # nothing new to say; the reason that brought it there stays
        return schedule

    def plan(self, snapshot: Snapshot) -> Schedule:
        """Keep, grant wishes, place, consolidate. O(jobs^2 x nodes^2) at worst, when many jobs are scattered."""
        schedule, board = Schedule(), Board.of(snapshot)
        self._keep(snapshot, schedule)
        drain(snapshot, schedule, board)
        self._grant_wishes(snapshot, schedule, board)
        self._place_pending(snapshot, schedule, board)
        relieve(snapshot, schedule, board, self.hindrance)
        self._consolidate(snapshot, schedule, board)
        return schedule

    # ------------------------------------------------------------ what is there stays

    def _keep(self, snapshot: Snapshot, schedule: Schedule) -> None:
        for job in snapshot.jobs:
            if job.paused and snapshot.now_s >= job.not_before_s:
                is_there = job.state is JobState.PENDING
                words = "paused, as was asked;" if is_there else "is being paused, as was asked;"
                schedule.explain(job.id, f"{words} restow resume {job.id} lets it go on")
            elif job.state is JobState.RUNNING and not job.intended:
                others = {slot[:2] for other in snapshot.jobs if other is not job for slot in other.intended}
                if any(slot[:2] in others for slot in job.placement):
                    schedule.explain(job.id, job.reason)  # its devices are promised to a job of a higher priority
                elif not any(node.is_draining for node in snapshot.nodes if node.name in nodes_of(job.placement)):
                    schedule.put(job.id, job.placement, "goes on where it is")  # it was about to be suspended
            elif job.intended:
                where = " ".join(map(str, job.intended))
                schedule.put(job.id, job.intended, f"stays on {where}" if job.state is not JobState.PENDING else "")

    # ------------------------------------------------------------ wishes

    def _grant_wishes(self, snapshot: Snapshot, schedule: Schedule, board: Board) -> None:
        for job in snapshot.jobs:
            if not job.pinned or same_devices(job.pinned, job.intended) or job.state not in (JobState.PENDING, JobState.RUNNING):
                continue
            if job.paused or job.id in schedule.moves or (job.intended and job.id not in schedule.placements):
                continue  # it is leaving a node
            if job.placement and len(job.pinned) != len(job.placement):
                continue  # it has another number of workers since
            if (job.switch and job.switch.phase in (Phase.COMMIT, Phase.RESCUE, Phase.ABORT)) or snapshot.now_s < job.not_before_s:
                schedule.explain(job.id, job.reason)  # why the last attempt failed and when the next may be
                continue
            then = rearranged(job.placement, job.pinned) if job.placement else job.pinned
            others = {slot: sorted(board.taken.get(slot[:2], set()) - {job.id}) for slot in then}
            blocking = [f"{slot} is held by {' and '.join(ids)}" for slot, ids in others.items() if ids]
            missing = [str(slot) for slot in then if slot not in snapshot.slots]
            if missing:
                schedule.explain(
                    job.id, f"asked to be on {' '.join(map(str, then))}, but {missing[0]} is not there (any more)"
                )
            elif blocking:
                schedule.explain(job.id, f"asked to be on {' '.join(map(str, then))}, but {blocking[0]}")
            else:
                reason = f"goes to {' '.join(map(str, then))}, as was asked"
                schedule.put(job.id, then, reason)
                board.take(job.id, then)
                if job.placement:
                    schedule.moves[job.id] = move_to(job, then, snapshot, reason)

    # ------------------------------------------------------------ pending jobs

    def _place_pending(self, snapshot: Snapshot, schedule: Schedule, board: Board) -> None:
        waits_for: Job | None = None
        for job in sorted(snapshot.jobs, key=lambda job: -job.spec.priority):  # the older first among equals
            if not job.waits or schedule.placement(job.id):
                continue
            if job.pinned:
                continue  # its wish was explained above
            why_not = why_not_back(job, snapshot)
            if why_not:
                schedule.explain(job.id, why_not)
                continue
            if waits_for is not None:
                schedule.explain(
                    job.id, f"waits behind {waits_for.id}, which has waited for {waits_for.workers} slots for long"
                )
                continue
            every = [slot for slot in snapshot.slots if slot in self._fitting(job, snapshot)]
            usable = board.usable(job)
            if len(every) < job.devices_min:
                schedule.explain(job.id, self._too_big(job, snapshot, len(every)))
                continue
            placement = start(job, usable, snapshot)
            if placement is None:
                schedule.explain(job.id, f"needs {count(job.devices_min, 'slot')}, {are(len(usable))} free")
                if snapshot.now_s - job.submitted_s > self.config.patience_s:
                    waits_for = job
                continue
            schedule.put(job.id, placement, self._start_reason(job, placement))
            board.take(job.id, placement)

    @staticmethod
    def _fitting(job: Job, snapshot: Snapshot) -> set[Slot]:
        return set(Board(snapshot).usable(job))

    @staticmethod
    def _too_big(job: Job, snapshot: Snapshot, fitting: int) -> str:
        there = len(snapshot.slots)
        if there < job.devices_min:
            return f"needs {count(job.devices_min, 'slot')}, the cluster has {there}"
        gigabytes = job.spec.memory_bytes / 1e9
        return f"needs {count(job.devices_min, 'slot')} with {gigabytes:.3g} GB of memory each, the cluster has {fitting}"

    @staticmethod
    def _start_reason(job: Job, placement: Placement) -> str:
        nodes, devices = nodes_of(placement), len(devices_of(placement))
        workers = len(placement)
        fewer = f", {workers} ranks on {count(devices, 'device')}" if devices < workers else ""
        fewer = f" with {count(workers, 'worker')}" if job.is_resizable and workers < job.spec.workers else fewer
        if job.kept:
            return f"goes on from step {job.kept.step} on {' and '.join(nodes)}{fewer}"
        if fewer:
            return f"starts on {' and '.join(nodes)}{fewer}"
        if len(nodes) == 1:
            return f"starts on {nodes[0]}, which has room for all of it"
        return f"starts scattered over {' and '.join(nodes)}: no machine has {count(job.workers, 'free slot')}"

    # ------------------------------------------------------------ moves

    def _consolidate(self, snapshot: Snapshot, schedule: Schedule, board: Board) -> None:
        """Take the best proposal, then the best of what is left, until none is worth it or the budget is used up."""
        left = self.config.moves_per_hour - snapshot.moves_last_hour
        done: set[str] = set(schedule.moves)
        draining = {node.name for node in snapshot.nodes if node.is_draining}
        while True:
            proposals = []
            for job in snapshot.jobs:
                if job.id in done or not is_scattered(job.intended) or job.state is not JobState.RUNNING:
                    continue
                if job.pinned and not same_devices(job.pinned, job.intended):
                    continue  # its wish waits, which was explained above
                if len(devices_of(job.intended)) < job.workers:
                    continue  # its ranks take turns; policies/sizing.py sees to it
                if job.sharing:
                    continue  # jobs that share have the same devices; policies/restow.py parts them first
                if draining & {*nodes_of(job.intended)}:
                    continue  # what becomes of it was explained above
                hindrance = self.hindrance(job, snapshot)
                if hindrance:
                    schedule.explain(
                        job.id, f"stays scattered over {' and '.join(nodes_of(job.intended))}: {hindrance}"
                    )
                    continue
                found = sorted(self._proposals(job, snapshot, board, done), key=lambda proposal: proposal.order)
                worth = [proposal for proposal in found if self._is_worth(proposal)]
                if not worth:
                    schedule.explain(job.id, self._not_worth(job, found))
                proposals += worth
            proposals.sort(key=lambda proposal: proposal.order)
            affordable = [proposal for proposal in proposals if len(proposal.moves) <= left]
            if not affordable:
                for proposal in proposals:
                    limit = self.config.moves_per_hour
                    schedule.explain(
                        proposal.moves[-1].job, f"could move, but the budget of {limit} moves per hour is used up"
                    )
                return
            for move in affordable[0].moves:
                schedule.put(move.job, move.then, move.reason)
                schedule.moves[move.job] = move
                board.take(move.job, move.then)
                done.add(move.job)
                left -= 1

    def hindrance(self, job: Job, snapshot: Snapshot) -> str:
        """Why this job is not to be moved by a policy now; empty when it may be."""
        now_s, config = snapshot.now_s, self.config
        if not job.spec.migrate:
            return "its spec says migrate: false"
        if job.pinned:
            return "a person put it there"
        if job.switch or job.intended != job.placement:
            return "it is already on its way"
        if job.exited:
            return "it is ending"
        if not job.movable:
            return (
                f"it cannot move while it trains: {job.why_not}"
                if job.why_not
                else "it has not finished its first steps"
            )
        if now_s < job.not_before_s:
            return f"{job.reason or 'its last move failed'} ({job.not_before_s - now_s:.0f} s from now)"
        if job.moved_s is not None and now_s - job.moved_s < config.cool_down_s:
            return f"it moved {now_s - job.moved_s:.0f} s ago and may again after {config.cool_down_s:g} s"
        if job.profile.step_s <= 0 or job.steps_done < config.steps_min:
            return "its step time is not measured yet"
        return ""

    def _proposals(self, job: Job, snapshot: Snapshot, board: Board, done: set[str]) -> Iterator[Proposal]:
        """Ways to make this gang faster: alone onto free slots, or with one other job moved out of the way first."""
        direct = board.usable(job, {job.id})
        for then in candidates(job.workers, self._own(job, direct, board), job.intended):
            if set(then) != set(job.intended):
                yield self._proposal([self._gather(job, then, snapshot)], snapshot)
        for node in snapshot.nodes:
            roomy = [slot for slot in direct if slot.node == node.name]
            if not node.is_alive or len(node.devices) < job.workers or len(roomy) >= job.workers:
                continue
            for other in snapshot.jobs:
                here = [slot for slot in other.intended if slot.node == node.name]
                if (
                    other.id in {job.id, *done}
                    or len(roomy) + len(here) < job.workers
                    or self.hindrance(other, snapshot)
                    or other.sharing
                    or len(devices_of(other.intended)) < other.workers
                ):
                    continue
                for away in self._ways_out(other, node.name, board):
                    freed = [slot for slot in board.usable(job, {job.id, other.id}) if slot.node == node.name]
                    for then in candidates(job.workers, [slot for slot in freed if slot not in away], job.intended):
                        gathering = self._gather(job, then, snapshot, after=other)
                        yield self._proposal([self._make_room(other, away, job, snapshot), gathering], snapshot)

    @staticmethod
    def _own(job: Job, usable: list[Slot], board: Board) -> list[Slot]:
        """Free slots and its own. A device that only a leaver of this job still holds does not count."""
        mine = {slot[:2] for slot in job.intended}
        return [slot for slot in usable if slot[:2] in mine or slot[:2] not in board.taken]

    def _ways_out(self, other: Job, node: str, board: Board) -> Iterator[Placement]:
        """Placements of `other` without `node`, on its own other slots and on slots that nobody holds now."""
        mine = {slot[:2] for slot in other.intended}
        slots = [slot for slot in self._own(other, board.usable(other, {other.id}), board) if slot.node != node]
        for away in candidates(other.workers, slots, other.intended):
            if {slot[:2] for slot in away} != mine:
                yield away

    def _gather(self, job: Job, then: Placement, snapshot: Snapshot, after: Job | None = None) -> Move:
        nodes = nodes_of(then)
        where = (
            f"so that it trains on {nodes[0]} alone"
            if len(nodes) == 1
            else f"so that it needs only {' and '.join(nodes)}"
        )
        first = f", once {after.id} has made room" if after else ""
        return move_to(job, then, snapshot, f"{self._ways(job, then)} {where}{first}")

    def _make_room(self, other: Job, away: Placement, job: Job, snapshot: Snapshot) -> Move:
        return move_to(other, away, snapshot, f"{self._ways(other, away)} to make room for {job.id}")

    @staticmethod
    def _ways(job: Job, then: Placement) -> str:
        pairs = [
            f"rank {r} from {job.placement[r]} to {then[r]}" for r in range(job.workers) if job.placement[r] != then[r]
        ]
        return f"moves {', '.join(pairs)}"

    def _proposal(self, moves: list[Move], snapshot: Snapshot) -> Proposal:
        """Worth in device seconds: a job's time counts as often as it holds devices."""
        costs = sum((move.downtime_s + self.config.trouble_s) * len(move.then) for move in moves)
        saves = sum((move.saves_s + move.downtime_s) * len(move.then) for move in moves)
        paused = {job.id: job.spec.max_pause_s for job in snapshot.jobs}
        if any(move.downtime_s > paused[move.job] for move in moves):
            costs = float("inf")
        return Proposal(moves=tuple(moves), saves=saves, costs=costs)

    def _is_worth(self, proposal: Proposal) -> bool:
        main = proposal.moves[-1]
        gains_enough = main.step_now_s - main.step_then_s >= self.config.gain_min * main.step_now_s
        return gains_enough and proposal.saves >= self.config.margin * proposal.costs

    def _not_worth(self, job: Job, found: list[Proposal]) -> str:
        stays = f"stays scattered over {' and '.join(nodes_of(job.intended))}"
        together = [
            proposal for proposal in found if len(nodes_of(proposal.moves[-1].then)) < len(nodes_of(job.intended))
        ]
        if not together:
            return f"{stays}: no machine has, or can be given, room for more of its {job.workers} workers"
        best = together[0]
        main = best.moves[-1]
        if best.costs == float("inf"):
            longest_s = max(move.downtime_s for move in best.moves)
            return f"{stays}: the move would pause training for about {longest_s:.3g} s, more than max_pause_s allows"
        if main.step_now_s - main.step_then_s < self.config.gain_min * main.step_now_s:
            there = " and ".join(nodes_of(main.then))
            return f"{stays}: on {there} a step is predicted to take {main.step_then_s:.3g} s instead of {main.step_now_s:.3g} s"
        return (
            f"{stays}: moving would save about {max(0.0, best.saves):.3g} device seconds in the steps that are left and cost"
            f" {best.costs:.3g}; worth it from {self.config.margin:g} times the cost on"
        )


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def are(number: int) -> str:
    return f"{number} {'is' if number == 1 else 'are'}"
