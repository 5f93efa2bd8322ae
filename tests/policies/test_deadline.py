"""Deadlines: earliest first, and with a test of admission."""

from __future__ import annotations

import random

import pytest

from restow.placement import Placement
from restow.policies.deadline import Deadline, Edf, keeps_all
from restow.policies.fifo import Fifo
from restow.sim.machines import machines
from restow.sim.outcome import Outcome
from restow.sim.rows import Row
from restow.sim.simulation import Simulation
from restow.sim.world import Nodes, Recorded, kind_of
from tests.policies.peers import is_steady, waiting
from tests.sim.test_simulation import Checked


def row(id: str, submitted_s: float, workers: int, duration_s: float, due_s: float = float("inf")) -> Row:
    return Row(id=id, submitted_s=submitted_s, workers=workers, duration_s=duration_s, deadline_s=due_s)


def ends(rows: list[Row], cluster: str, policy: object) -> dict[str, float]:
    outcome = Checked(rows, machines(cluster), Recorded(), policy).run()
    return {job.id: job.ended_s for job in outcome.jobs}


SOON = row("soon", 10, 1, 100, due_s=130)
LATER = row("later", 0, 1, 100, due_s=300)


def test_the_nearer_deadline_goes_first_and_the_other_goes_on_afterwards():
    for policy in (Edf(), Deadline()):
        assert ends([LATER, SOON], "1x1", policy) == {"soon": 113, "later": 200}  # later stops at a step three ahead
    assert ends([LATER, SOON], "1x1", Fifo()) == {"soon": 200, "later": 100}


def test_a_job_that_cannot_be_in_time_spoils_nothing_for_those_that_can():
    """Hopeless is due first, but takes twice as long as it has."""
    rows = [row("first", 0, 1, 100, due_s=110), row("hopeless", 5, 1, 160, due_s=90)]
    assert ends(rows, "1x1", Edf())["first"] > 110
    assert ends(rows, "1x1", Deadline()) == {"first": 100, "hopeless": 260}


def test_who_would_make_an_admitted_job_late_is_not_admitted_and_says_so():
    simulation = Simulation(
        [row("first", 0, 1, 100, due_s=110), row("second", 5, 1, 20, due_s=60)], machines("1x1"), Recorded(), Deadline()
    )
    simulation.run_until(50)
    assert simulation.state.jobs["second"].reason.startswith("its deadline cannot be kept beside those admitted before it")
    assert {job.id: job.ended_s for job in simulation.run().jobs} == {"first": 100, "second": 120}


def test_who_is_not_admitted_runs_in_between_and_steps_aside():
    """Free devices are for all; admitted jobs take them back."""
    rows = [row("hopeless", 0, 1, 100, due_s=50), row("prompt", 10, 1, 20, due_s=40), row("some", 12, 1, 30)]
    assert ends(rows, "1x1", Deadline()) == {"hopeless": 120, "prompt": 33, "some": 150}


class TwoKinds(Recorded):
    """Half as fast on B."""

    def step_s(self, row: Row, placement: Placement, nodes: Nodes, beside: object = ()) -> float:
        return 2.0 if kind_of(placement, nodes) == "B" else 1.0


def test_a_passed_deadline_is_no_claim_any_more():
    """Slow was thought to run on A. At 160 s it is late, and so it is the one that steps aside."""
    rows = [row("first", 0, 1, 1000, due_s=1100), row("slow", 0.5, 1, 100, due_s=150), row("next", 160, 1, 20, due_s=185)]
    outcome = Checked(rows, machines("1x1:A,1x1:B"), TwoKinds(), Deadline()).run()
    assert {job.id: job.suspensions for job in outcome.jobs} == {"first": 0, "slow": 1, "next": 0}
    assert {job.id: job.started_s for job in outcome.jobs}["next"] < 170


@pytest.mark.parametrize(
    ("jobs", "devices", "is_kept"),
    [
        ([(1, 10, 10)], 1, True), ([(1, 10, 9)], 1, False), ([(1, 10, 10), (1, 10, 20)], 1, True),
        ([(1, 10, 10), (1, 10, 19)], 1, False), ([(2, 10, 20), (1, 10, 10), (1, 10, 10)], 2, True),
        ([(2, 10, 19), (1, 5, 5), (1, 10, 10)], 2, False), ([(3, 1, 100)], 2, False),
        ([(1, 4, 4), (2, 4, 8), (1, 5, 8)], 2, False), ([(1, 4, 4), (2, 4, 8), (1, 5, 9)], 2, True),
    ],
)  # fmt: skip
def test_all_are_in_time_if_each_takes_the_earliest_devices_left(jobs, devices, is_kept):
    """(workers, seconds, due) of each."""
    found = [waiting(f"j{n}", workers, due_s=due) for n, (workers, _, due) in enumerate(jobs)]
    left_s = {f"j{n}": seconds for n, (_, seconds, _) in enumerate(jobs)}
    assert keeps_all(found, left_s, devices, 0.0) is is_kept


def random_rows(seed: int) -> list[Row]:
    rng = random.Random(seed)
    rows = []
    for number in range(50):
        came_s, lasts_s = rng.uniform(0, 2000), 10 + rng.expovariate(1 / 200)
        due_s = came_s + lasts_s * rng.uniform(0.5, 3) if rng.random() < 0.8 else float("inf")
        rows.append(row(f"j{number}", came_s, rng.choice((1, 1, 2, 4, 8)), lasts_s, due_s))
    return rows


def met(rows: list[Row], outcome: Outcome) -> int:
    due_s = {row.id: row.deadline_s for row in rows}
    return sum(job.ended_s <= due_s[job.id] < float("inf") for job in outcome.jobs)


@pytest.mark.parametrize("policy", [Edf, Deadline])
def test_every_job_ends_and_what_is_decided_stays_so(policy):
    for seed in range(3):
        simulation = Checked(random_rows(seed), machines("2x4"), Recorded(), policy())
        with is_steady(simulation):
            outcome = simulation.run()
        assert len(outcome.jobs) == 50
        assert simulation.history == _history(random_rows(seed), policy())


def _history(rows: list[Row], policy: object) -> list[object]:
    simulation = Checked(rows, machines("2x4"), Recorded(), policy)
    simulation.run()
    return simulation.history


def test_admission_keeps_more_deadlines_than_it_loses():
    def kept(policy: type) -> int:
        runs = ((rows, Simulation(rows, machines("2x4"), Recorded(), policy())) for rows in map(random_rows, range(4)))
        return sum(met(rows, simulation.run()) for rows, simulation in runs)

    found = {"fifo": kept(Fifo), "edf": kept(Edf), "deadline": kept(Deadline)}
    assert found["deadline"] > found["edf"]
    assert found["deadline"] > found["fifo"]
