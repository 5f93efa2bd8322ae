"""Pollux's genetic search on clusters that are small enough to look at every allocation, and the rounds that follow it."""

from __future__ import annotations

import itertools

import numpy
import pytest

from restow.policies.pollux.policy import Pollux, PolluxConfig
from restow.policies.pollux.search import Problem, Search, ranked
from restow.sim.delays import Delays
from restow.sim.machines import machines
from restow.sim.simulation import SimConfig
from tests.policies.test_worth_sizing import Scaling, elastic
from tests.sim.test_simulation import Checked


def problem(jobs: int, capacity: list[int], most: int, gains: list[float]) -> Problem:
    """Job j is as fast as its devices to the power of gains[j]; the mean is the harmonic one."""

    def score(states: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
        devices = states.sum(axis=2)
        speeds = devices ** numpy.array(gains) * (devices > 0)
        return 1.0 / (1.0 / (speeds + 1e-3)).mean(axis=1), speeds.sum(axis=1)

    now = numpy.zeros((jobs, len(capacity)), dtype=int)
    return Problem(now=now, capacity=numpy.array(capacity), allowed=numpy.ones((jobs, most + 1), dtype=bool), score=score)


def search(asked: Problem, seed: int, generations: int = 60) -> tuple[numpy.ndarray, numpy.ndarray]:
    found = Search(asked, numpy.random.default_rng(seed), population=40, generations=generations)
    return found.run(asked.now[None])


@pytest.mark.parametrize("seed", range(5))
def test_of_all_allocations_the_best_is_found(seed):
    asked = problem(2, [2, 2], 4, [0.9, 0.4])
    counts = [numpy.array(row).reshape(2, 2) for row in itertools.product(range(3), repeat=4)]
    fits = [state for state in counts if (state.sum(axis=0) <= 2).all() and not ((state > 0).all(axis=1).all())]
    best = max(asked.score(state[None])[0][0] for state in fits)
    state, _ = search(asked, seed)
    assert asked.score(state[None])[0][0] == pytest.approx(best)


@pytest.mark.parametrize("seed", range(10))
def test_no_device_is_given_twice_and_no_machine_holds_two_gangs_of_several(seed):
    asked = problem(5, [4, 4, 2], 6, [0.9, 0.8, 0.7, 0.6, 0.5])
    allowed = asked.allowed.copy()
    allowed[1, 3] = allowed[4, 1:] = False
    asked = Problem(now=asked.now, capacity=asked.capacity, allowed=allowed, score=asked.score)
    _, states = search(asked, seed, generations=10)
    assert (states >= 0).all()
    assert (states.sum(axis=1) <= asked.capacity).all()
    spread = ((states > 0).sum(axis=2) > 1)[..., None] & (states > 0)
    assert (spread.sum(axis=1) <= 1).all()
    assert (states.sum(axis=2) <= 6).all()
    assert not (states[:, 1].sum(axis=1) == 3).any()
    assert not states[:, 4].any()
    assert len({state.tobytes() for state in states}) == len(states)


def test_the_same_seed_gives_the_same_population():
    asked = problem(4, [4, 4], 8, [0.9, 0.8, 0.7, 0.6])
    first, second, other = (search(asked, seed, generations=5)[1] for seed in (1, 1, 2))
    assert numpy.array_equal(first, second)
    assert not numpy.array_equal(first, other)


def test_fronts_come_one_after_the_other_and_their_ends_first():
    """(4, 1), (3, 2) and (1, 4) are beaten by none; (2, 2) by (3, 2); (1, 1) by (2, 2), too."""
    goals = numpy.array([[1, 1], [2, 2], [1, 4], [3, 2], [4, 1]], dtype=float)
    assert set(ranked(goals, 2).tolist()) == {2, 4}
    assert ranked(goals, 5).tolist()[2:] == [3, 1, 0]


def run(rows, cluster: str, world: Scaling, until_s: float = float("inf"), **config: float) -> Checked:
    policy = Pollux(PolluxConfig(population=40, generations=30, **config))
    delays = Delays(start_s=30.0, move_s=30.0, resume_s=30.0)
    simulation = Checked(rows, machines(cluster), world, policy, SimConfig(round_s=60.0, delays=delays))
    simulation.run_until(until_s)
    return simulation


def workers(simulation: Checked) -> dict[str, int]:
    return {id: len(record.job.intended) for id, record in simulation.state.records.items()}


def test_a_job_starts_with_one_device_and_has_at_most_twice_as_many_each_time():
    rows, world = [elastic("a", 0, 50_000)], Scaling({"a": 0.95})
    sizes = [workers(run(rows, "2x4", world, at_s))["a"] for at_s in (30.0, 90.0, 150.0, 600.0)]
    assert sizes[0] == 1
    assert sizes[1] <= 2
    assert 2 < sizes[2] <= 4
    assert sizes[3] == 8


def test_equal_jobs_have_equal_parts():
    rows = [elastic(name, 0, 50_000, "m") for name in "abcd"]
    assert workers(run(rows, "4x2", Scaling({"m": 0.9}), 1800.0)) == dict.fromkeys("abcd", 2)


def test_a_job_that_was_moved_often_stays_where_it_is():
    """It is as old as its restarts are long: to move it counts as if it stood still."""
    rows, world = [elastic("a", 0, 50_000)], Scaling({"a": 0.95})
    assert workers(run(rows, "2x4", world, 600.0, restart_s=1000.0))["a"] < 8


def test_all_jobs_of_a_small_workload_end_and_the_invariants_hold():
    rows = [elastic(f"j{at}", 40.0 * at, 200.0 + 150.0 * (at % 5), "m") for at in range(12)]
    simulation = run(rows, "3x2", Scaling({"m": 0.8}, spread=0.9))
    assert all(record.job.state.value == "done" for record in simulation.state.records.values())
