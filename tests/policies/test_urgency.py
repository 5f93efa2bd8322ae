"""Whose end decides when the last job is done, and that it does not wait for all the others."""

from __future__ import annotations

import pytest

from restow.policies.worth.urgency import Urgency
from tests.policies.test_worth import Speeds, row, run, starts

URGENCY = Urgency(most=4.0, power=4.0)


def test_the_longest_job_is_the_most_urgent_where_the_rest_is_done_before_it():
    found = URGENCY.factors({"long": 1000.0, "half": 500.0}, [1000.0, 500.0], devices=2)
    assert found == {"long": 5.0, "half": pytest.approx(1.25)}


def test_nobody_is_urgent_while_there_is_much_to_do_for_everybody():
    found = URGENCY.factors({f"j{n}": 1000.0 for n in range(100)}, [1000.0] * 100, devices=10)
    assert set(found.values()) == {1.0 + 4.0 * 0.1**4}


def test_without_jobs_or_work_there_is_nothing_to_say():
    assert URGENCY.factors({}, [], devices=4) == {}
    assert URGENCY.factors({"done": 0.0}, [0.0], devices=4) == {"done": 1.0}


def test_a_long_job_starts_before_a_queue_of_shorter_ones_that_ends_no_later():
    """Two devices are busy for 100 s; then three jobs of 1000 s and one of 3000 s wait, which is half of it all."""
    rows = [row("a", 0, 1, 100), row("b", 0, 1, 100), row("long", 10, 1, 3000)]
    rows += [row(f"s{n}", 10, 1, 1000) for n in range(3)]
    outcome, _ = run(rows, "1x2", Speeds())
    assert starts(outcome)["long"] == 100
    assert outcome.makespan_s == pytest.approx(3100, abs=60)
