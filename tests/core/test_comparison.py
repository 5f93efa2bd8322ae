"""What a node says that it runs, compared with what is believed: only what is surely gone counts as gone."""

from __future__ import annotations

from typing import Any

from restow.core.comparison import compare
from restow.job import Job, JobSpec, JobState, changed
from restow.messages import RankExited, RankStarted, Stop
from restow.placement import parse_placement

JOB = Job(
    id="a", spec=JobSpec(command=("python", "train.py"), workers=2, stop_grace_s=1.0), state=JobState.RUNNING, generation=2,
    placement=parse_placement("m1:0 m1:1"), alive=frozenset({0, 1}),
)  # fmt: skip


def status(*processes: tuple[int, int, str]) -> dict[str, Any]:
    """(generation, rank, role) of each process of job a on m1."""
    named = [{"job": "a", "generation": g, "rank": rank, "role": role, "pid": 7} for g, rank, role in processes]
    return {"node": "m1", "processes": named}


def gone(*processes: tuple[int, int, str]) -> list[int]:
    events, _ = compare({"a": JOB}, status(*processes), now_s=5.0)
    assert all(isinstance(event, RankExited) for event in events)
    return [event.rank for event in events]


def test_who_is_there_is_not_gone_and_who_is_missing_is():
    assert gone((2, 0, "rank"), (2, 1, "rank")) == []
    assert gone((2, 0, "rank")) == [1]


def test_a_process_that_is_still_known_by_what_it_was_before_the_switch_is_not_gone():
    assert gone((1, 0, "rank"), (2, 1, "twin")) == []


def test_a_leaver_and_a_twin_of_the_next_switch_do_not_stand_for_the_rank():
    assert gone((2, 0, "rank"), (1, 1, "leaver"), (3, 1, "twin")) == [1]


def test_a_rank_whose_start_was_never_told_is_found():
    job = changed(JOB, alive=frozenset({1}))
    events, _ = compare({"a": job}, status((2, 0, "rank"), (2, 1, "rank")), now_s=5.0)
    assert [(type(event), event.rank) for event in events] == [(RankStarted, 0)]


def test_what_should_not_run_any_more_is_ended():
    _, commands = compare({}, status((1, 0, "rank")), now_s=5.0)
    assert commands == [Stop(job="a", generation=1, grace_s=10.0)]


def test_a_rank_that_was_given_up_while_its_node_was_away_is_ended_and_a_leaver_of_a_new_move_is_not():
    elsewhere = changed(JOB, generation=3, placement=parse_placement("m2:0 m2:1"))
    _, commands = compare({"a": elsewhere}, status((1, 0, "rank"), (3, 1, "twin")), now_s=500.0)
    assert commands == [Stop(job="a", generation=1, grace_s=1.0)]
    for spared in (
        changed(elsewhere, moved_s=490.0),
        changed(elsewhere, placement=parse_placement("m1:0 m2:1")),
        changed(elsewhere, generation=1),
    ):
        assert compare({"a": spared}, status((1, 0, "rank")), now_s=500.0)[1] == []


def test_what_runs_on_a_node_that_was_lost_and_is_not_believed_to_is_ended_at_once():
    moved = changed(JOB, generation=3, placement=parse_placement("m2:0 m2:1"), moved_s=99.0)
    _, commands = compare({"a": moved}, status((1, 0, "rank")), 100.0)
    assert commands == []  # it may be a leaver of the last move
    _, commands = compare({"a": moved}, status((1, 0, "rank")), 100.0, was_lost=True)
    assert [(type(command), command.generation) for command in commands] == [(Stop, 1)]
