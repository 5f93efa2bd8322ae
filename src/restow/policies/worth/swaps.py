"""Two jobs that change their places, each on devices that the other makes more of: one takes the other's at once, the other is
suspended and comes back on the first one's."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator

from restow.cluster import Snapshot
from restow.placement import Placement, Schedule
from restow.policies.board import why_not_back
from restow.policies.ranked import is_stuck
from restow.policies.worth.config import WorthConfig
from restow.policies.worth.floor import Floor, Group
from restow.policies.worth.prices import may_move
from restow.policies.worth.singles import Kin, Singles
from restow.policies.worth.valuation import Valuation

Key = tuple[Hashable, Hashable]
"""What a job is, and where."""

NEVER = (math.inf, 0.0)
"""A range of weights with nothing in it."""


class Swaps:
    """Kept from decision to decision: what was promised to whom is suspended."""

    def __init__(self, config: WorthConfig):
        self._config = config
        self._promised: dict[str, Placement] = {}  # job that gave up its place for another's → that one's old place
        self._ranges: dict[Key, dict[Key, tuple[float, float]]] = {}  # job and place, partner and place → weights that pay

    def keep_promises(self, snapshot: Snapshot, floor: Floor, schedule: Schedule) -> None:
        """The second half of a swap: the place that was left for a job is nobody else's until it is there."""
        jobs = {job.id: job for job in snapshot.jobs} if self._promised else {}
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

    def make(self, valuation: Valuation, floor: Floor, singles: Singles, schedule: Schedule) -> None:
        """Those that pay; the worthiest job chooses first. O(jobs x kinds of jobs)."""
        if singles.are_all_alike:
            return
        mine = [group for group in floor.still(size=1) if may_move(group.jobs[0])]
        mine.sort(key=lambda group: (-valuation.weight(group.jobs[0]), group.jobs[0].submitted_s, group.jobs[0].id))
        for group in mine:
            if floor.is_still(group):
                pays = self._that_pay(group, singles, valuation, floor)
                best = max(pays, key=lambda found: found[0], default=None)
                if best:
                    self._change(group, best[1], valuation, floor, schedule)

    def _that_pay(self, group: Group, singles: Singles, valuation: Valuation, floor: Floor) -> Iterator[tuple[float, Group]]:
        """What each would bring: with m and o for the weights of the two, a and b for their places,

            gain = m (mine at b - mine at a) + o (its at a - its at b) > swap_min (m mine at a + o its at b)

        which leaves for each kind of partner a range of o."""
        job = group.jobs[0]
        key, m = (valuation.alike(job), valuation.place(group.placement)), valuation.weight(job)
        ranges = self._ranges.setdefault(key, {})
        for kin in singles.of_size(job.workers):
            found = ranges.get(kin.key)
            if found is None:
                found = ranges[kin.key] = self._range(group, kin, valuation) if kin.key[1] != key[1] else NEVER
            if found is NEVER or not (m * found[0] < kin.weights[-1] and kin.weights[0] < m * found[1]):
                continue
            for other in kin.within(m * found[0], m * found[1]):
                if floor.is_still(other) and may_move(other.jobs[0]) and (gain := self._gain(group, other, valuation)) > 0:
                    yield gain, other

    def _range(self, group: Group, kin: Kin, valuation: Valuation) -> tuple[float, float]:
        """How many times the weight of the one the other's may be."""
        job, other = group.jobs[0], kin.job
        a, b = group.placement, kin.placement
        mine_a, mine_b, its_a, its_b = (valuation.speed(j, there) for j, there in ((job, a), (job, b), (other, a), (other, b)))
        ours = mine_b - mine_a - self._config.swap_min * mine_a
        theirs = its_a - its_b - self._config.swap_min * its_b
        if theirs >= 0:
            if ours > 0:
                return 0.0, math.inf
            return (-ours / theirs, math.inf) if theirs > 0 else NEVER
        return (0.0, ours / -theirs) if ours > 0 else NEVER

    def _gain(self, mine: Group, its: Group, valuation: Valuation) -> float:
        """0 if it does not pay."""
        job, other = mine.jobs[0], its.jobs[0]
        a, b = mine.placement, its.placement
        mine_weight, its_weight = valuation.weight(job), valuation.weight(other)
        now = mine_weight * valuation.speed(job, a) + its_weight * valuation.speed(other, b)
        gain = mine_weight * valuation.speed(job, b) + its_weight * valuation.speed(other, a) - now
        left_s = min(valuation.left_s(job), valuation.left_s(other))
        is_paid = gain * left_s > self._config.swap_pays * self._config.change_s * now
        return gain if gain > self._config.swap_min * now and is_paid else 0.0

    def _change(self, mine: Group, its: Group, valuation: Valuation, floor: Floor, schedule: Schedule) -> None:
        [job], [other] = mine.jobs, its.jobs
        self._promised[other.id] = mine.placement
        before, after = valuation.speed(job, mine.placement), valuation.speed(job, its.placement)
        floor.leave(other)
        floor.leave(job)
        floor.enter(job, its.placement)
        kind = valuation.kind(its.placement)
        words = f"{before:.2f} → {after:.2f} of its best speed predicted"
        schedule.explain(job.id, f"takes the place of {other.id} on {kind}: {words}")
        schedule.explain(other.id, f"suspended: {job.id} gains more from {kind}; goes on where that was")
