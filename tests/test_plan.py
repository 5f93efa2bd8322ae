"""The planner: every wanted byte once, over the link only what must, and the table of the 7 B model."""

from __future__ import annotations

from itertools import product
from math import prod
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restow.errors import Refused
from restow.plan import Box, Copy, Holding, crossing_bytes, lower_bound_bytes, plan


def whole(name: str, *lengths: int, item_bytes: int = 4) -> Box:
    return Box(name, (0,) * len(lengths), lengths, item_bytes)


def rows(name: str, first: int, last: int, width: int = 10) -> Box:
    return Box(name, (first, 0), (last - first, width), 4)


def test_a_replica_on_the_same_node_is_read_and_nothing_crosses():
    model = whole("w", 100, 10)
    holders = {0: Holding("m1", 0, (model,)), 1: Holding("m1", 1, (model,)), 2: Holding("m2", 0, (model,))}
    copies = plan(holders, {2: Holding("m1", 2, (model,))})
    assert copies == [Copy(model, ("rank", 0), 2, crosses=False)]
    assert crossing_bytes(copies) == lower_bound_bytes(holders, {2: Holding("m1", 2, (model,))}) == 0


def test_the_same_device_is_nearer_than_the_same_node():
    model = whole("w", 8)
    holders = {0: Holding("m1", 0, (model,)), 1: Holding("m1", 1, (model,))}
    (copy,) = plan(holders, {2: Holding("m1", 1, (model,))})
    assert copy.source == ("rank", 1)


def test_a_byte_crosses_once_and_the_second_twin_takes_it_from_the_first():
    model = whole("w", 100, 10)
    wanted = {0: Holding("m2", 0, (model,)), 1: Holding("m2", 1, (model,))}
    copies = plan({0: Holding("m1", 0, (model,)), 1: Holding("m1", 1, (model,))}, wanted)
    assert copies == [Copy(model, ("rank", 0), 0, crosses=True), Copy(model, ("twin", 0), 1, crosses=False)]


def test_senders_on_other_nodes_share_the_load():
    boxes = tuple(whole(f"w{i}", 100) for i in range(4))
    holders = {0: Holding("m1", 0, boxes), 1: Holding("m2", 0, boxes)}
    copies = plan(holders, {0: Holding("m3", 0, boxes)})
    assert [copy.source[1] for copy in copies] == [0, 1, 0, 1]


def test_only_the_missing_rows_of_a_sharded_tensor_cross():
    holders = {0: Holding("m1", 0, (rows("w", 0, 50),)), 1: Holding("m2", 0, (rows("w", 50, 100),))}
    wanted = {0: Holding("m1", 0, (rows("w", 0, 100),))}
    assert plan(holders, wanted) == [
        Copy(rows("w", 0, 50), ("rank", 0), 0, crosses=False),
        Copy(rows("w", 50, 100), ("rank", 1), 0, crosses=True),
    ]


def test_scalars_are_copied_and_empty_tensors_are_not():
    scalar, empty = Box("step", (), (), 4), Box("none", (0,), (0,), 4)
    copies = plan({0: Holding("m1", 0, (scalar, empty))}, {0: Holding("m2", 0, (scalar, empty))})
    assert copies == [Copy(scalar, ("rank", 0), 0, crosses=True)]


def test_what_nobody_holds_is_refused_by_name():
    with pytest.raises(Refused, match=r"w\[50:100, 0:10\], wanted by rank 3 on m2, is held by nobody"):
        plan({0: Holding("m1", 0, (rows("w", 0, 50),))}, {3: Holding("m2", 0, (rows("w", 0, 100),))})


def test_another_item_size_is_refused():
    with pytest.raises(Refused, match="same script"):
        plan({0: Holding("m1", 0, (whole("w", 4),))}, {0: Holding("m2", 0, (whole("w", 4, item_bytes=2),))})


# ---------------------------------------------------------------- properties

SIDE = 6
NODES = ("m1", "m2", "m3")


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    name = draw(st.sampled_from(["a", "b"]))
    spans = [sorted(draw(st.tuples(st.integers(0, SIDE), st.integers(0, SIDE)))) for _ in range(2)]
    return Box(name, tuple(s[0] for s in spans), tuple(s[1] - s[0] for s in spans), 4)


def holdings(at_most: int) -> st.SearchStrategy[dict[int, Holding]]:
    one = st.builds(Holding, st.sampled_from(NODES), st.integers(0, 2), st.lists(boxes(), max_size=3).map(tuple))
    return st.dictionaries(st.integers(0, 7), one, max_size=at_most)


def cells(box: Box) -> set[tuple[str, int, int]]:
    spans = (range(a, a + n) for a, n in zip(box.offsets, box.lengths, strict=True))
    return {(box.name, *cell) for cell in product(*spans)}


def all_cells(holding: Holding) -> set[tuple[str, int, int]]:
    return set().union(*(cells(box) for box in holding.boxes))


@settings(max_examples=150, deadline=None)
@given(holders=holdings(4), wanted=holdings(4))
def test_every_wanted_byte_is_written_once_in_order_and_crossing_bytes_equal_the_lower_bound(holders, wanted):
    full = Holding("m1", 0, (whole("a", SIDE, SIDE), whole("b", SIDE, SIDE)))
    holders = {**holders, 9: full}  # so that nothing is missing
    copies = plan(holders, wanted)
    received: dict[int, set] = {target: set() for target in wanted}
    for copy in copies:
        kind, giver = copy.source
        source = holders[giver] if kind == "rank" else wanted[giver]
        has = all_cells(source) if kind == "rank" else received[giver]
        assert cells(copy.box) <= has, "a source gives only what it has by then"
        assert not cells(copy.box) & received[copy.target], "no byte is written twice"
        assert copy.crosses == (source.node != wanted[copy.target].node)
        assert kind == "rank" or not copy.crosses
        received[copy.target] |= cells(copy.box)
    assert received == {target: all_cells(holding) for target, holding in wanted.items()}

    needed = {node: set().union(*(all_cells(h) for h in wanted.values() if h.node == node)) for node in NODES}
    resident = {node: set().union(*(all_cells(h) for h in holders.values() if h.node == node)) for node in NODES}
    bound = 4 * sum(len(needed[node] - resident[node]) for node in NODES)
    assert crossing_bytes(copies) == bound == lower_bound_bytes(holders, wanted)


# ---------------------------------------------------------------- the 7 B model, four hosts to one

HIDDEN, INNER, VOCABULARY, LAYERS = 4096, 11008, 32000, 32
BYTES = 12  # float32 parameter and two moments


def model_7b() -> list[tuple[str, tuple[int, ...], int]]:
    """(name, shape, stage of four) of a Llama-shaped model with 6.74 B parameters."""
    tensors: list[tuple[str, tuple[int, ...], int]] = [("embed", (VOCABULARY, HIDDEN), 0)]
    for layer in range(LAYERS):
        for name in "qkvo":
            tensors.append((f"{layer}.{name}", (HIDDEN, HIDDEN), layer // 8))
        tensors += [(f"{layer}.{name}", (INNER, HIDDEN), layer // 8) for name in ("gate", "up")]
        tensors.append((f"{layer}.down", (HIDDEN, INNER), layer // 8))
        tensors += [(f"{layer}.{name}", (HIDDEN,), layer // 8) for name in ("norm1", "norm2")]
    return [*tensors, ("norm", (HIDDEN,), 3), ("head", (VOCABULARY, HIDDEN), 3)]


def shard(name: str, shape: tuple[int, ...], index: int, count: int) -> Box:
    first, last = shape[0] * index // count, shape[0] * (index + 1) // count
    return Box(name, (first, *(0,) * (len(shape) - 1)), (last - first, *shape[1:]), BYTES)


def layout(spots: list[tuple[str, int]], shards: int, stages: int = 1) -> dict[int, Holding]:
    """Rank → what it holds: sharded `shards` ways inside its stage, repeated over the rest of the ranks."""
    gang = {}
    for rank, (node, device) in enumerate(spots):
        stage = rank // shards % stages
        mine = (t for t in model_7b() if stages == 1 or t[2] == stage)
        gang[rank] = Holding(node, device, tuple(shard(name, shape, rank % shards, shards) for name, shape, _ in mine))
    return gang


def spread(*counts: int) -> list[tuple[str, int]]:
    return [(f"m{node}", device) for node, count in enumerate(counts) for device in range(count)]


ONE_HOST = spread(8)
TABLE = {  # layout → (before, after, GB that must cross)
    "DDP 8": (layout(spread(2, 2, 2, 2), 1), layout(ONE_HOST, 1), 0.0),
    "TP2 in host x DP4": (layout(spread(2, 2, 2, 2), 2), layout(ONE_HOST, 2), 0.0),
    "HSDP to FSDP8": (layout(spread(2, 2, 2, 2), 2), layout(ONE_HOST, 8), 0.0),
    "FSDP 8": (layout(spread(2, 2, 2, 2), 8), layout(ONE_HOST, 8), 60.65),
    "FSDP 5+1+1+1": (layout(spread(5, 1, 1, 1), 8), layout(ONE_HOST, 8), 30.32),
    "TP2 x PP4": (layout(spread(2, 2, 2, 2), 2, stages=4), layout(ONE_HOST, 2, stages=4), 59.9),
    "FSDP 16 to 8": (layout(spread(4, 4, 4, 4), 16), layout(ONE_HOST, 8), 60.65),
}


@pytest.mark.parametrize("name", TABLE)
def test_seven_billion_parameters_cross_at_the_lower_bound(name: str):
    before, after, gigabytes = TABLE[name]
    started = perf_counter()
    copies = plan(before, after)
    took_ms = 1e3 * (perf_counter() - started)
    naive = sum(b.bytes for rank, h in after.items() if h.node != before[rank % len(before)].node for b in h.boxes)
    print(f"{name:20} crosses {crossing_bytes(copies) / 1e9:6.2f} GB, naive {naive / 1e9:6.1f} GB, plan {took_ms:.0f} ms")
    assert crossing_bytes(copies) == lower_bound_bytes(before, after)
    assert crossing_bytes(copies) / 1e9 == pytest.approx(gigabytes, abs=0.06)
    wanted = sum(prod(box.lengths) for holding in after.values() for box in holding.boxes)
    assert sum(prod(copy.box.lengths) for copy in copies) == wanted
