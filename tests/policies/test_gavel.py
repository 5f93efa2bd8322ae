"""Gavel's program, and the rounds that follow it."""

from __future__ import annotations

import numpy
import pytest

from restow.policies.gavel.policy import Gavel
from restow.policies.gavel.programs import Program, Question, finish_time_fairness, least_makespan, max_min, max_sum
from restow.sim.delays import Delays
from restow.sim.machines import machines
from restow.sim.rows import Row
from restow.sim.simulation import SimConfig, Simulation
from restow.sim.world import Recorded, kind_of


def parts(
    speeds: list[list[float]], sizes: list[int], capacities: list[int], program: Program = max_min, *,
    left: list[float] | None = None, since_s: list[float] | None = None, owned_s: list[float] | None = None,
) -> list[list[float]]:  # fmt: skip
    none = [0.0] * len(sizes)
    words = {"speeds": speeds, "sizes": sizes, "capacities": capacities, "left": left or [1.0] * len(sizes)}
    words |= {"since_s": since_s or none, "owned_s": owned_s or none}
    found = program(Question(**{name: numpy.array(values, dtype=float) for name, values in words.items()}))
    return numpy.round(found, 5).tolist()


def test_equal_jobs_on_too_few_devices_have_equal_parts():
    assert parts([[1.0]] * 4, [1] * 4, [2]) == [[0.5]] * 4


def test_a_job_that_gains_from_the_fast_kind_has_more_of_it():
    """The first is four times as fast on the first kind, the second just as fast on both."""
    first, second = parts([[4.0, 1.0], [1.0, 1.0]], [1, 1], [1, 1])
    assert first == [1.0, 0.0]
    assert second == [0.0, 1.0]


def test_a_larger_gang_has_less_of_the_time():
    """As the program was published: with devices for all of them a gang of two has half as much of the time as one of one."""
    assert parts([[1.0]] * 3, [2, 1, 1], [2]) == [[0.33333], [0.66667], [0.66667]]


def test_for_the_makespan_each_has_as_much_as_is_left_of_it():
    assert parts([[1.0]] * 2, [1, 1], [1], least_makespan, left=[30.0, 10.0]) == [[0.75], [0.25]]


def test_for_the_sum_the_quickest_has_all_and_the_others_next_to_nothing_by_their_speed():
    quick, other, slow = parts([[8.0], [4.0], [1.0]], [1, 1, 1], [1], max_sum)
    assert quick == [1.0]
    assert 0.001 > other[0] > slow[0] >= 0


def test_for_finish_time_fairness_who_has_waited_has_more():
    """Both have an hour left on the one device. Alone on half of it each would take two; the first has lost one already."""
    waited, fresh = parts([[1.0]] * 2, [1, 1], [1], finish_time_fairness, left=[3600, 3600], since_s=[3600, 0])
    assert waited[0] + fresh[0] == pytest.approx(1.0)
    ratios = [(3600 + 3600 / waited[0]) / 7200, 3600 / fresh[0] / 7200]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.03)


def test_for_finish_time_fairness_what_is_done_counts_as_it_would_have_taken():
    """The first has been there for an hour, but for as much as it has done it would have needed one, too."""
    first, second = parts([[1.0]] * 2, [1, 1], [1], finish_time_fairness, left=[3600, 3600], since_s=[3600, 0], owned_s=[3600, 0])
    assert (first[0], second[0]) == (pytest.approx(0.5, abs=0.01), pytest.approx(0.5, abs=0.01))


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


def ends(program: Program, rows: list[Row], cluster: str) -> dict[str, float]:
    outcome = Simulation(rows, machines(cluster), Recorded(), Gavel(program), SimConfig(round_s=100.0)).run()
    return {job.id: job.ended_s for job in outcome.jobs}


def test_for_the_makespan_the_long_job_is_not_left_for_the_end():
    rows = [Row(id="long", submitted_s=0, workers=1, duration_s=6000)]
    rows += [Row(id=f"short-{n}", submitted_s=0, workers=1, duration_s=1000) for n in range(6)]
    assert max(ends(least_makespan, rows, "1x2").values()) == pytest.approx(6000, rel=0.1)
    assert max(ends(max_min, rows, "1x2").values()) > 8000


def test_who_was_owed_time_when_the_parts_were_found_anew_goes_first_then():
    """Five equal jobs on two devices, new parts whenever one more has come: nobody falls behind by being late in the alphabet."""
    rows = [Row(id=name, submitted_s=0, workers=1, duration_s=2000) for name in "abcde"]
    rows += [Row(id=f"tiny-{n}", submitted_s=1100.0 * n, workers=1, duration_s=100) for n in range(1, 4)]
    ended = ends(max_min, rows, "1x2")
    assert max(ended[name] for name in "abcde") - min(ended[name] for name in "abcde") <= 600
