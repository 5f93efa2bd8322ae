"""Each device goes to whom it is worth most: who runs, on which kind, beside whom, and which moves pay, decided together.

From the worthiest waiting job on (valuation.py) each takes the best of what there is for it:

    a free place      the kind on which it is worth most; never one on which it is much slower spread than together
    a place beside    a job of the same size: what it is worth there, less what the other loses
    a machine         from which others move aside, to devices that are free elsewhere
    a place of others that are worth several times less there: these are suspended

Jobs that say what they want of their machine (parts of devices, cores, memory) are packed before the others, see parts.py.

Then running jobs move to free devices, and change places with others on another kind, where that brings enough more in the time
that is left to pay for the moves. Nothing else is touched, so that with nothing new nothing moves. O(jobs x kinds of devices and
jobs) but for the placements that change.

Jobs whose gangs may have several sizes share what is left: sizing.py.

It needs to know how fast jobs are on each kind (Snapshot.forecast). What a person has pinned, paused or forbidden to move it leaves
alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from restow.cluster import Forecast, Snapshot
from restow.job import Job, JobState
from restow.placement import Placement, Schedule
from restow.policies.board import why_not_back
from restow.policies.ranked import is_stuck
from restow.policies.room import Room
from restow.policies.worth.config import WorthConfig
from restow.policies.worth.floor import Floor, Group
from restow.policies.worth.offers import Offer, Offers
from restow.policies.worth.parts import Parts
from restow.policies.worth.prices import may_move
from restow.policies.worth.singles import Singles
from restow.policies.worth.sizing import Fastest, Sizing, SizingConfig
from restow.policies.worth.swaps import Swaps
from restow.policies.worth.valuation import Speeds, Valuation


@dataclass(slots=True)
class Worth:
    config: WorthConfig = field(default_factory=WorthConfig)
    sizing: SizingConfig = field(default_factory=SizingConfig)
    _speeds: Speeds = field(default_factory=Speeds)
    _fastest: Fastest = field(default_factory=Fastest)
    _parts: Parts | None = None  # made when the first job comes that says what it wants of its machine
    _swaps: Swaps = field(init=False)

    def __post_init__(self) -> None:
        self._swaps = Swaps(self.config)

    def decide(self, snapshot: Snapshot) -> Schedule:
        schedule = Schedule()
        if snapshot.forecast is None:
            for job in snapshot.jobs:
                schedule.explain(job.id, "nothing is known of how fast jobs are; this policy needs measured speeds")
                if job.intended:
                    schedule.put(job.id, job.intended)
            return schedule
        valuation = Valuation(
            snapshot, snapshot.forecast, self._speeds, first_s=self.config.first_s, power=self.config.power,
            urgency=self.config.urgency,
        )
        fixed = [job for job in snapshot.jobs if job.intended and is_fixed(job, snapshot.now_s)]
        floor = Floor.of(snapshot, [*fixed, *(job for job in snapshot.jobs if job.is_resizable)])
        for job in snapshot.jobs:
            if job.paused and floor.group_of(job):
                floor.leave(job)
                schedule.explain(job.id, f"is being paused, as was asked; restow resume {job.id} lets it go on")
        self._swaps.keep_promises(snapshot, floor, schedule)
        if any(job.spec.demand.is_declared for job in snapshot.jobs):
            self._parts = self._parts or Parts(self.config)
            for placement in self._parts.place(snapshot, valuation, schedule):
                floor.room.take(placement)
        singles = Singles(valuation, floor)
        self._let_in(snapshot, valuation, floor, singles, schedule)
        if self.config.moves:
            self._move(snapshot, valuation, floor, schedule)
            self._swaps.make(valuation, floor, singles, schedule)
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

    # ------------------------------------------------------------ who waits

    def _let_in(self, snapshot: Snapshot, valuation: Valuation, floor: Floor, singles: Singles, schedule: Schedule) -> None:
        waiting = [job for job in snapshot.jobs if job.waits and not (floor.group_of(job) or job.pinned or is_apart(job))]
        if not waiting:
            return
        offers = Offers(self.config, valuation, floor, singles)
        in_vain: dict[Hashable, int] = {}  # what found no place → version of the floor then: one worth less finds none either
        for job in sorted(waiting, key=lambda job: (-valuation.weight(job) / job.workers, job.submitted_s, job.id)):
            key = valuation.alike(job), job.share.allow
            if why_not := why_not_back(job, snapshot):
                schedule.explain(job.id, why_not)
            elif in_vain.get(key) != floor.version and (offer := offers.best(job)):
                _accept(job, offer, floor, schedule)
            else:
                in_vain[key] = floor.version
                schedule.explain(job.id, f"waits: no place for its {job.workers} is worth it now")

    # ------------------------------------------------------------ who runs

    def _move(self, snapshot: Snapshot, valuation: Valuation, floor: Floor, schedule: Schedule) -> None:
        """To devices that are free now, and not only promised."""
        if not floor.room.free():
            return
        here = [job.intended for job in snapshot.jobs] + [job.placement for job in snapshot.jobs]
        room = Room.of(snapshot, [*(placement for _, placement in floor.placements()), *here])
        running = [job for group in floor.still() for job in group.jobs if may_move(job)] if room.free() else []
        places: dict[int, list[Placement]] = {}  # workers → one of each kind
        for job in sorted(running, key=lambda job: (-valuation.weight(job), job.submitted_s, job.id)):
            group = floor.group_of(job)
            if group is None or not floor.is_still(group):
                continue
            if job.workers not in places:
                places[job.workers] = [found for kind in room.kinds if (found := room.find(job.workers, kind))]
            then = self._where_it_pays(job, group, places[job.workers], valuation)
            if then:
                before = valuation.speed(job, group.placement, [other for other in group.jobs if other is not job])
                floor.leave(job)
                floor.enter(job, then)
                room.take(then)
                places.clear()
                words = f"{before:.2f} → {valuation.speed(job, then):.2f} of its best speed predicted"
                schedule.explain(job.id, f"moves to {valuation.kind(then)}: {words}")

    def _where_it_pays(self, job: Job, group: Group, places: Sequence[Placement], valuation: Valuation) -> Placement:
        """Of these places the one that brings most; empty if none brings enough."""
        now, weight = valuation.worth(group), valuation.weight(job)
        others = sum(valuation.weight(o) * valuation.speed(o, group.placement) for o in group.jobs if o is not job)
        most = self.config.move_min * now
        best: Placement = ()
        for placement in places:
            gain = weight * valuation.speed(job, placement) + others - now
            if gain > most and gain * valuation.left_s(job) > self.config.pays * self.config.change_s * weight:
                most, best = gain, placement
        return best


def _accept(job: Job, offer: Offer, floor: Floor, schedule: Schedule) -> None:
    for other in offer.leaving:
        floor.leave(other)
        schedule.explain(other.id, f"suspended: its devices are worth more to {job.id}, which will be done sooner")
    for other, _ in offer.aside:
        floor.leave(other)
    for other, placement in offer.aside:
        floor.enter(other, placement)
        schedule.explain(other.id, f"moves aside, so that {job.id} has a machine for all of its gang")
    floor.enter(job, offer.placement)
    schedule.explain(job.id, offer.reason)


def is_apart(job: Job) -> bool:
    """Is it given devices in another way: of a size that is chosen, or parts of them?"""
    return job.is_resizable or job.spec.demand.is_declared


def is_fixed(job: Job, now_s: float) -> bool:
    """Is it in the middle of something, or did a person say where it is to be?"""
    return is_stuck(job, now_s) or bool(job.pinned) or job.state is not JobState.RUNNING
