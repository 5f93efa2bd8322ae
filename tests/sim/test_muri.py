"""Muri's worlds: steps alone, two to four that interleave, and pairs as they were measured."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from restow.errors import TraceError
from restow.placement import parse_placement
from restow.policies.fifo import Fifo
from restow.policies.muri.interleaving import ALONE, OVERHEADS
from restow.policies.srtf import Srtf
from restow.sim.delays import Delays
from restow.sim.gavel import GavelWorld
from restow.sim.machines import machines
from restow.sim.muri import NEAREST, Interleaved, Measured
from restow.sim.rows import Row
from restow.sim.simulation import SimConfig, Simulation
from restow.sim.traces import read
from restow.sim.world import Recorded

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the published traces (shared/data) are not beside this checkout")

READS, COMPUTES = (0.9, 0.05, 0.05), (0.05, 0.9, 0.05)
NODES = {node.name: node for node in machines("1x8:V100").nodes}
HERE, ELSEWHERE = parse_placement("v100-0:0"), parse_placement("v100-0:1")


def row(id: str, stages: tuple[float, float, float] | None = READS, model: str = "bert", workers: int = 1) -> Row:
    return Row(id=id, submitted_s=0, workers=workers, steps=100, duration_s=200, model=model, stages_s=stages)


def test_alone_a_step_takes_what_the_trace_says_and_what_muri_itself_costs():
    assert Interleaved().step_s(row("a"), HERE, NODES) == pytest.approx(2.0 * ALONE)


def test_two_to_four_make_a_step_each_in_a_period():
    world, other = Interleaved(), (row("b", COMPUTES), HERE)
    assert world.step_s(row("a"), HERE, NODES, [other]) == pytest.approx(OVERHEADS[2])
    assert world.step_s(row("b", COMPUTES), HERE, NODES, [(row("a"), HERE)]) == pytest.approx(OVERHEADS[2])
    assert 1.8 < world.step_s(row("a"), HERE, NODES, [other] * 3) / OVERHEADS[4] < 2.8  # three times 0.9 of one device
    assert world.step_s(row("a"), HERE, NODES, [other] * 4) == math.inf
    assert world.step_s(row("a"), HERE, NODES, [(row("b"), ELSEWHERE)]) == math.inf


def test_what_the_trace_does_not_say_is_named():
    with pytest.raises(TraceError, match="job a: the stages of its step are not said"):
        Simulation([row("a", stages=None)], machines("1x1"), Interleaved(), Fifo())
    endless = Row(id="a", submitted_s=0, workers=1, steps=5, model="bert", stages_s=READS)
    with pytest.raises(TraceError, match="job a: how long a step takes is not said"):
        Simulation([endless], machines("1x1"), Interleaved(), Fifo())


@pytest.fixture(scope="module")
def measured() -> Measured:
    return Measured(GavelWorld(SHARED / "gavel/scheduler/simulation_throughputs.json"))


@needs_data
def test_a_pair_loses_what_the_nearest_pair_of_gavel_lost(measured):
    """ResNet-18 (128) beside Transformer (16) on a V100: 17.99 steps/s alone and 17.96 beside; the other 11.06 and 6.67."""
    resnet, bert = row("a", model="resnet18"), row("b", model="bert")
    assert measured.step_s(resnet, HERE, NODES) == 2.0
    assert 2.0 / measured.step_s(resnet, HERE, NODES, [(bert, HERE)]) == pytest.approx(1.0, abs=0.01)
    assert 2.0 / measured.step_s(bert, HERE, NODES, [(resnet, HERE)]) == pytest.approx(0.60, abs=0.01)


@needs_data
def test_gangs_lose_as_much_as_a_pair_of_their_ranks_and_three_stand_still(measured):
    both = parse_placement("v100-0:0 v100-0:1")
    a, b = row("a", model="vgg16", workers=2), row("b", model="vgg19", workers=2)
    pair_s = measured.step_s(row("a", model="vgg16"), HERE, NODES, [(row("b", model="vgg19"), HERE)])
    assert measured.step_s(a, both, NODES, [(b, both)]) == pair_s
    assert pair_s > 4.0  # two large ones hinder each other by more than taking turns would
    assert measured.step_s(a, both, NODES, [(b, both), (b, both)]) == math.inf
    assert measured.step_s(a, both, NODES, [(row("c"), HERE)]) == math.inf


@needs_data
def test_every_model_of_the_traces_has_a_nearest_kind_and_others_are_named(measured):
    for number in (1, 2, 3, 4):
        rows = read(SHARED / f"muri/simulator/trace-data/trace{number}.csv").rows
        assert {each.model for each in rows} <= NEAREST.keys()
    with pytest.raises(TraceError, match="job a: 'GPT-9' is none of Muri's models"):
        measured.work(row("a", model="GPT-9"))


def test_a_row_may_say_how_long_its_starts_take():
    """Before its first step, and again when it comes back: the long one gives way once."""
    long = Row(id="long", submitted_s=0, workers=1, duration_s=100, start_s=7)
    short = Row(id="short", submitted_s=20, workers=1, duration_s=10, start_s=3)
    outcome = Simulation([long, short], machines("1x1"), Recorded(), Srtf(), SimConfig(delays=Delays(start_s=1.0))).run()
    ended = {job.id: job.ended_s for job in outcome.jobs}
    assert ended["short"] - ended["long"] == pytest.approx(-(7 + 100 - 15), abs=4)  # it had made some 15 steps
    assert ended["long"] == pytest.approx(1 + 7 + 100 + 1 + 3 + 10 + 7)


@needs_data
@pytest.mark.slow
def test_shortest_service_first_takes_what_was_published():
    """992 jobs on 64 GPUs: 185,022 s on average in Muri's simulator, which takes starts off at every decision."""
    rows = read(SHARED / "muri/simulator/trace-data/trace3.csv").rows
    outcome = Simulation(rows, machines("8x8"), Interleaved(), Srtf(counts_devices=True)).run()
    assert outcome.avg_jct_s == pytest.approx(185_022, rel=0.02)
