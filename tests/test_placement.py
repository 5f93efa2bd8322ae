"""Slots, placements and what is asked of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restow.errors import SpecError
from restow.placement import (
    Slot,
    count_by_node,
    is_scattered,
    main_node,
    moved_ranks,
    nodes_of,
    parse_placement,
    parse_slot,
    rearranged,
)  # fmt: skip

slots = st.builds(Slot, st.sampled_from(["m1", "m2", "gpu:box"]), st.integers(0, 9), st.sampled_from([1.0, 0.5, 0.25]))
every = st.sampled_from([Slot(node, device) for node in "ab" for device in range(4)])
gangs = st.integers(1, 4).flatmap(lambda n: st.tuples(*[st.lists(every, min_size=n, max_size=n, unique=True)] * 2))


@given(slots)
def test_a_slot_is_read_as_it_was_written(slot):
    assert parse_slot(str(slot)) == slot


@pytest.mark.parametrize(
    "text", ["", "m1", ":0", "m1:", "m1:x", "m1:-1", "m1:0@0", "m1:0@2", "m1:0@x", "m1:0@-1", "m1:0@nan"]
)
def test_a_wrong_slot_says_how_to_write_one(text):
    with pytest.raises(SpecError, match="write node:device or node:device@share"):
        parse_slot(text)


def test_a_placement_tells_where_the_gang_is():
    placement = parse_placement("m2:1 m1:0 m1:1")
    assert nodes_of(placement) == ("m2", "m1")
    assert is_scattered(placement)
    assert count_by_node(placement) == {"m2": 1, "m1": 2}
    assert main_node(placement) == "m1"
    assert main_node(parse_placement("m2:1 m1:0")) == "m2"  # equal: the first by rank
    assert moved_ranks(placement, parse_placement("m1:2 m1:0 m1:1")) == (0,)


@given(gangs)
def test_a_rearranged_gang_lies_on_these_slots_and_nobody_moves_without_need(pair):
    now, wished = map(tuple, pair)
    then = rearranged(now, wished)
    assert set(then) == set(wished)
    assert len(moved_ranks(now, then)) == len(set(wished) - set(now))
