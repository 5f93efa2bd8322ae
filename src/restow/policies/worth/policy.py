"""Each device goes to whom it is worth most: who runs, on which kind, beside whom, and which moves pay, decided together.

From the worthiest waiting job on (valuation.py) each takes the best of what there is for it:

    a free place      the kind on which it is worth most; never one on which it is much slower spread than together
    a place beside    a job of the same size: what it is worth there, less what the other loses
    a machine         from which others move aside, to devices that are free elsewhere
    a place of others that are worth several times less there: these are suspended

Then running jobs move to free devices, and change places with others on another kind, where that brings enough more in the time
that is left to pay for the moves. Nothing else is touched, so that with nothing new nothing moves. O(waiting x groups + running^2)
at worst.

Jobs whose gangs may have several sizes share what is left: sizing.py.

It needs to know how fast jobs are on each kind (Snapshot.forecast). What a person has pinned, paused or forbidden to move it leaves
alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from restow.cluster import Forecast, Snapshot
from restow.job import Job, JobState
from restow.placement import Placement, Schedule, is_scattered
from restow.policies.board import why_not_back
from restow.policies.ranked import is_stuck
from restow.policies.room import Room
from restow.policies.worth.floor import Floor, Group
from restow.policies.worth.offers import Offers, WorthConfig, may_move
from restow.policies.worth.sizing import Fastest, Sizing, SizingConfig
from restow.policies.worth.valuation import Speeds, Valuation


@dataclass(slots=True)
class Worth:
    config: WorthConfig = field(default_factory=WorthConfig)
    sizing: SizingConfig = field(default_factory=SizingConfig)
    _speeds: Speeds = field(default_factory=Speeds)
    _fastest: Fastest = field(default_factory=Fastest)
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
        fixed = [job for job in snapshot.jobs if job.intended and is_fixed(job, snapshot.now_s)]
        floor = Floor.of(snapshot, [*fixed, *(job for job in snapshot.jobs if job.is_resizable)])
        for job in snapshot.jobs:
            if job.paused and floor.group_of(job):
                floor.leave(job)
                schedule.explain(job.id, f"is being paused, as was asked; restow resume {job.id} lets it go on")
        self._keep_promises(snapshot, floor, schedule)
        waiting = [job for job in snapshot.jobs if job.waits and not (floor.group_of(job) or job.pinned or job.is_resizable)]
        for job in sorted(waiting, key=lambda job: (-valuation.weight(job) / job.workers, job.submitted_s, job.id)):
            self._let_in(job, snapshot, valuation, floor, schedule)
        self._move(snapshot, valuation, floor, schedule)
        self._swap(valuation, floor, schedule)
        self._resize(snapshot, snapshot.forecast, {job.id for job in fixed}, floor, schedule)
        for job, placement in floor.placements():
            schedule.put(job.id, placement, schedule.reasons.get(job.id, ""))
        return schedule

    plan = decide

    def _resize(self, snapshot: Snapshot, forecast: Forecast, fixed: set[str], floor: Floor, schedule: Schedule) -> None:
        """Those whose gangs may have several sizes share what the others leave, with those that still wait."""
        jobs = [job for job in snapshot.jobs if job.is_resizable]
        if not jobs:
            return
        rigid = [job for job in snapshot.jobs if not (job.is_resizable or job.pinned or floor.group_of(job))]
        here = [job.placement for job in snapshot.jobs if not job.is_resizable]
        room = Room.of(snapshot, [*(placement for _, placement in floor.placements()), *here])
        placed = Sizing(self.sizing, snapshot, forecast, self._fastest, room, fixed).plan(rigid, schedule)
        for job in jobs:
            if floor.group_of(job) and job.id not in fixed:
                floor.leave(job)
        for job in (*jobs, *rigid):
            if job.id in placed:
                floor.enter(job, placed[job.id])

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
        offers = Offers(self.config, valuation, floor)
        best = max([*offers.free(job), *offers.beside(job), *offers.cleared(job)], key=lambda offer: offer.worth, default=None)
        taken = offers.taken(job) or offers.taken_from_many(job)
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


def is_fixed(job: Job, now_s: float) -> bool:
    """Is it in the middle of something, or did a person say where it is to be?"""
    return is_stuck(job, now_s) or bool(job.pinned) or job.state is not JobState.RUNNING
