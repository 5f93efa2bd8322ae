"""Alibaba's pods: what is read, how they come, and what is wrong in a file is told."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from restow.errors import TraceError
from restow.placement import parse_placement
from restow.sim.pods import Pods, devices_wanted, inflated, read_machines, read_pods
from restow.sim.rows import Row
from tests.sim.test_simulation import SHARED, needs_data

FOLDER = SHARED / "fgd/data/csv"
NODES = "sn,cpu_milli,memory_mib,gpu,model"
PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli"


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "file.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@needs_data
def test_the_published_machines_and_pods():
    machines = read_machines(FOLDER / "openb_node_list_gpu_node.csv")
    assert (len(machines.nodes), machines.devices) == (1213, 6212)
    assert sum(node.cores for node in machines.nodes) == pytest.approx(107_018)
    pods = read_pods(FOLDER / "openb_pod_list_default.csv")
    assert len(pods) == 8152
    assert sum(map(devices_wanted, pods)) == pytest.approx(6086.8)
    assert sum(row.share == 0 for row in pods) == 1088  # they want no GPU
    assert sum(row.cores * row.workers for row in pods) == pytest.approx(85_436.012)
    assert len(read_pods(FOLDER / "openb_pod_list_multigpu20.csv")) > 1000  # a list with fewer columns


def test_machines_without_devices_are_left_out_and_what_a_gang_wants_is_of_each_worker(tmp_path):
    machines = read_machines(write(tmp_path, NODES, "a,32000,1024,0,", "b,96000,2048,2,T4"))
    assert [(node.name, node.cores, node.host_bytes, len(node.devices)) for node in machines.nodes] == [("b", 96, 2048 * 2**20, 2)]
    [gang, cpu] = read_pods(write(tmp_path, PODS, "g,8000,1024,4,1000", "c,3000,10,0,0"))
    assert (gang.workers, gang.share, gang.cores, gang.host_bytes) == (4, 1.0, 2.0, 256 * 2**20)
    assert (cpu.workers, cpu.share, cpu.cores) == (1, 0.0, 3.0)


def test_pods_come_until_they_want_as_much_as_was_asked_for_the_same_for_the_same_seed():
    pods = [Row(id=f"p{n}", submitted_s=0, workers=1, duration_s=1, share=0.5) for n in range(10)]
    rows = inflated(pods, 8, 1.3, seed=1)
    assert sum(map(devices_wanted, rows)) == 10.0  # 10.5 would be more than 10.4
    assert [row.submitted_s for row in rows] == list(range(20))
    assert rows == inflated(pods, 8, 1.3, seed=1)
    assert sum(map(devices_wanted, inflated(pods, 2, 1.0, seed=1))) == 2.0  # some of the list are left out


def test_a_pod_runs_on_one_machine_of_a_kind_that_it_names(tmp_path):
    nodes = {node.name: node for node in read_machines(write(tmp_path, NODES, "b,1,1,2,T4", "c,1,1,2,P100")).nodes}
    row = Row(id="p", submitted_s=0, workers=2, duration_s=1, model="T4|V100")
    assert Pods().step_s(row, parse_placement("b:0 b:1"), nodes) == 1.0
    assert Pods().step_s(row, parse_placement("c:0 c:1"), nodes) == math.inf
    assert Pods().step_s(row, parse_placement("b:0 c:1"), nodes) == math.inf


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (("name,cpu_milli", "a,1"), "has no column memory_mib"),
        ((PODS,), "names no pods"),
        ((PODS, "a,many,1,1,1000"), "line 2, column cpu_milli: 'many' is no number"),
        ((PODS, "a,1,1,1,1500"), "line 2: its share of a device is 1.5"),
        ((PODS, "a,1,1,1,0"), None),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_list_is_told_in_one_line(tmp_path, lines, told):
    path = write(tmp_path, *lines)
    if told is None:
        assert read_pods(path)[0].share == 0
        return
    with pytest.raises(TraceError, match=told) as error:
        read_pods(path)
    assert "\n" not in str(error.value)


def test_machines_that_have_no_devices_at_all_are_told(tmp_path):
    with pytest.raises(TraceError, match="names no machine with GPUs"):
        read_machines(write(tmp_path, NODES, "a,32000,1024,0,"))
    with pytest.raises(TraceError, match="has no column sn"):
        read_machines(write(tmp_path, PODS))
