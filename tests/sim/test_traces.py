"""Traces of real clusters are read as they are, and whatever is wrong in one is told with its place."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restow.errors import TraceError
from restow.sim.traces import find_trace, read

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the published traces (shared/data) are not beside this checkout")

PUBLISHED = {
    "gavel/generated/gavel_gen500_seed0_lam500_multi.trace": ("gavel", 500, 8, 0),
    "gavel/scheduler/traces/physical_cluster/max_min_fairness.trace": ("gavel", 96, 4, 0),
    "gavel/scheduler/traces/msr/seed=0/0e4a51.trace": ("gavel", 1181, 8, 0),
    "shockwave/scheduler/traces/reproduce/120_0.2_5_100_40_25_0,0.5,0.5_0.6,0.3,0.09,0.01_multigpu_dynamic.trace":
        ("shockwave", 120, 4, 0),
    "pollux/simulator/workloads-2.0/workload-1.csv": ("pollux", 320, 48, 0),
    "pollux/simulator/traces/philly.csv": ("philly", 82247, 128, 0),
    "elasticflow-traces/x/cluster04.csv": ("itp", 15802, 64, 0),
    "elasticflow/ElasticFlow/traces_for_ElasticFlow/philly_103959.csv": ("elasticflow", 876, 4, 0),
    "muri/simulator/trace-data/trace3.csv": ("muri", 992, 32, 0),
    "morphling/simulator/workloads/workload-base.csv": ("morphling", 406, 48, 0),
    "tiresias/simulator/60_job.csv": ("tiresias", 60, 8, 0),
    "fgd/data/csv/openb_pod_list_default.csv": ("fgd", 7064, 8, 1088),
}  # fmt: skip


@needs_data
@pytest.mark.parametrize("path", PUBLISHED)
def test_every_published_trace_is_known_by_its_columns(path):
    trace = read(SHARED / path)
    assert (trace.layout, len(trace.rows), max(row.workers for row in trace.rows), trace.skipped) == PUBLISHED[path]
    times = [row.submitted_s for row in trace.rows]
    assert times == sorted(times)
    assert f"{len(trace.rows)} jobs ({trace.layout})" in str(trace)


@needs_data
def test_what_a_row_of_each_means():
    gavel = read(SHARED / "gavel/generated/gavel_gen500_seed0_lam500_multi.trace").rows[1]
    assert (gavel.model, gavel.workers, gavel.steps, gavel.submitted_s) == ("Transformer (batch size 16)", 1, 343170, 135.881152)
    muri = read(SHARED / "muri/simulator/trace-data/trace3.csv").rows[0]
    assert (muri.model, muri.workers, muri.duration_s, muri.steps) == ("shufflenet_v2_x1_0", 4, 927475.0, 1046811)
    assert muri.stages_s == pytest.approx((0.703, 0.062, 0.017))  # data, device, network
    itp = read(SHARED / "elasticflow-traces/x/cluster04.csv").rows[0]
    assert (itp.submitted_s, itp.workers, itp.duration_s, itp.deadline_s) == (5810, 16, 288476, 314395)
    fgd = {row.id: row for row in read(SHARED / "fgd/data/csv/openb_pod_list_default.csv").rows}["openb-pod-0001"]
    assert (fgd.share, fgd.submitted_s, fgd.duration_s) == (0.46, 427061, 12902960 - 427061)


def test_dates_count_from_the_first_one(tmp_path):
    day = "2017-10-09"
    lines = ("timestamp,duration,num_gpus,gpu_time,cluster", f"{day} 07:01:55,66.0,1,66.0,x", f"{day} 07:00:55,5.0,2,10.0,x")
    assert [(row.submitted_s, row.workers) for row in read(write(tmp_path, *lines)).rows] == [(0.0, 2), (60.0, 1)]


def write(folder: Path, *lines: str) -> Path:
    path = folder / "jobs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_csv_of_ones_own_needs_four_columns_and_may_have_more(tmp_path):
    trace = read(write(tmp_path, "id,submitted_s,workers,duration_s,tenant,priority", "b,5,2,10,ann,3", "a,0,1,4.5,,"))
    assert [(row.id, row.workers, row.duration_s, row.tenant, row.priority) for row in trace.rows] == [
        ("a", 1, 4.5, "", 0), ("b", 2, 10.0, "ann", 3),
    ]  # fmt: skip
    assert math.isinf(trace.rows[0].deadline_s)


def test_what_slurm_writes_is_read_and_what_is_no_job_with_gpus_is_left_out(tmp_path):
    trace = read(write(
        tmp_path, "JobID|User|Submit|ElapsedRaw|AllocTRES|State",
        "100|ann|2026-11-30T12:00:00|3600|billing=8,cpu=8,gres/gpu=4,node=1|COMPLETED",
        "100.batch|ann|2026-11-30T12:00:00|3600|cpu=8,gres/gpu=4|COMPLETED",
        "101|bob|2026-11-30T12:01:00|60|cpu=8|COMPLETED",
        "102|bob|2026-11-30T12:02:30|60|cpu=8,gres/gpu:a100=8|FAILED",
    ))  # fmt: skip
    found = [(row.id, row.submitted_s, row.workers, row.tenant) for row in trace.rows]
    assert found == [("100", 0, 4, "ann"), ("102", 150, 8, "bob")]
    assert trace.skipped == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], "is empty"),
        (["id,submitted_s,workers,duration_s"], "holds no jobs"),
        (["color,shape", "red,round"], "of no known layout"),
        (["id,submitted_s,workers,duration_s", "a,0,1"], "line 2: it has 3 columns, the others have 4"),
        (["id,submitted_s,workers,duration_s", "a,0,1,5", "b,-3,1,5"], "line 3, column submitted_s: -3 must be a number"),
        (["id,submitted_s,workers,duration_s", "a,0,1,nan"], "line 2, column duration_s: nan must be a number of 0 or more"),
        (["id,submitted_s,workers,duration_s", "a,0,1,inf"], "line 2, column duration_s: inf must be a number of 0 or more"),
        (["id,submitted_s,workers,duration_s", "a,0,2.5,5"], "line 2, column workers: 2.5 must be a whole number"),
        (["id,submitted_s,workers,duration_s", "a,0,many,5"], "line 2, column workers: 'many' is no number"),
        (["id,submitted_s,workers,duration_s", "a,0,0,5"], "line 2: it wants 0 devices; a job needs at least 1"),
        (["id,submitted_s,workers,duration_s", "a,0,1,0"], "line 2: neither steps nor a duration"),
        (["id,submitted_s,workers,duration_s,deadline_s", "a,9,1,5,9"], "line 2: its deadline is 9, which is not after"),
        (["id,submitted_s,workers,duration_s,share", "a,0,1,5,1.5"], "line 2: its share of a device is 1.5"),
        (["id,submitted_s,workers,duration_s", "a,0,1,5", "a,1,1,5"], "two jobs are called a"),
        (["timestamp,duration,num_gpus,gpu_time,cluster", "yesterday,5,1,5,x"], "'yesterday' is no date and time"),
        (["id,submitted_s,workers,duration_s", "a,0,1,5\0"], "line 2: it holds a byte 0"),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_column(tmp_path, lines, message):
    with pytest.raises(TraceError) as caught:
        read(write(tmp_path, *lines))
    assert message in str(caught.value)
    assert "jobs.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_or_no_text_is_told_in_one_line(tmp_path):
    with pytest.raises(TraceError, match="No such file"):
        read(tmp_path / "nothing.csv")
    with pytest.raises(TraceError, match="Is a directory"):
        read(tmp_path)
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\r\n\x1a\n" * 100)
    with pytest.raises(TraceError, match="is not text"):
        read(tmp_path / "picture.csv")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_trace_or_one_line(tmp_path, content):
    path = tmp_path / "any.csv"
    path.write_bytes(b"id,submitted_s,workers,duration_s\n" + content)
    told = "one line"
    try:
        assert read(path).rows
    except TraceError as error:
        told = str(error)
    assert "\n" not in told


def test_a_trace_that_comes_faster_leaves_as_much_time_until_its_deadlines(tmp_path):
    trace = read(write(tmp_path, "id,submitted_s,workers,duration_s,deadline_s", "a,0,1,5,10", "b,30,1,5,50", "c,60,1,5,"))
    assert [row.deadline_s for row in trace.compressed(3.0).rows] == [10.0, 30.0, math.inf]


def test_a_trace_can_come_faster(tmp_path):
    trace = read(write(tmp_path, "id,submitted_s,workers,duration_s", "a,0,1,5", "b,30,1,5"))
    assert [row.submitted_s for row in trace.compressed(3.0).rows] == [0.0, 10.0]
    for times in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(TraceError, match="give a number above 0"):
            trace.compressed(times)


def test_a_trace_can_be_made_up_and_is_the_same_everywhere():
    rows = find_trace("random:jobs=2000,gap=30,seed=7").rows
    assert rows == find_trace("random:jobs=2000,gap=30,seed=7").rows
    assert rows != find_trace("random:jobs=2000,gap=30,seed=8").rows
    assert len(rows) == 2000
    assert rows[-1].submitted_s / 2000 == pytest.approx(30, rel=0.1)
    sizes = [row.workers for row in rows]
    assert sizes.count(1) / 2000 == pytest.approx(0.7, abs=0.03)
    assert set(sizes) == {1, 2, 4, 8}
    assert (rows[0].workers, round(rows[0].duration_s, 3)) == (1, 17970.202)  # as on every machine
    assert max(row.duration_s for row in find_trace("random:longest=3600").rows) == 3600


@pytest.mark.parametrize("words", ["jobs=0", "jobs=many", "color=red", "gap=-1", "jobs=inf", "gap=inf"])
def test_what_cannot_be_made_up_is_told(words):
    with pytest.raises(TraceError, match="trace 'random:"):
        find_trace(f"random:{words}")
