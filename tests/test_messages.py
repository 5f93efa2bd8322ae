"""The wire form of commands and events."""

import dataclasses
import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restow.cluster import Device, Link
from restow.codec import TYPES, arguments_of, from_json, to_json
from restow.errors import SpecError
from restow.job import JobSpec, Kept, Saved, ShareSpec, Sharing
from restow.messages import Connect, Launch, NodeJoined, RankConnected, StoreOpened
from restow.placement import Move, Slot, parse_placement

SPEC = JobSpec(command=("python", "train.py"), workers=2, env=(("A", "1"),))
PLACEMENT = parse_placement("m1:0 m2:1@0.5")
SAVED = Saved(step=7, path="x", node="m1", signatures=("s", "s"), time_s=1.0)
SHARING = Sharing(mode="interleave", partners=("b",))
KEPT = Kept(generation=2, step=7, placement=PLACEMENT, replicas=("m1",), muted=(1,), signatures=("s", "s"))
SAMPLES: dict[object, object] = {
    str: "x", int: 3, float: 0.25, bool: True, JobSpec: SPEC, Link: Link(bytes_per_s=1e6), tuple[Device, ...]: (Device(index=0),),
    tuple[int, ...]: (0, 1), tuple[Slot, ...]: PLACEMENT,
    tuple[str, int]: ("10.0.0.1", 4000), tuple[int, int]: (0, 2), int | None: None,
    tuple[tuple[str, float], ...]: (("loss", 0.5),), tuple[tuple[str, str], ...]: (("a", "why"),),
    tuple[tuple[str, tuple[Slot, ...]], ...]: (("a", PLACEMENT),),
    ShareSpec: ShareSpec(protect=True), Sharing: SHARING, tuple[tuple[str, Sharing], ...]: (("a", SHARING),),
    Kept: KEPT, Kept | None: KEPT, tuple[Saved, ...]: (SAVED,), tuple[str, ...]: ("a", "b"), tuple[float, ...]: (0.9, 0.8),
    Move: Move(job="a", now=PLACEMENT, then=PLACEMENT, reason="", step_now_s=1, step_then_s=1, downtime_s=0, wire_bytes=0,
               saves_s=0),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TYPES))
def test_every_message_comes_back_as_it_was(name):
    hints = typing.get_type_hints(TYPES[name])
    message = TYPES[name](**{field.name: SAMPLES[hints[field.name]] for field in dataclasses.fields(TYPES[name])})
    assert from_json(json.loads(json.dumps(to_json(message)))) == message


def test_a_command_looks_on_the_wire_as_the_document_says():
    connect = Connect(job="a", generation=2, present=1, now=PLACEMENT, then=PLACEMENT, store=("10.0.0.1", 4000), fill="copy")
    assert to_json(connect) == {
        "type": "Connect", "job": "a", "generation": 2, "present": 1, "now": [["m1", 0, 1.0], ["m2", 1, 0.5]],
        "then": [["m1", 0, 1.0], ["m2", 1, 0.5]], "store": ["10.0.0.1", 4000], "fill": "copy", "kept": None,
    }  # fmt: skip


def test_a_missing_field_takes_its_default_and_an_unknown_one_is_named():
    wire = {"type": "RankConnected", "time_s": 1, "job": "a", "generation": 2, "node": "m1", "rank": 0}
    assert from_json(wire) == RankConnected(time_s=1.0, job="a", generation=2, node="m1", rank=0, role="")
    with pytest.raises(SpecError, match="no field 'colour'"):
        from_json(wire | {"colour": "red"})


@pytest.mark.parametrize(
    "wire",
    [
        None, 7, "x", [], {}, {"type": "Event"}, {"type": "Nonsense"}, {"type": "NodeLost"},
        {"type": "NodeLost", "time_s": "now", "node": "m1", "reason": ""},
        {"type": "NodeLost", "time_s": 1, "node": 5, "reason": ""},
        {"type": "NodeLost", "time_s": True, "node": "m1", "reason": ""},
        {"type": "MigrateAsked", "time_s": 1, "job": "a", "placement": [["m1", 0]]}, {"type": []},
        {"type": "MigrateAsked", "time_s": 1, "job": "a", "placement": [["m1", "x", 1]]},
        {"type": "StoreOpened", "time_s": 1, "job": "a", "generation": 1.5, "node": "m1", "host": "h", "port": 1},
        {"type": "JobSubmitted", "time_s": 1, "job": "a", "spec": {"command": []}},
    ],
)  # fmt: skip
def test_garbage_is_refused_with_one_line(wire):
    with pytest.raises(SpecError) as caught:
        from_json(wire)
    assert "\n" not in str(caught.value)


keys = st.sampled_from(["type", "job", "time_s", "node", "placement", "devices"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(sorted(TYPES))


@given(st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(keys, inner)))
def test_any_json_is_a_message_or_a_spec_error(wire):
    try:
        assert type(from_json(wire)).__name__ in TYPES
    except SpecError:
        pass  # the only error that it may raise


def test_values_inside_messages_keep_their_types():
    joined = NodeJoined(time_s=0.0, node="m1", address="10.0.0.1", devices=(Device(index=0, share=0.5),))
    again = from_json(to_json(joined))
    assert isinstance(again.devices[0], Device)
    launch = Launch(job="a", generation=1, spec=SPEC, placement=PLACEMENT, store=("h", 1), secret="5e")
    assert isinstance(from_json(to_json(launch)).placement[1], Slot)
    assert isinstance(
        from_json(to_json(StoreOpened(time_s=0, job="a", generation=1, node="m1", host="h", port=1))).port, int
    )


def logs(job: str, rank: int | None = None, since_s: float = 0.0, spec: dict[str, object] | None = None) -> None: ...


def test_arguments_of_a_call_are_taken_as_what_they_are_said_to_be():
    wire = {"job": "a", "rank": None, "since_s": 1, "spec": {"x": []}}
    assert arguments_of(logs, wire) == {"job": "a", "rank": None, "since_s": 1.0, "spec": {"x": []}}
    assert arguments_of(logs, {"job": "a"}) == {"job": "a"}


@pytest.mark.parametrize(
    ("wire", "line"),
    [
        ({"job": 7}, "logs: job: '7' is not a str"),
        ({"job": "a", "rank": "x"}, "logs: rank: 'x' is not a int"),
        ({"job": "a", "rank": True}, "logs: rank: 'True' is not a int"),
        ({"job": "a", "spec": []}, "logs: spec: '[]' is not a dict"),
        ({}, "logs: missing a required argument: 'job'"),
        ({"job": "a", "n": 1}, "logs: got an unexpected keyword argument 'n'"),
        (["a"], "logs: arguments are ['a'] (a list); write an object"),
    ],
)
def test_arguments_that_are_none_are_named(wire, line):
    with pytest.raises(SpecError) as caught:
        arguments_of(logs, wire)
    assert str(caught.value) == line
