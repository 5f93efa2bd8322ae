"""Morphling's tables: the fastest way to parallelize a gang on each place, and what was not measured."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from restow.errors import TraceError
from restow.placement import parse_placement
from restow.sim.machines import machines
from restow.sim.morphling import MorphlingWorld
from restow.sim.rows import Row
from restow.sim.traces import read
from tests.sim.test_simulation import SHARED, needs_data

NODES = {node.name: node for node in machines("8x8").nodes}


def world(tmp_path: Path, *lines: str) -> MorphlingWorld:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/placements.csv").write_text("exec_plan,placement,iter_time\n" + "\n".join(lines) + "\n")
    return MorphlingWorld(tmp_path)


def row(workers: int, model: str = "m") -> Row:
    return Row(id="j", submitted_s=0, workers=workers, steps=100, model=model)


def test_each_place_has_its_fastest_plan_and_the_order_of_machines_does_not_matter(tmp_path):
    found = world(tmp_path, "ga,13,0.5", "zero-dp,13,0.25", "gc,13,0", "ga,4,0.1")
    assert found.step_s(row(4), parse_placement("gpu-0:0 gpu-0:1 gpu-0:2 gpu-1:0"), NODES) == 0.25
    assert found.step_s(row(4), parse_placement("gpu-0:0 gpu-1:0 gpu-1:1 gpu-1:2"), NODES) == 0.25
    assert found.step_s(row(4), parse_placement("gpu-0:0 gpu-0:1 gpu-0:2 gpu-0:3"), NODES) == 0.1


def test_a_place_that_was_not_measured_is_as_one_on_as_many_machines_or_more(tmp_path):
    found = world(tmp_path, "ga,4,0.1", "ga,1111,0.8", "ga,112,0.6")
    assert found.step_s(row(4), parse_placement("gpu-0:0 gpu-0:1 gpu-1:0 gpu-1:1"), NODES) == 0.6
    assert found.step_s(row(3), parse_placement("gpu-0:0 gpu-0:1 gpu-1:0"), NODES) == math.inf
    beside = [(row(4), parse_placement("gpu-0:0"))]
    assert found.step_s(row(4), parse_placement("gpu-0:0 gpu-0:1 gpu-0:2 gpu-0:3"), NODES, beside) == math.inf


def test_what_no_table_knows_and_what_is_wrong_is_told(tmp_path):
    found = world(tmp_path, "ga,4,0.1")
    with pytest.raises(TraceError, match="m was not measured on 3 devices"):
        found.work(row(3))
    for model in ("other", ""):
        with pytest.raises(TraceError, match=f"there is no model '{model}'"):
            found.work(row(4, model))
    with pytest.raises(TraceError, match="holds no model"):
        MorphlingWorld(tmp_path / "nothing")
    (tmp_path / "m/placements.csv").write_text("exec_plan,placement,iter_time\nga,4-4,0.1\n")
    with pytest.raises(TraceError, match="line 2, column placement: '4-4' is no row of digits"):
        MorphlingWorld(tmp_path).work(row(4))


@needs_data
def test_every_job_of_the_published_workload_is_known():
    found = MorphlingWorld(SHARED / "morphling/simulator/traces")
    rows = read(SHARED / "morphling/simulator/workloads/workload-base.csv").rows
    assert [found.work(row) for row in rows] == [row.steps for row in rows]
    large = next(row for row in rows if row.model == "llama30" and row.workers == 48)
    together = parse_placement(" ".join(f"gpu-{node}:{device}" for node in range(6) for device in range(8)))
    assert found.step_s(large, together, NODES) == pytest.approx(2.2329809523809523)  # plan 344, the fastest of three
