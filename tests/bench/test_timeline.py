"""What a move cost, from made-up step times."""

from __future__ import annotations

import pytest

from bench import timeline
from bench.timeline import Mark


def gang(pids: str, steps: range, first_end_s: float, period_s: float, lag_s: float = 0.0) -> list[Mark]:
    """Marks of a gang whose rank r is process pids[r]; each rank ends `lag_s` after the one before it."""
    return [
        Mark(
            rank=rank,
            pid=int(pid),
            step=step,
            start_s=first_end_s + index * period_s - 0.9 * period_s,
            end_s=first_end_s + index * period_s + rank * lag_s,
            loss=float(step).hex(),
        )
        for index, step in enumerate(steps)
        for rank, pid in enumerate(pids)
    ]


def test_the_downtime_is_what_the_first_step_elsewhere_came_late():
    before = gang("123", range(10), first_end_s=1.0, period_s=1.0)  # the last ends at 10
    after = gang("124", range(10, 22), first_end_s=10.9, period_s=0.5)  # an undisturbed one would have ended at 10.5
    cost = timeline.cost(before + after, world_size=3, began_s=7.0)
    assert cost.downtime_s == pytest.approx(0.4)
    assert cost.pause_s == pytest.approx(0.45)  # it begins at 10.45
    assert (cost.step_before_s, cost.step_after_s) == (pytest.approx(1.0), pytest.approx(0.5))
    assert cost.gaps_s == ((pytest.approx(10.0), pytest.approx(10.9)),)
    assert cost.lost_step_s == pytest.approx(0.4)  # nothing was slower than usual beside the pause
    assert cost.lost_steps == 0


def test_the_slowest_rank_counts():
    before = gang("123", range(10), first_end_s=1.0, period_s=1.0, lag_s=0.01)
    after = gang("124", range(10, 22), first_end_s=10.9, period_s=0.5, lag_s=0.02)
    assert timeline.cost(before + after, world_size=3, began_s=7.0).downtime_s == pytest.approx(0.42)


def test_steps_that_were_slow_beside_the_preparations_are_lost_time_but_no_downtime():
    calm = gang("123", range(6), first_end_s=1.0, period_s=1.0)  # to 6.0
    beside = gang("123", range(6, 10), first_end_s=7.5, period_s=1.5)  # to 12.0, four steps of 1.5
    after = gang("124", range(10, 22), first_end_s=12.5, period_s=0.5)
    cost = timeline.cost(calm + beside + after, world_size=3, began_s=6.0)
    assert cost.downtime_s == pytest.approx(0.0)
    assert cost.lost_step_s == pytest.approx(2.0)


def test_a_step_that_was_made_twice_is_a_lost_step_and_its_time_is_lost():
    before = gang("123", range(10), first_end_s=1.0, period_s=1.0)
    after = gang("456", range(8, 22), first_end_s=20.0, period_s=1.0)  # 8 and 9 again
    cost = timeline.cost(before + after, world_size=3, began_s=8.0)
    assert cost.lost_steps == 2
    assert cost.downtime_s == pytest.approx(9.0)
    assert cost.lost_step_s == pytest.approx(11.0)  # and the two steps


def test_a_step_that_only_some_ranks_finished_is_lost_too():
    before = gang("123", range(10), first_end_s=1.0, period_s=1.0)
    torn = gang("12", range(10, 11), first_end_s=11.0, period_s=1.0)
    after = gang("456", range(10, 22), first_end_s=20.0, period_s=1.0)
    cost = timeline.cost(before + torn + after, world_size=3, began_s=8.0)
    assert cost.lost_steps == 1
    assert cost.gaps_s == ((10.0, 20.0),)


def test_a_member_that_joins_before_another_leaves_makes_two_boundaries():
    before = gang("123", range(10), first_end_s=1.0, period_s=1.0)
    both = gang("1234", range(10, 13), first_end_s=11.3, period_s=1.0)  # 0.3 late, at the old pace
    after = gang("124", range(13, 25), first_end_s=14.4, period_s=0.5)  # 0.6 late, at the new one
    cost = timeline.cost(before + both + after, world_size=3, began_s=5.0)
    assert cost.downtime_s == pytest.approx(0.9)
    assert cost.gaps_s == ((10.0, pytest.approx(11.3)), (pytest.approx(13.3), pytest.approx(14.4)))


def test_steps_from_before_the_link_had_its_rate_are_not_ordinary_ones():
    quick = gang("123", range(8), first_end_s=1.0, period_s=0.25)  # the link was open; the last ends at 2.75
    slow = gang("123", range(8, 14), first_end_s=4.0, period_s=2.0)  # to 14.0
    after = gang("124", range(14, 26), first_end_s=14.5, period_s=0.5)
    cost = timeline.cost(quick + slow + after, world_size=3, began_s=12.5, since_s=3.0)
    assert cost.step_before_s == pytest.approx(2.0)
    assert cost.lost_step_s == pytest.approx(0.0)


def test_of_several_moves_each_has_its_own_cost():
    marks = gang("123", range(10), 1.0, 1.0) + gang("124", range(10, 20), 10.7, 0.5) + gang("125", range(20, 32), 16.0, 0.5)
    first = timeline.cost(marks, world_size=3, began_s=8.0, until_s=15.3)
    second = timeline.cost(marks, world_size=3, began_s=15.2)
    assert first.downtime_s == pytest.approx(0.2)
    assert second.downtime_s == pytest.approx(0.3)


def test_a_job_that_never_went_on_has_no_cost():
    with pytest.raises(timeline.TooFewSteps, match="no step was made by other processes"):
        timeline.cost(gang("123", range(10), 1.0, 1.0), world_size=3, began_s=8.0)


def test_lines_are_read_behind_any_prefix_and_torn_ones_are_left_out():
    whole = '[rank 1] @step {"rank": 1, "pid": 7, "step": 3, "start_s": 1.0, "end_s": 2.0, "loss": "0x1p+0"}'
    marks = timeline.read_marks(["epoch 1", whole, '@step {"rank": 1, "pid"'])
    assert marks == [Mark(rank=1, pid=7, step=3, start_s=1.0, end_s=2.0, loss="0x1p+0")]


def test_runs_are_the_same_only_to_the_last_bit():
    run, digests = gang("123", range(10), 1.0, 1.0), {0: "aa", 1: "aa", 2: "aa"}
    moved = gang("123", range(5), 1.0, 1.0) + gang("124", range(5, 10), 9.0, 1.0)
    assert timeline.same_run(moved, digests, run, digests)
    assert not timeline.same_run(moved, {**digests, 2: "ab"}, run, digests)
    assert not timeline.same_run(moved, {}, run, {})
    assert timeline.first_difference(moved, run) is None
    assert timeline.first_difference([*moved, Mark(rank=0, pid=9, step=7, start_s=20, end_s=21, loss="0x0p+0")], run) == 7
