"""What `restow drain` says of the states of suspended jobs."""

from __future__ import annotations

import pytest

from restow.cli.nodes import _say

KEPT = {"job": "net-1", "step": 30, "to": "m2", "why": "", "checkpoint": ""}


@pytest.mark.parametrize(
    ("about", "is_plan", "line"),
    [
        ({}, False, "will move the state of net-1, suspended at step 30, to m2"),
        ({}, True, "would move the state of net-1, suspended at step 30, to m2"),
        (
            {"why": "m2: No space left on device"}, False,
            "will move the state of net-1, suspended at step 30, to m2 (the last try failed: m2: No space left on device)",
        ),
        (
            {"to": ""}, False,
            "net-1: its suspended state lies on m1, and no other machine can take it; it comes back only from there",
        ),
        (
            {"to": "", "checkpoint": "/c/7"}, False,
            "net-1: its checkpoint lies on m1; it comes back only while that machine is there",
        ),
    ],
)  # fmt: skip
def test_each_state_has_a_line(capsys, about, is_plan, line):
    _say({"node": "m1", "moves": [], "others": {}, "kept": [{**KEPT, **about}]}, is_plan)
    assert capsys.readouterr().out == f"{line}\n"


def test_without_jobs_and_states_it_is_empty(capsys):
    _say({"node": "m1", "moves": [], "others": {}, "kept": []}, True)
    assert capsys.readouterr().out == "m1 is empty\n"
