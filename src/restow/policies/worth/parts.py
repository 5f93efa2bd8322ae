"""Jobs that say what they want of their machine, a part of a device for example: each goes where least is lost for those that there
are (packing/fragments.py), and where there is no room for one, another moves aside, if there is room for that one elsewhere.

Such jobs are not suspended for each other: who is worth more goes first, and that is all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy

from restow.cluster import Snapshot
from restow.job import Job
from restow.placement import Placement, Schedule, same_devices
from restow.policies.board import why_not_back
from restow.policies.packing.fragments import Fragments
from restow.policies.packing.ground import Bools, Left
from restow.policies.packing.packing import Packing
from restow.policies.packing.wants import Want, want_of
from restow.policies.ranked import is_stuck
from restow.policies.worth.config import WorthConfig
from restow.policies.worth.prices import may_move
from restow.policies.worth.valuation import Valuation


class Parts:
    """Kept from decision to decision."""

    def __init__(self, config: WorthConfig):
        self._config = config
        self._packing = Packing(Fragments.less_lost)
        self._in_vain: dict[Want, int] = {}  # there was no room for it, even if one moved → how often places had been left by then

    def place(self, snapshot: Snapshot, valuation: Valuation, schedule: Schedule) -> Iterator[Placement]:
        """All of them; gives what is taken newly."""
        packing = self._packing
        packing.renew(snapshot)
        waiting = []
        for job in snapshot.jobs:
            if not job.spec.demand.is_declared:
                continue
            if job.intended and not job.paused:
                schedule.put(job.id, job.intended)
            elif job.waits and not job.intended and not job.pinned:
                waiting.append(job)
        movers: Movers | None = None
        for job in sorted(waiting, key=lambda job: (-valuation.weight(job) / job.workers, job.submitted_s, job.id)):
            want = want_of(job)
            if why_not := why_not_back(job, snapshot):
                schedule.explain(job.id, why_not)
                continue
            if self._in_vain.get(want) == packing.ground.freed:
                schedule.explain(job.id, "waits: no machine has as much left as it wants")
                continue
            found = packing.find(job, snapshot)
            reason = "starts where least is lost for others"
            if found is None:
                movers = movers or Movers(snapshot, packing)
                if moved := movers.clear(job, valuation, self._config):
                    other, there = moved
                    schedule.put(other.id, there, f"moves aside, so that {job.id} has room")
                    yield there
                    found, reason = packing.find(job, snapshot), f"starts where {other.id} makes room"
            if found is None:
                self._in_vain[want] = packing.ground.freed
                schedule.explain(job.id, "waits: no machine has as much left as it wants")
                continue
            schedule.put(job.id, found[1], reason)
            packing.ground.take(job, found[1])
            yield found[1]


class Movers:
    """Jobs that can make room for another by going elsewhere, in one decision. Nobody moves to where somebody is about to leave:
    two could wait for each other."""

    def __init__(self, snapshot: Snapshot, packing: Packing):
        self._snapshot, self._packing = snapshot, packing
        self._by_want: dict[Want, list[Job]] = defaultdict(list)
        self._unsettled: Bools = numpy.zeros(len(packing.ground.names), dtype=bool)
        index = {name: at for at, name in enumerate(packing.ground.names)}
        between = [slot.node for slot in snapshot.residue]
        for job in snapshot.jobs:
            if job.switch or (job.placement and not same_devices(job.placement, job.intended)):
                between += [slot.node for slot in (*job.placement, *job.intended)]
            elif job.intended and job.spec.demand.is_declared and may_move(job) and not is_stuck(job, snapshot.now_s):
                self._by_want[want_of(job)].append(job)
        self._unsettled[[index[node] for node in between if node in index]] = True

    def clear(self, job: Job, valuation: Valuation, config: WorthConfig) -> tuple[Job, Placement] | None:
        """Who moves, and where to, so that there is room for `job`: of all ways the one by which least is lost. The ground is as if
        it had moved already."""
        packing, best = self._packing, None
        worth = valuation.weight(job) * min(valuation.left_s(job), config.horizon_s)
        for movers in self._by_want.values():
            paying = [other for other in movers if worth > valuation.weight(other) * config.change_s]
            found = packing.find(paying[0], self._snapshot, without=self._unsettled) if paying else None
            if found is None:
                continue
            way = self._best_of(job, paying, found[1])
            if way and (best is None or way[0] + found[0] > best[0]):
                best = way[0] + found[0], way[1], found[1]
        if best is None:
            return None
        _, other, there = best
        self._by_want[want_of(other)].remove(other)
        self._unsettled[packing.ground.where(other.id)[0]] = True
        packing.ground.take(other, there)
        return other, there

    def _best_of(self, job: Job, movers: list[Job], there: Placement) -> tuple[float, Job] | None:
        """Of jobs that want the same: by whose leaving least is lost."""
        ground, want = self._packing.ground, want_of(movers[0])
        allowed = self._packing.allowed(self._packing.kinds.of(job, self._snapshot))
        places: dict[tuple[int, ...], Job] = {}
        for other in movers:
            at, columns = ground.where(other.id)
            if allowed[at] and ground.names[at] != there[0].node:
                places.setdefault((at, *columns), other)
        if not places:
            return None
        now = ground.left.some(numpy.array([at for at, *_ in places]))
        freed = Left(now.parts.copy(), now.cores + want.cores, now.host + want.host_bytes, now.at)
        for row, (_, *columns) in enumerate(places):
            freed.parts[row, columns] += want.parts
        score, _ = self._packing.packer.judge(want_of(job), freed)
        if numpy.all(score == -numpy.inf):
            return None
        score = score + self._packing.packer.gain(now, freed)
        row = int(numpy.argmax(score))
        return float(score[row]), list(places.values())[row]
