"""Gavel's program, and the rounds that follow it."""

from __future__ import annotations

import numpy
import pytest

from restow.policies.gavel import Gavel, max_min_parts
from restow.sim.agents import Delays
from restow.sim.machines import machines
from restow.sim.rows import Row
from restow.sim.simulation import SimConfig, Simulation
from restow.sim.world import Recorded, kind_of


def parts(speeds: list[list[float]], sizes: list[int], capacities: list[int]) -> list[list[float]]:
    found = max_min_parts(numpy.array(speeds, dtype=float), numpy.array(sizes, dtype=float), numpy.array(capacities, dtype=float))
    return numpy.round(found, 4).tolist()


def test_equal_jobs_on_too_few_devices_have_equal_parts():
    assert parts([[1.0]] * 4, [1] * 4, [2]) == [[0.5]] * 4


def test_a_job_that_gains_from_the_fast_kind_has_more_of_it():
    """The first is four times as fast on the first kind, the second just as fast on both."""
    first, second = parts([[4.0, 1.0], [1.0, 1.0]], [1, 1], [1, 1])
    assert first == [1.0, 0.0]
    assert second == [0.0, 1.0]


def test_a_larger_gang_has_less_of_the_time():
    """Half as much counts as fair for a gang of two, and of that it must gain but half, as the program was published."""
    assert parts([[1.0]] * 3, [2, 1, 1], [2]) == [[0.2], [0.8], [0.8]]


class TwoKinds(Recorded):
    """Model `quick` is four times as fast on A; nothing else is."""

    def step_s(self, row, placement, nodes, beside=()):
        return 0.25 if row.model == "quick" and kind_of(placement, nodes) == "A" else 1.0


def test_in_rounds_each_has_its_part():
    quick = Row(id="q", submitted_s=0, workers=1, duration_s=4000, model="quick")
    rows = [quick, Row(id="s", submitted_s=0, workers=1, duration_s=1000)]
    config = SimConfig(round_s=100.0, delays=Delays())
    outcome = Simulation(rows, machines("1x1:A,1x1:B"), TwoKinds(), Gavel(), config).run()
    assert {job.id: round(job.ended_s) for job in outcome.jobs} == {"q": 1000, "s": 1000}


def test_equal_jobs_take_turns_in_rounds():
    rows = [Row(id=name, submitted_s=0, workers=1, duration_s=1000) for name in "abc"]
    outcome = Simulation(rows, machines("1x1"), Recorded(), Gavel(), SimConfig(round_s=100.0)).run()
    assert min(job.ended_s for job in outcome.jobs) >= 2700  # each had about as much as the others all the time
    assert outcome.makespan_s == pytest.approx(3000)
