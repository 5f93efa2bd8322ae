"""Jobs that take turns on a device, and on a link: how long their steps are."""

from __future__ import annotations

import pytest

from restow.bound import Demand
from restow.sim.turns import periods_s


def step(period_s: float, device_s: float, network_s: float = 0.0) -> Demand:
    return Demand(period_s=period_s, device_s=device_s, network_s=network_s)


def test_who_is_alone_is_as_fast_as_alone():
    assert periods_s([step(0.3, 0.2)]) == [0.3]


def test_two_that_compute_in_each_others_waits_lose_nothing():
    assert periods_s([step(1.0, 0.4), step(1.0, 0.6)]) == pytest.approx([1.0, 1.0])


def test_where_the_device_is_wanted_more_than_it_is_there_a_step_takes_what_all_want_of_it():
    assert periods_s([step(1.0, 0.7), step(1.0, 0.7)]) == pytest.approx([1.4, 1.4])
    assert periods_s([step(1.0, 0.6)] * 3) == pytest.approx([1.8] * 3)


def test_a_short_step_waits_for_the_long_one_before_it_and_not_for_two():
    assert periods_s([step(1.0, 1.0), step(0.4, 0.1)]) == pytest.approx([1.1, 1.1])


def test_the_link_is_passed_in_turns_too():
    assert periods_s([step(0.7, 0.1, 0.6), step(0.7, 0.1, 0.6)]) == pytest.approx([1.2, 1.2])


def test_one_whose_steps_take_a_hundred_thousand_times_as_long_does_not_make_it_endless():
    long_s, short_s = periods_s([step(1000.0, 1000.0), step(0.01, 0.01)], in_turns=False)
    assert (long_s, short_s) == (pytest.approx(2000.0), pytest.approx(0.02, rel=0.02))


def test_without_turns_jobs_of_equal_steps_stay_in_step_and_lose_what_turns_would_save():
    assert periods_s([step(1.0, 0.5)] * 2, in_turns=False) == pytest.approx([1.5, 1.5])
    assert periods_s([step(1.0, 0.5)] * 2) == pytest.approx([1.0, 1.0])


def test_without_turns_a_short_step_beside_one_that_always_computes_takes_twice_its_device_time():
    assert periods_s([step(1.0, 1.0), step(1.0, 0.2)], in_turns=False)[1] == pytest.approx(1.2)


def test_what_computing_hides_of_the_network_takes_no_time_of_the_step():
    assert periods_s([step(1.0, 0.5, 0.9), step(1.0, 0.5, 0.1)])[1] == pytest.approx(1.0, abs=0.01)
