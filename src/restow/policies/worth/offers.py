"""The places that there are for a job that waits, and what each of them would bring: offers, of which policy.py takes the best."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from restow.job import Job, JobState
from restow.placement import Placement, Slot, is_scattered
from restow.policies.worth.floor import Floor, Group
from restow.policies.worth.valuation import Valuation


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


class Offers:
    """On the floor as it is when asked."""

    def __init__(self, config: WorthConfig, valuation: Valuation, floor: Floor):
        self._config, self._valuation, self._floor = config, valuation, floor

    def free(self, job: Job) -> Iterator[Offer]:
        """Devices that nobody has, of each kind."""
        for kind in self._floor.room.kinds:
            placement = self._floor.room.find(job.workers, kind)
            if placement and (speed := self._speed_if_fit(job, placement)):
                words = f"starts on {kind}, where it has {speed:.2f} of its best speed"
                yield Offer(self._valuation.weight(job) * speed, placement, words)

    def _speed_if_fit(self, job: Job, placement: Placement) -> float:
        """0 where it would be much slower than it could be on this kind, and had better wait for a machine of its own."""
        speed = self._valuation.speed(job, placement)
        together = self._valuation.together(job, self._valuation.kind(placement))
        return 0.0 if is_scattered(placement) and speed < self._config.spread_min * together else speed

    def beside(self, job: Job) -> Iterator[Offer]:
        """The devices of one that has as many of them, shared with it."""
        if not job.share.allow:
            return
        for group in self._floor.still(size=1):
            [other] = group.jobs
            if other.workers != job.workers or not other.share.allow or other.pinned:
                continue
            here, there = self._valuation.speed(job, group.placement, [other]), self._valuation.speed(other, group.placement, [job])
            if here <= 0 or there <= 0:
                continue
            loss = self._valuation.weight(other) * (self._valuation.speed(other, group.placement) - there)
            worth = self._valuation.weight(job) * here - loss
            if worth > self._config.join_min * self._valuation.weight(job):
                words = f"shares devices with {other.id}: {here:.2f} of its best speed, {there:.2f} are left to {other.id}"
                yield Offer(worth, group.placement, words)

    def cleared(self, job: Job) -> Iterator[Offer]:
        """One machine for all of a gang, where enough devices of a kind are free, but nowhere together: the best of each kind."""
        if job.workers == 1:
            return
        by_machine: dict[str, list[Group]] = defaultdict(list)
        for group in self._floor.still():
            nodes = {node for node, _ in group.devices}
            if len(nodes) == 1 and all(may_move(other) for other in group.jobs):
                by_machine[nodes.pop()].append(group)
        best: dict[str, Offer] = {}
        for node, groups in sorted(by_machine.items()):
            kind = self._valuation.kind(groups[0].placement)
            free = self._floor.room.free_on(node, kind)
            if self._floor.room.free(kind) < job.workers or len(free) >= job.workers:
                continue
            offer = self._if_they_move(job, node, free, groups)
            if offer and (kind not in best or offer.worth > best[kind].worth):
                best[kind] = offer
        yield from best.values()

    def _if_they_move(self, job: Job, node: str, free: Placement, groups: list[Group]) -> Offer | None:
        """The smallest groups first, each to the tightest other machine. They are to lose nothing but the change itself."""
        kind = self._valuation.kind(groups[0].placement)
        aside: list[tuple[Job, Placement]] = []
        devices, cost = list(free), 0.0
        self._floor.room.take(free)
        for group in sorted(groups, key=lambda group: (len(group.devices), group.jobs[0].submitted_s, group.jobs[0].id)):
            if len(devices) >= job.workers:
                break
            there = self._floor.room.find(len(group.devices), kind)
            if there is None or (is_scattered(there) and not is_scattered(group.placement)):
                continue
            self._floor.room.take(there)
            aside += [(other, there) for other in group.jobs]
            devices += group.placement
            cost += self._valuation.worth(group.jobs, group.placement) * self._config.change_s
        for there in dict.fromkeys(placement for _, placement in aside):
            self._floor.room.give(there)
        self._floor.room.give(free)
        if len(devices) < job.workers:
            return None
        gain = self._valuation.weight(job) * self._valuation.together(job, kind)
        names = " and ".join(other.id for other, _ in aside)
        worth = gain - cost / min(self._valuation.left_s(job), HORIZON_S)
        words = f"starts on {node}, from which {names} moves aside"
        return Offer(worth, tuple(sorted(devices))[: job.workers], words, (), tuple(aside))

    def taken(self, job: Job) -> Offer | None:
        """On one machine, the devices of those that are worth least there."""
        by_machine: dict[str, list[tuple[float, Group]]] = defaultdict(list)
        for group in self._floor.still():
            nodes = {node for node, _ in group.devices}
            if len(nodes) == 1 and all(may_move(other) for other in group.jobs):
                lost = self._valuation.worth(group.jobs, group.placement)
                by_machine[nodes.pop()].append((lost / len(group.devices), group))
        best: Offer | None = None
        for groups in by_machine.values():
            groups.sort(key=lambda item: item[0])
            gain = self._valuation.weight(job) * self._valuation.together(job, self._valuation.kind(groups[0][1].placement))
            chosen, lost = [], 0.0
            left = job.workers
            for each, group in groups:
                if left > 0:
                    chosen.append(group)
                    lost += each * len(group.devices)
                    left -= len(group.devices)
            if left > 0 or gain <= self._config.take_min * lost or (best and gain - lost <= best.worth):
                continue
            placement = tuple(sorted(slot for group in chosen for slot in group.placement))[: job.workers]
            leaving = tuple(other for group in chosen for other in group.jobs)
            names = " and ".join(other.id for other in leaving)
            times = f"{gain / lost:.1f} times" if lost > 0 else "infinitely"
            words = f"takes the devices of {names}, to which they are worth {times} less"
            best = Offer(gain - lost, placement, words, leaving)
        return best

    def taken_from_many(self, job: Job) -> Offer | None:
        """On several machines of a kind: what is free there, and the devices of those that are worth least."""
        by_kind: dict[str, list[tuple[float, Group]]] = defaultdict(list)
        for group in self._floor.still():
            if all(may_move(other) for other in group.jobs):
                lost = self._valuation.worth(group.jobs, group.placement)
                by_kind[self._valuation.kind(group.placement)].append((lost / len(group.devices), group))
        best: Offer | None = None
        for kind, groups in sorted(by_kind.items()):
            free = self._floor.room.all_free(kind)
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
            gain = self._valuation.weight(job) * self._valuation.speed(job, placement)
            if gain > self._config.take_min * lost and (best is None or gain - lost > best.worth):
                leaving = tuple(other for _, group in needed for other in group.jobs)
                names = " and ".join(other.id for other in leaving)
                best = Offer(gain - lost, placement, f"takes devices of {names}, to which they are worth less", leaving)
        return best


def _on_fewest_machines(slots: list[Slot], workers: int) -> Placement:
    """So many of these, from the machines with most of them on."""
    counts = Counter(slot.node for slot in slots)
    ordered = sorted(slots, key=lambda slot: (-counts[slot.node], slot))
    return tuple(ordered[:workers])


def may_move(job: Job) -> bool:
    """May a policy move or suspend it?"""
    return job.state is JobState.RUNNING and job.movable and job.spec.migrate and not job.pinned
