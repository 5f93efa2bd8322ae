"""What was done to jobs, from the events of a run, live or simulated: one yardstick for both, the core's own state. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from restow.core.state import ClusterState
from restow.messages import Event
from restow.placement import Placement, devices_of
from restow.sim.recorder import Came, Recorder, Stay


@dataclass(frozen=True, slots=True, kw_only=True)
class Deeds:
    """Of one job. Seconds."""

    jct_s: float  # submitted to done
    waited_s: float  # submitted to its first devices
    moves: tuple[tuple[str, str, str], ...]  # from where, to where (slots without their shares, in the order of ranks), and why
    partners: tuple[str, ...]  # who was on its devices at the same time

    @property
    def ways(self) -> tuple[tuple[str, str], ...]:
        """Its moves, from where to where."""
        return tuple((now, then) for now, then, _ in self.moves)

    @property
    def consolidations(self) -> int:
        """Moves to fewer machines."""
        return sum(_machines(now) > _machines(then) for now, then in self.ways)

    def renamed(self, names: Mapping[str, str]) -> Deeds:
        """With its partners by these names, and without those that have none."""
        return replace(self, partners=tuple(sorted(names[id] for id in self.partners if id in names)))


def deeds_of(events: Iterable[Event], jobs: Iterable[str]) -> dict[str, Deeds]:
    """Of these jobs, those that are done."""
    state, recorder = ClusterState("replayed"), Recorder()
    for event in events:
        state.observe(event)
        recorder.observe(event, state)
    found = {}
    for id in jobs:
        job = state.records[id].job if id in state.records else None
        if job is None or job.ended_s is None or job.exit_code != 0:
            continue
        stays = [stay for stay in recorder.stays if stay.job == id]
        found[id] = Deeds(
            jct_s=job.ended_s - job.submitted_s, waited_s=stays[0].from_s - job.submitted_s, moves=_moves(stays),
            partners=tuple(sorted({other.job for other in recorder.stays for stay in stays if _meet(stay, other)})),
        )  # fmt: skip
    return found


def _moves(stays: list[Stay]) -> tuple[tuple[str, str, str], ...]:
    return tuple(
        (_written(before.placement), _written(stay.placement), stay.came_why)
        for before, stay in pairwise(stays)
        if stay.came is Came.MOVED
    )


def _written(placement: Placement) -> str:
    return " ".join(f"{slot.node}:{slot.device}" for slot in placement)


def _machines(placement: str) -> int:
    return len({slot.partition(":")[0] for slot in placement.split()})


def _meet(one: Stay, other: Stay) -> bool:
    here = {slot[:2] for slot in devices_of(one.placement)}
    is_there = any(slot[:2] in here for slot in devices_of(other.placement))
    return one.job != other.job and is_there and min(one.to_s, other.to_s) > max(one.from_s, other.from_s)


