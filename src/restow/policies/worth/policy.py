"""Each device goes to whom it is worth most: who runs, on which kind, beside whom, and which moves pay, decided together.

From the worthiest waiting job on (valuation.py) each takes the best of what there is for it:

    a free place      the kind on which it is worth most; never one on which it is much slower spread than together
    a place beside    a job of the same size: what it is worth there, less what the other loses
    a machine         from which others move aside, to devices that are free elsewhere
    a place of others that are worth several times less there: these are suspended

Then running jobs move to free devices, and change places with others on another kind, where that brings enough more in the time
that is left to pay for the moves. Nothing else is touched, so that with nothing new nothing moves. O(waiting x groups + running^2)
at worst.

It needs to know how fast jobs are on each kind (Snapshot.forecast). What a person has pinned, paused or forbidden to move it leaves
alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from restow.cluster import Snapshot
from restow.job import Job, JobState
from restow.placement import Placement, Schedule, Slot, is_scattered
from restow.policies.board import why_not_back
from restow.policies.ranked import is_stuck
from restow.policies.room import Room
from restow.policies.worth.floor import Floor, Group
from restow.policies.worth.valuation import Speeds, Valuation


@dataclass(frozen=True, slots=True, kw_only=True)
class WorthConfig:
    first_s: float = 7200.0  # what a job that does not say how long it is counts as having left when it has just come
    power: float = 0.8  # of what is left: 1 is best for the average completion time, less for the longest ones
    spread_min: float = 0.8  # of its speed together, that a gang must have on several machines to be started there
    join_min: float = 0.05  # of its worth, that must be left to a job beside another when that one's loss is taken off
    take_min: float = 2.0  # a job must be worth so many times what those are whose devices it takes ...
    take_over: float = 2.0  # ... and bring so many times what it would bring elsewhere
    move_min: float = 0.15  # of the worth of all concerned, that a move must bring ...
    swap_min: float = 0.2  # ... and that two jobs must bring that change their places
    change_s: float = 60.0  # what a change is taken to cost each job, with all that follows from it
    pays: float = 2.0  # what a move brings in the time that is left must be so many times what it costs ...
    swap_pays: float = 6.0  # ... and of a swap, for which both are suspended


HORIZON_S = 3600.0  # over which what a move costs is spread, at most


@dataclass(frozen=True, slots=True)
class Offer:
    """A place for a job."""

    worth: float  # that it brings, what others lose taken off
    placement: Placement
    reason: str
    leaving: tuple[Job, ...] = ()  # who has to be suspended for it
    aside: tuple[tuple[Job, Placement], ...] = ()  # who has to move for it, and where


@dataclass(slots=True)
class Worth:
    config: WorthConfig = field(default_factory=WorthConfig)
    _speeds: Speeds = field(default_factory=Speeds)
    _promised: dict[str, Placement] = field(default_factory=dict)  # job that gave up its place for another's → that one's old place

    def decide(self, snapshot: Snapshot) -> Schedule:
        schedule = Schedule()
        if snapshot.forecast is None:
            for job in snapshot.jobs:
                schedule.explain(job.id, "nothing is known of how fast jobs are; this policy needs measured speeds")
                if job.intended:
                    schedule.put(job.id, job.intended)
            return schedule
        valuation = Valuation(
            snapshot, snapshot.forecast, self._speeds, first_s=self.config.first_s, power=self.config.power
        )
        floor = Floor.of(snapshot, [job for job in snapshot.jobs if job.intended and is_fixed(job, snapshot.now_s)])
        for job in snapshot.jobs:
            if job.paused and floor.group_of(job):
                floor.leave(job)
                schedule.explain(job.id, f"is being paused, as was asked; restow resume {job.id} lets it go on")
        self._keep_promises(snapshot, floor, schedule)
        waiting = [job for job in snapshot.jobs if job.waits and not floor.group_of(job) and not job.pinned]
        for job in sorted(waiting, key=lambda job: (-valuation.weight(job) / job.workers, job.submitted_s, job.id)):
            self._let_in(job, snapshot, valuation, floor, schedule)
        self._move(snapshot, valuation, floor, schedule)
        self._swap(valuation, floor, schedule)
        for job, placement in floor.placements():
            schedule.put(job.id, placement, schedule.reasons.get(job.id, ""))
        return schedule

    plan = decide

    def _keep_promises(self, snapshot: Snapshot, floor: Floor, schedule: Schedule) -> None:
        """The second half of a swap: the place that was left for a job is nobody else's until it is there."""
        jobs = {job.id: job for job in snapshot.jobs}
        for id, placement in list(self._promised.items()):
            job = jobs.get(id)
            if job is None or job.paused or (job.intended and not is_stuck(job, snapshot.now_s)):
                del self._promised[id]  # it is somewhere, or nowhere any more
            elif job.waits and not job.intended and floor.is_free(placement) and not why_not_back(job, snapshot):
                del self._promised[id]
                floor.enter(job, placement)
                schedule.explain(id, "goes on where the one was that has its place now")
            else:
                floor.room.take(placement)

    # ------------------------------------------------------------ who waits

    def _let_in(self, job: Job, snapshot: Snapshot, valuation: Valuation, floor: Floor, schedule: Schedule) -> None:
        if why_not := why_not_back(job, snapshot):
            schedule.explain(job.id, why_not)
            return
        offers = [
            *self._free(job, valuation, floor), *self._beside(job, valuation, floor), *self._cleared(job, valuation, floor)
        ]  # fmt: skip
        best = max(offers, key=lambda offer: offer.worth, default=None)
        taken = self._taken(job, valuation, floor) or self._taken_from_many(job, valuation, floor)
        if taken and (best is None or taken.worth > self.config.take_over * best.worth):
            best = taken
        if best is None:
            schedule.explain(job.id, f"waits: no place for its {job.workers} is worth it now")
            return
        for other in best.leaving:
            floor.leave(other)
            schedule.explain(other.id, f"suspended: its devices are worth more to {job.id}, which will be done sooner")
        for other, _ in best.aside:
            floor.leave(other)
        for other, placement in best.aside:
            floor.enter(other, placement)
            schedule.explain(other.id, f"moves aside, so that {job.id} has a machine for all of its gang")
        floor.enter(job, best.placement)
        schedule.explain(job.id, best.reason)

    def _free(self, job: Job, valuation: Valuation, floor: Floor) -> Iterator[Offer]:
        for kind in floor.room.kinds:
            placement = floor.room.find(job.workers, kind)
            if placement and (speed := self._speed_if_fit(job, placement, valuation)):
                words = f"starts on {kind}, where it has {speed:.2f} of its best speed"
                yield Offer(valuation.weight(job) * speed, placement, words)

    def _speed_if_fit(self, job: Job, placement: Placement, valuation: Valuation) -> float:
        """0 where it would be much slower than it could be on this kind, and had better wait for a machine of its own."""
        speed = valuation.speed(job, placement)
        if is_scattered(placement) and speed < self.config.spread_min * valuation.together(job, valuation.kind(placement)):
            return 0.0
        return speed

    def _beside(self, job: Job, valuation: Valuation, floor: Floor) -> Iterator[Offer]:
        if not job.share.allow:
            return
        for group in floor.still(size=1):
            [other] = group.jobs
            if other.workers != job.workers or not other.share.allow or other.pinned:
                continue
            here, there = valuation.speed(job, group.placement, [other]), valuation.speed(other, group.placement, [job])
            if here <= 0 or there <= 0:
                continue
            loss = valuation.weight(other) * (valuation.speed(other, group.placement) - there)
            worth = valuation.weight(job) * here - loss
            if worth > self.config.join_min * valuation.weight(job):
                words = f"shares devices with {other.id}: {here:.2f} of its best speed, {there:.2f} are left to {other.id}"
                yield Offer(worth, group.placement, words)

    def _cleared(self, job: Job, valuation: Valuation, floor: Floor) -> Iterator[Offer]:
        """One machine for all of a gang, where enough devices of a kind are free, but nowhere together: the best of each kind."""
        if job.workers == 1:
            return
        by_machine: dict[str, list[Group]] = defaultdict(list)
        for group in floor.still():
            nodes = {node for node, _ in group.devices}
            if len(nodes) == 1 and all(may_move(other) for other in group.jobs):
                by_machine[nodes.pop()].append(group)
        best: dict[str, Offer] = {}
        for node, groups in sorted(by_machine.items()):
            kind = valuation.kind(groups[0].placement)
            free = floor.room.free_on(node, kind)
            if floor.room.free(kind) < job.workers or len(free) >= job.workers:
                continue
            offer = self._if_they_move(job, node, free, groups, valuation, floor)
            if offer and (kind not in best or offer.worth > best[kind].worth):
                best[kind] = offer
        yield from best.values()

    def _if_they_move(
        self, job: Job, node: str, free: Placement, groups: list[Group], valuation: Valuation, floor: Floor
    ) -> Offer | None:
        """The smallest groups first, each to the tightest other machine. They are to lose nothing but the change itself."""
        kind = valuation.kind(groups[0].placement)
        aside: list[tuple[Job, Placement]] = []
        devices, cost = list(free), 0.0
        floor.room.take(free)
        for group in sorted(groups, key=lambda group: (len(group.devices), group.jobs[0].submitted_s, group.jobs[0].id)):
            if len(devices) >= job.workers:
                break
            there = floor.room.find(len(group.devices), kind)
            if there is None or (is_scattered(there) and not is_scattered(group.placement)):
                continue
            floor.room.take(there)
            aside += [(other, there) for other in group.jobs]
            devices += group.placement
            cost += valuation.worth(group.jobs, group.placement) * self.config.change_s
        for there in {placement for _, placement in aside}:
            floor.room.give(there)
        floor.room.give(free)
        if len(devices) < job.workers:
            return None
        gain = valuation.weight(job) * valuation.together(job, kind)
        names = " and ".join(other.id for other, _ in aside)
        worth = gain - cost / min(valuation.left_s(job), HORIZON_S)
        words = f"starts on {node}, from which {names} moves aside"
        return Offer(worth, tuple(sorted(devices))[: job.workers], words, (), tuple(aside))

    def _taken(self, job: Job, valuation: Valuation, floor: Floor) -> Offer | None:
        """On one machine, the devices of those that are worth least there."""
        by_machine: dict[str, list[tuple[float, Group]]] = defaultdict(list)
        for group in floor.still():
            nodes = {node for node, _ in group.devices}
            if len(nodes) == 1 and all(may_move(other) for other in group.jobs):
                lost = valuation.worth(group.jobs, group.placement)
                by_machine[nodes.pop()].append((lost / len(group.devices), group))
        best: Offer | None = None
        for groups in by_machine.values():
            groups.sort(key=lambda item: item[0])
            gain = valuation.weight(job) * valuation.together(job, valuation.kind(groups[0][1].placement))
            chosen, lost = [], 0.0
            left = job.workers
            for each, group in groups:
                if left > 0:
                    chosen.append(group)
                    lost += each * len(group.devices)
                    left -= len(group.devices)
            if left > 0 or gain <= self.config.take_min * lost or (best and gain - lost <= best.worth):
                continue
            placement = tuple(sorted(slot for group in chosen for slot in group.placement))[: job.workers]
            leaving = tuple(other for group in chosen for other in group.jobs)
            names = " and ".join(other.id for other in leaving)
            times = f"{gain / lost:.1f} times" if lost > 0 else "infinitely"
            words = f"takes the devices of {names}, to which they are worth {times} less"
            best = Offer(gain - lost, placement, words, leaving)
        return best

    def _taken_from_many(self, job: Job, valuation: Valuation, floor: Floor) -> Offer | None:
        """On several machines of a kind: what is free there, and the devices of those that are worth least."""
        by_kind: dict[str, list[tuple[float, Group]]] = defaultdict(list)
        for group in floor.still():
            if all(may_move(other) for other in group.jobs):
                lost = valuation.worth(group.jobs, group.placement)
                by_kind[valuation.kind(group.placement)].append((lost / len(group.devices), group))
        best: Offer | None = None
        for kind, groups in sorted(by_kind.items()):
            free = floor.room.all_free(kind)
            chosen: list[tuple[float, Group]] = []
            count = len(free)
            for each, group in sorted(groups, key=lambda item: item[0]):
                if count < job.workers:
                    chosen.append((each, group))
                    count += len(group.devices)
            if count < job.workers or not chosen:
                continue
            placement = _on_fewest_machines([*free, *(slot for _, group in chosen for slot in group.placement)], job.workers)
            needed = [(each, group) for each, group in chosen if group.devices & {slot[:2] for slot in placement}]
            lost = sum(each * len(group.devices) for each, group in needed)
            gain = valuation.weight(job) * valuation.speed(job, placement)
            if gain > self.config.take_min * lost and (best is None or gain - lost > best.worth):
                leaving = tuple(other for _, group in needed for other in group.jobs)
                names = " and ".join(other.id for other in leaving)
                best = Offer(gain - lost, placement, f"takes devices of {names}, to which they are worth less", leaving)
        return best

    # ------------------------------------------------------------ who runs

    def _move(self, snapshot: Snapshot, valuation: Valuation, floor: Floor, schedule: Schedule) -> None:
        """To devices that are free now, and not only promised."""
        here = [job.intended for job in snapshot.jobs] + [job.placement for job in snapshot.jobs]
        room = Room.of(snapshot, [*(placement for _, placement in floor.placements()), *here])
        running = [job for group in floor.still() for job in group.jobs if may_move(job)]
        for job in sorted(running, key=lambda job: (-valuation.weight(job), job.submitted_s, job.id)):
            group = floor.group_of(job)
            if group is None or any(other.id in floor.touched for other in group.jobs):
                continue
            now = valuation.worth(group.jobs, group.placement)
            others = valuation.worth([other for other in group.jobs if other is not job], group.placement)
            best: tuple[float, Placement] | None = None
            for kind in room.kinds:
                placement = room.find(job.workers, kind)
                if placement is None:
                    continue
                gain = valuation.weight(job) * valuation.speed(job, placement) + others - now
                is_enough = gain > self.config.move_min * now
                is_paid = gain * valuation.left_s(job) > self.config.pays * self.config.change_s * valuation.weight(job)
                if is_enough and is_paid and (best is None or gain > best[0]):
                    best = gain, placement
            if best:
                before = valuation.speed(job, group.placement, [other for other in group.jobs if other is not job])
                floor.leave(job)
                floor.enter(job, best[1])
                room.take(best[1])
                after = valuation.speed(job, best[1])
                words = f"{before:.2f} → {after:.2f} of its best speed predicted"
                schedule.explain(job.id, f"moves to {valuation.kind(best[1])}: {words}")

    def _swap(self, valuation: Valuation, floor: Floor, schedule: Schedule) -> None:
        """A job takes the place of another, which is suspended and comes back on the first one's."""
        single = [group for group in floor.still(size=1) if may_move(group.jobs[0])]
        single.sort(key=lambda group: (-valuation.weight(group.jobs[0]), group.jobs[0].submitted_s, group.jobs[0].id))
        for group in single:
            job = group.jobs[0] if group.jobs else None
            if job is None or job.id in floor.touched:
                continue
            best: tuple[float, Group] | None = None
            for other in reversed(single):
                is_gone = other is group or not other.jobs or other.jobs[0].id in floor.touched
                if is_gone or other.jobs[0].workers != job.workers:
                    continue
                gain = self._gain_of_swap(job, group, other.jobs[0], other, valuation)
                if gain > 0 and (best is None or gain > best[0]):
                    best = gain, other
            if best:
                other_job, there = best[1].jobs[0], best[1].placement
                self._promised[other_job.id] = group.placement
                floor.leave(other_job)
                floor.leave(job)
                floor.enter(job, there)
                before, after, kind = valuation.speed(job, group.placement), valuation.speed(job, there), valuation.kind(there)
                words = f"{before:.2f} → {after:.2f} of its best speed predicted"
                schedule.explain(job.id, f"takes the place of {other_job.id} on {kind}: {words}")
                schedule.explain(other_job.id, f"suspended: {job.id} gains more from {kind}; goes on where that was")

    def _gain_of_swap(self, job: Job, mine: Group, other: Job, its: Group, valuation: Valuation) -> float:
        """0 if it does not pay."""
        a, b = mine.placement, its.placement
        if valuation.kind(a) == valuation.kind(b) and is_scattered(a) == is_scattered(b):
            return 0.0
        mine_weight, its_weight = valuation.weight(job), valuation.weight(other)
        now = mine_weight * valuation.speed(job, a) + its_weight * valuation.speed(other, b)
        gain = mine_weight * valuation.speed(job, b) + its_weight * valuation.speed(other, a) - now
        left_s = min(valuation.left_s(job), valuation.left_s(other))
        is_paid = gain * left_s > self.config.swap_pays * self.config.change_s * now
        return gain if gain > self.config.swap_min * now and is_paid else 0.0


def _on_fewest_machines(slots: list[Slot], workers: int) -> Placement:
    """So many of these, from the machines with most of them on."""
    counts = Counter(slot.node for slot in slots)
    ordered = sorted(slots, key=lambda slot: (-counts[slot.node], slot))
    return tuple(ordered[:workers])


def is_fixed(job: Job, now_s: float) -> bool:
    """Is it in the middle of something, or did a person say where it is to be?"""
    return is_stuck(job, now_s) or bool(job.pinned) or job.state is not JobState.RUNNING


def may_move(job: Job) -> bool:
    """May a policy move or suspend it?"""
    return job.state is JobState.RUNNING and job.movable and job.spec.migrate and not job.pinned
