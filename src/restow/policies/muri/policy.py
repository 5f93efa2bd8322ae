"""Muri: up to four jobs share the same devices, grouped so that they need different things at the same time (Zhao et al.,
SIGCOMM 2022).

Muri-S takes jobs by what is left of them, time by devices, the least first; Muri-L, where lengths are not known, by what they have
had. Groups are found anew when jobs or devices have come or gone (grouping.py); in between everybody goes where its group is. A
group has the devices on which most of its jobs are already. Whoever is elsewhere gives its devices back first and comes in when
there is room, so that nobody waits in a circle.

It needs to know the stages of a job's step: of the forecast, else of its profile. Before they are known a job has its devices to
itself. After a restart groups are found anew.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from restow.cluster import Snapshot
from restow.job import Job, Sharing
from restow.placement import Placement, Schedule
from restow.policies.board import why_not_back
from restow.policies.muri.grouping import Group, Member, grouped
from restow.policies.muri.interleaving import MOST, Stages
from restow.policies.ranked import is_stuck, remaining_s
from restow.policies.room import Room
from restow.policies.sharing import fits

Devices = frozenset[tuple[str, int]]


@dataclass(slots=True)
class Muri:
    """`knows_lengths`: Muri-S, else Muri-L. `most`: jobs in a group. O(jobs of a size^3) when jobs have come or gone."""

    knows_lengths: bool = True
    most: int = MOST
    _found_for: tuple[int, frozenset[tuple[str, bool]]] = (0, frozenset())  # devices; jobs, and of which the stages are known
    _groups: list[tuple[str, ...]] = field(default_factory=list)
    _possible: dict[tuple[object, ...], bool] = field(default_factory=dict)

    def decide(self, snapshot: Snapshot) -> Schedule:
        jobs = {job.id: job for job in snapshot.jobs if not job.paused}
        devices = sum(len(node.devices) for node in snapshot.nodes if node.is_alive and not node.is_cordoned)
        found_for = devices, frozenset((id, stages_of(snapshot, job) is not None) for id, job in jobs.items())
        if found_for != self._found_for:
            self._found_for = found_for
            self._groups = self._find_groups(snapshot, list(jobs.values()), devices)
        groups = [[jobs[id] for id in group if not why_not_back(jobs[id], snapshot)] for group in self._groups]
        return _placed(snapshot, jobs, [group for group in groups if group])

    plan = decide

    def _find_groups(self, snapshot: Snapshot, jobs: Sequence[Job], devices: int) -> list[tuple[str, ...]]:
        def rank(job: Job) -> tuple[Any, ...]:
            left_s = remaining_s(snapshot, job) * job.workers if self.knows_lengths else 0.0
            return -job.spec.priority, left_s, job.service_s(snapshot.now_s), job.submitted_s, job.id

        by_id = {job.id: job for job in jobs}

        def is_possible(group: Group) -> bool:
            return self._are_possible(snapshot, [by_id[member.id] for member in group])

        members = [Member(job.id, job.workers, stages_of(snapshot, job), _alone_s(snapshot, job)) for job in sorted(jobs, key=rank)]
        return [tuple(member.id for member in group) for group in grouped(members, devices, is_possible, self.most)]

    def _are_possible(self, snapshot: Snapshot, jobs: Sequence[Job]) -> bool:
        """May they share, and can they, as far as anybody knows?"""
        if any(job.share.is_exclusive or job.pinned for job in jobs) or fits(jobs, snapshot) == "swap":
            return False
        forecast = snapshot.forecast
        if forecast is None:
            return True
        key = (jobs[0].workers, *sorted(job.spec.name or job.id for job in jobs))
        if key not in self._possible:
            there = _find(Room(snapshot.nodes), jobs[0].workers)
            self._possible[key] = bool(there) and all(
                math.isfinite(forecast.step_s(job, there, [(other, there) for other in jobs if other is not job])) for job in jobs
            )
        return self._possible[key]


def stages_of(snapshot: Snapshot, job: Job) -> Stages | None:
    """None: not known."""
    if snapshot.forecast:
        return snapshot.forecast.stages_s(job)
    profile = job.profile
    if profile.step_s <= 0:
        return None
    return profile.data_s, max(0.0, profile.step_s - profile.data_s - profile.exposed_s), profile.exposed_s


def _alone_s(snapshot: Snapshot, job: Job) -> float:
    return snapshot.forecast.alone_s(job) if snapshot.forecast else job.profile.alone_step_s or job.profile.step_s


def _placed(snapshot: Snapshot, jobs: dict[str, Job], groups: Sequence[Sequence[Job]]) -> Schedule:
    schedule = Schedule()
    homes = _homes(groups)
    there: dict[Devices, list[tuple[Job, Placement]]] = {}  # who is to be on these devices
    for job in jobs.values():
        if job.intended and (is_stuck(job, snapshot.now_s) or homes.get(job.id) == devices_of(job)):
            there.setdefault(devices_of(job), []).append((job, job.intended))
        elif job.intended:
            schedule.explain(job.id, "suspended: it goes on with its group" if job.id in homes else "suspended: others come first")
        else:
            schedule.explain(job.id, "waits for those before it")
    room = Room.of(snapshot, [placement for job in snapshot.jobs for placement in (job.intended, job.placement)])
    holders = snapshot.holders()
    for group in groups:
        home = homes[group[0].id]
        if home is None:
            placement = _find(room, group[0].workers)
            room.take(placement)
        elif all(holders[device] <= {job.id for job in group} for device in home):  # whoever is of another group has gone
            placement = next(job.intended for job in group if devices_of(job) == home)
        else:
            continue
        for job in group:
            if placement and not job.intended:
                there.setdefault(frozenset(slot[:2] for slot in placement), []).append((job, placement))
                schedule.explain(job.id, _words(job, group))
    for together in there.values():
        for job, placement in together:
            schedule.put(job.id, tuple(slot._replace(share=1.0 / len(together)) for slot in placement))
            if len(together) > 1:
                partners = tuple(sorted(other.id for other, _ in together if other is not job))
                schedule.sharing[job.id] = Sharing(mode="interleave", partners=partners)
    return schedule


def _homes(groups: Sequence[Sequence[Job]]) -> dict[str, Devices | None]:
    """Job → the devices of its group: those on which most of it is, if not more of another group is there; None: new ones."""
    claims = Counter(
        {(devices, number): count for number, group in enumerate(groups)
         for devices, count in Counter(devices_of(job) for job in group if job.intended).items()}
    )  # fmt: skip
    taken: set[Devices] = set()
    home: dict[int, Devices] = {}
    for (devices, number), _ in sorted(claims.items(), key=lambda item: (-item[1], item[0][1], sorted(item[0][0]))):
        if number not in home and devices not in taken:
            home[number] = devices
            taken.add(devices)
    return {job.id: home.get(number) for number, group in enumerate(groups) for job in group}


def devices_of(job: Job) -> Devices:
    """Where it is to be."""
    return frozenset(slot[:2] for slot in job.intended)


def _find(room: Room, workers: int) -> Placement:
    """Of the first kind that has so many; empty if none has."""
    return next((found for kind in room.kinds if (found := room.find(workers, kind))), ())


def _words(job: Job, group: Sequence[Job]) -> str:
    others = [other.id for other in group if other is not job]
    return f"shares devices with {' and '.join(others)}" if others else "starts, since it is its turn"
