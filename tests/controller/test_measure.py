"""What a move is said to have cost and brought, from literal reports."""

from __future__ import annotations

from restow.controller.measure import Measurer
from restow.messages import MovePredicted, Progressed, RankSwitched
from restow.placement import Move, parse_placement

NOW, THEN = parse_placement("m1:0 m2:0"), parse_placement("m1:0 m1:1")


def progressed(time_s, step, *, rank, generation):
    return Progressed(
        time_s=time_s, job="j", generation=generation, node="m1", rank=rank, step=step, steps_total=None, step_s=9.9,
        exposed_s=0.0, wire_bytes=0, memory_bytes=0,
    )  # fmt: skip


def switched(rank, pause_s, wire_bytes=0, phases=()):
    return RankSwitched(
        time_s=20.0,
        job="j",
        generation=2,
        node="m1",
        rank=rank,
        step=40,
        pause_s=pause_s,
        wire_bytes=wire_bytes,
        phases=phases,
    )


def observe_all(measurer, events):
    return [measured for event in events for measured in measurer.observe(event)]


def before(measurer, last_step=40):
    """Both ranks at 0.5 s per step until time 20."""
    for step in range(last_step + 1):
        for rank in (0, 1):
            assert observe_all(measurer, [progressed(step * 0.5, step, rank=rank, generation=1)]) == []


def after(first_step=40, count=20, step_s=0.2):
    return [
        progressed(20.5 + n * step_s, first_step + n, rank=rank, generation=2) for n in range(count) for rank in (0, 1)
    ]


def test_a_move_is_measured_against_what_was_predicted():
    measurer = Measurer()
    before(measurer)
    predicted = Move(
        job="j", now=NOW, then=THEN, reason="fewer nodes", step_now_s=0.51, step_then_s=0.19, downtime_s=0.08, wire_bytes=0,
        saves_s=100.0,
    )  # fmt: skip
    observe_all(measurer, [MovePredicted(time_s=19.0, move=predicted)])
    measurer.expect("j", 2, NOW, THEN)
    assert observe_all(measurer, [switched(0, 0.03), switched(1, 0.07, 12_000, (("fill", 0.05),))]) == []
    (move,) = observe_all(measurer, after())
    assert (round(move.step_before_s, 6), move.step_predicted_s, round(move.step_after_s, 6)) == (0.5, 0.19, 0.2)
    assert (move.downtime_s, move.wire_bytes, move.lost_steps, move.step) == (0.07, 12_000, 0, 40)
    assert (move.reason, move.phases, move.now, move.then) == ("fewer nodes", (("fill", 0.05),), NOW, THEN)


def test_a_move_that_a_person_asked_for_is_measured_without_a_prediction():
    measurer = Measurer()
    before(measurer)
    measurer.expect("j", 2, NOW, THEN)
    observe_all(measurer, [switched(0, 0.03), switched(1, 0.07)])
    (move,) = observe_all(measurer, after())
    assert (move.step_predicted_s, move.reason) == (0.0, "")


def test_steps_that_were_done_twice_are_counted_as_lost():
    measurer = Measurer()
    before(measurer, last_step=43)
    measurer.expect("j", 2, NOW, THEN)
    observe_all(measurer, [switched(0, 0.03), switched(1, 0.07)])
    (move,) = observe_all(measurer, after())
    assert move.lost_steps == 3


def test_the_twins_rehearsal_does_not_count_as_the_time_before():
    measurer = Measurer()
    before(measurer)
    measurer.expect("j", 2, NOW, THEN)
    observe_all(
        measurer, [progressed(20.0 + n * 2.0, 40 + n, rank=rank, generation=1) for n in range(1, 15) for rank in (0, 1)]
    )
    measurer.expect("j", 2, NOW, THEN)
    assert round(measurer.step_s("j"), 6) != 0.5
    observe_all(measurer, [switched(0, 0.03), switched(1, 0.07)])
    (move,) = observe_all(measurer, after(first_step=54))
    assert round(move.step_before_s, 6) == 0.5
