"""An event costs a look at what it touches. Here everything is looked at as well, and has to be as it was noted."""

from __future__ import annotations

import copy
import random

import pytest

from restow.cluster import Snapshot
from restow.core import reconcile
from restow.core.occupancy import Occupancy
from restow.core.state import ClusterState
from restow.errors import IllegalTransition
from restow.job import JobState
from restow.messages import Event, Progressed
from restow.placement import Schedule, rearranged
from restow.policies.consolidate import Consolidate
from tests.core.test_histories import History, play


class Restless:
    """Sends jobs to each other's slots while `rng` is there; then as the usual policy."""

    def __init__(self, seed: int) -> None:
        self.rng: random.Random | None = random.Random(seed)
        self.usual = Consolidate()

    def decide(self, snapshot: Snapshot) -> Schedule:
        schedule = self.usual.decide(snapshot)
        if self.rng and self.rng.random() < 0.5:
            free = list(snapshot.slots)
            self.rng.shuffle(free)
            for job in snapshot.jobs:
                if job.state in (JobState.PENDING, JobState.RUNNING) and len(free) >= job.workers:
                    mine, free = free[: job.workers], free[job.workers :]
                    schedule.put(job.id, rearranged(job.placement, mine) if job.placement else tuple(mine), "anywhere")
        return schedule

    plan = decide


class Watched(History):
    """After each event everything is noted anew, and everything that could begin is asked for."""

    def __init__(self, seed: int) -> None:
        self.restless = Restless(seed)
        super().__init__(self.restless)

    def decide(self) -> Schedule:
        try:
            return super().decide()
        except IllegalTransition:  # two on one slot, or jobs that wait for each other in a circle
            return Schedule()

    def come_to_rest(self) -> None:
        self.restless.rng = None
        super().come_to_rest()

    def observe(self, event: Event) -> None:
        super().observe(event)
        if not isinstance(event, Progressed):
            assert facts(self.state._occupancy) == facts(noted_anew(self.state)), f"after {event}"
            assert left_over(self.state) <= self.state._again, f"after {event} there was more to begin"


def noted_anew(state: ClusterState) -> Occupancy:
    occupancy = Occupancy()
    for record in state.records.values():
        occupancy.note(record)
    return occupancy


def facts(occupancy: Occupancy) -> tuple[object, ...]:
    stays = {device: jobs for device, jobs in occupancy._stays.items() if jobs}
    processes = {device: jobs for device, jobs in occupancy._processes.items() if jobs}
    return set(occupancy.active), occupancy.moving, occupancy.leaving, occupancy.timed, stays, processes


def left_over(state: ClusterState) -> set[str]:
    """Jobs that a look at everything would change."""
    records = copy.deepcopy(state.records)
    reconcile.settle(records, records, noted_anew(state), state.time_s)
    return {id for id, record in records.items() if record != state.records[id]}


@pytest.mark.parametrize("seeds", [range(60), range(60, 120)], ids=["first", "second"])
def test_whatever_happens_nothing_is_forgotten(seeds: range) -> None:
    for seed in seeds:
        play(Watched(seed), seed)
