"""Counting what a system asks of a script, and what a case must move."""

from __future__ import annotations

from bench import script_diff
from bench.cases import CASES
from bench.systems.restow import slots


def test_comments_docstrings_and_layout_are_no_changes(tmp_path):
    plain, other = tmp_path / "plain.py", tmp_path / "other.py"
    plain.write_text('"""One."""\nx = f(1,\n      2)\ny = 3\n')
    other.write_text('"""Another."""\n# said\nx = f(1, 2)\ny = 4\nz = 5\n')
    assert script_diff.lines_changed(other, plain) == 2


def test_the_plain_script_differs_from_itself_by_nothing():
    assert script_diff.lines_changed(script_diff.PLAIN) == 0


def test_state_must_cross_only_to_a_node_that_holds_none_of_it_and_only_once():
    assert CASES["local-100MB"].lower_bound_bytes(100) == 0
    assert CASES["cross-100MB"].lower_bound_bytes(100) == 100


def test_ranks_take_the_devices_of_their_node_in_order():
    assert slots(("m1", "m1", "m2")) == "m1:0 m1:1 m2:0"
