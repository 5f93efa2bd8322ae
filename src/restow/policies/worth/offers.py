"""The places that there are for a job that waits, and what each of them would bring: offers, of which policy.py takes the best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from restow.job import Job
from restow.placement import Placement, is_scattered
from restow.policies.worth.config import WorthConfig
from restow.policies.worth.floor import Floor, Group
from restow.policies.worth.prices import Devices, Prices
from restow.policies.worth.singles import Singles
from restow.policies.worth.valuation import Valuation


@dataclass(frozen=True, slots=True)
class Offer:
    """A place for a job."""

    worth: float  # that it brings, what others lose taken off
    placement: Placement
    reason: str
    leaving: tuple[Job, ...] = ()  # who has to be suspended for it
    aside: tuple[tuple[Job, Placement], ...] = ()  # who has to move for it, and where


class Offers:
    """Of one decision, on the floor as it is when asked."""

    def __init__(self, config: WorthConfig, valuation: Valuation, floor: Floor, singles: Singles):
        self._config, self._valuation, self._floor, self._singles = config, valuation, floor, singles
        self._prices = Prices(valuation, floor)

    def best(self, job: Job) -> Offer | None:
        """Devices of others only where they bring far more than what there is otherwise."""
        offers = list(self._free(job))
        if self._config.shares:
            offers += self._beside(job)
        if self._config.moves:
            offers += self._cleared(job)
        best = max(offers, key=lambda offer: offer.worth, default=None)
        taken = self._taken(job)
        return taken if taken and (best is None or taken.worth > self._config.take_over * best.worth) else best

    # ------------------------------------------------------------ free devices

    def _free(self, job: Job) -> Iterator[Offer]:
        """Of each kind."""
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

    # ------------------------------------------------------------ shared ones

    def _beside(self, job: Job) -> Iterator[Offer]:
        """The devices of one that has as many of them, shared with it: the best one."""
        if not job.share.allow:
            return
        weight = self._valuation.weight(job)
        most, partner = self._config.join_min * weight, None
        for kin in self._singles.of_size(job.workers):
            here, loss = self._valuation.pair(job, kin.job, kin.placement)
            if here <= 0 or weight * here - loss * kin.weights[0 if loss > 0 else -1] <= most:
                continue
            for group in kin.groups if loss > 0 else reversed(kin.groups):
                if self._floor.is_still(group) and group.jobs[0].share.allow and not group.jobs[0].pinned:
                    worth = weight * here - loss * self._valuation.weight(group.jobs[0])
                    most, partner = (worth, group) if worth > most else (most, partner)
                    break
        if partner:
            [other] = partner.jobs
            here, there = (self._valuation.speed(a, partner.placement, [b]) for a, b in ((job, other), (other, job)))
            words = f"shares devices with {other.id}: {here:.2f} of its best speed, {there:.2f} are left to {other.id}"
            yield Offer(most, partner.placement, words)

    # ------------------------------------------------------------ devices that others leave

    def _cleared(self, job: Job) -> Iterator[Offer]:
        """One machine for all of a gang, where enough devices of a kind are free, but nowhere together: the best of each kind."""
        room = self._floor.room
        for kind in room.kinds if job.workers > 1 else ():
            if room.most_on_one(kind) < job.workers <= room.free(kind):
                found = (
                    self._if_they_move(job, kind, node, groups) for node, groups in sorted(self._prices.machines(kind).items())
                )
                best = max((offer for offer in found if offer), key=lambda offer: offer.worth, default=None)
                if best:
                    yield best

    def _if_they_move(self, job: Job, kind: str, node: str, groups: list[Group]) -> Offer | None:
        """The smallest groups first, each to the tightest other machine. They are to lose nothing but the change itself."""
        free = self._floor.room.free_on(node, kind)
        aside: list[tuple[Job, Placement]] = []
        devices, cost = list(free), 0.0
        self._floor.room.take(free)
        for group in sorted(groups, key=lambda group: (len(group.devices), group.jobs[0].submitted_s, group.jobs[0].id)):
            if len(devices) >= job.workers:
                break
            there = self._floor.room.find(len(group.devices), kind)
            if there is None or is_scattered(there):
                continue
            self._floor.room.take(there)
            aside += [(other, there) for other in group.jobs]
            devices += group.placement
            cost += self._valuation.worth(group) * self._config.change_s
        for there in dict.fromkeys(placement for _, placement in aside):
            self._floor.room.give(there)
        self._floor.room.give(free)
        if len(devices) < job.workers:
            return None
        gain = self._valuation.weight(job) * self._valuation.together(job, kind)
        names = " and ".join(other.id for other, _ in aside)
        worth = gain - cost / min(self._valuation.left_s(job), self._config.horizon_s)
        words = f"starts on {node}, from which {names} moves aside"
        return Offer(worth, tuple(sorted(devices))[: job.workers], words, (), tuple(aside))

    # ------------------------------------------------------------ devices of others

    def _taken(self, job: Job) -> Offer | None:
        """On one machine, else on several."""
        weight, workers = self._valuation.weight(job), job.workers
        for is_one, priced in ((True, self._prices.on_one), (False, self._prices.on_several)):
            best: tuple[float, float, Devices] | None = None
            for kind in self._prices.kinds:
                devices = priced(kind, workers)
                if devices is None:
                    continue
                speed = self._valuation.together(job, kind) if is_one else self._valuation.speed(job, devices.placement)
                gain, lost = weight * speed, devices.lost
                if gain > self._config.take_min * lost and (best is None or gain - lost > best[0]):
                    best = gain - lost, gain, devices
            if best:
                worth, gain, devices = best
                leaving = tuple(other for group in devices.groups for other in group.jobs)
                names = " and ".join(other.id for other in leaving)
                times = f"{gain / devices.lost:.1f} times" if devices.lost > 0 else "infinitely"
                words = f"takes devices of {names}, to which they are worth {times} less"
                return Offer(worth, devices.placement, words, leaving)
        return None
