import json

import pytest

from restow.bound import Demand, best_total
from restow.demo.multiplex.measure import Mark, Window, demand_of, losses, period_s, read_marks, steps_in


def mark(step, end_s, rank=0, cpu_s=0.1, loss="0x1p+0"):
    return Mark(rank=rank, step=step, end_s=end_s, cpu_s=cpu_s, loss=loss)


def every(seconds, count, rank=0, cpu_s=0.1):
    return [mark(step, step * seconds, rank, cpu_s) for step in range(1, count + 1)]


def test_marks_are_read_from_lines_with_and_without_a_prefix_and_cut_ones_are_left_out():
    line = "@step " + json.dumps({"rank": 1, "step": 7, "end_s": 2.5, "cpu_s": 0.1, "loss": "0x1p+1"})
    assert read_marks(["826,465 parameters", line, f"[rank 1] {line}", line[:-20], "@step {}"]) == [
        mark(7, 2.5, rank=1, loss="0x1p+1")
    ] * 2


def test_steps_count_in_parts_so_a_window_that_cuts_one_is_no_lie():
    marks = every(0.5, 40)
    assert steps_in(marks, Window(2.0, 6.0)) == pytest.approx(8)
    assert steps_in(marks, Window(2.1, 6.1)) == pytest.approx(8)
    assert period_s(marks, Window(2.1, 7.3)) == pytest.approx(0.5)


def test_the_step_after_the_last_mark_counts_as_if_it_took_as_long_as_that_but_not_more_than_once():
    marks = every(0.5, 10)
    assert steps_in(marks, Window(2.0, 5.25)) == pytest.approx(6.5)
    assert steps_in(marks, Window(2.0, 50.0)) == pytest.approx(7)


def test_only_rank_0_counts_and_a_window_without_steps_has_no_period():
    assert steps_in([*every(0.5, 10), *every(0.5, 10, rank=1)], Window(1.0, 3.0)) == pytest.approx(4)
    assert period_s([], Window(0.0, 1.0)) == float("inf")


def test_in_turns_of_a_second_two_gangs_make_one_together():
    """Ten steps a second for a second, then nothing for a second; the other gang the other way round."""
    ends = [turn * 2 + step / 10 for turn in range(8) for step in range(1, 11)]
    first = [mark(number, end) for number, end in enumerate(ends, 1)]
    second = [mark(number, end + 1) for number, end in enumerate(ends, 1)]
    window = Window(4.0, 12.0)
    assert sum(0.1 / period_s(marks, window) for marks in (first, second)) == pytest.approx(1.0, abs=0.03)


def test_a_demand_is_the_processor_time_of_the_busier_rank_on_its_part_of_a_core_and_the_link_never_more_than_the_period():
    marks = [*every(0.25, 40, cpu_s=0.09), *every(0.25, 40, rank=1, cpu_s=0.108)]
    demand = demand_of(marks, Window(2.0, 8.0), device_share=0.9, network_s=0.13)
    assert demand == Demand(period_s=pytest.approx(0.25), device_s=pytest.approx(0.12), network_s=0.13)
    assert best_total([demand, demand]) == pytest.approx(0.25 / 0.13)
    assert demand_of(marks, Window(2.0, 8.0), device_share=0.9, network_s=2.0).network_s == pytest.approx(0.25)


def test_losses_are_those_of_the_steps_that_every_rank_printed_in_order():
    marks = [mark(2, 2.0, loss="b"), mark(1, 1.0, loss="a"), mark(1, 1.0, rank=1, loss="c"), mark(3, 3.0, loss="d")]
    assert losses(marks, 2) == (["a"], ["c"])
    assert losses([], 2) == ([], [])
