"""`restow simulate`: figures on the terminal and in a file, and one line for what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from restow.cli import main
from restow.cli.progress import Tell
from tests.gate.crowd import until
from tests.sim.frozen import SCATTERED, running, waiting, written

JOBS = "id,submitted_s,workers,duration_s\nlong,0,2,100\nshort,10,2,20\nsmall,15,1,5\n"
MINE = '''
from restow.placement import Schedule, Slot

class Last:
    """Whoever came last, and only that one."""
    def decide(self, snapshot):
        if any(job.intended for job in snapshot.jobs) or not snapshot.jobs:
            return Schedule({job.id: job.intended for job in snapshot.jobs if job.intended})
        job = snapshot.jobs[-1]
        return Schedule({job.id: tuple(Slot("gpu-0", index) for index in range(job.workers))})

policy = Last
'''


@pytest.fixture
def jobs(tmp_path: Path) -> str:
    path = tmp_path / "jobs.csv"
    path.write_text(JOBS)
    return str(path)


def test_several_policies_are_compared_in_a_table_and_a_file(jobs, tmp_path, capsys):
    assert main.run(["simulate", jobs, "--cluster", "1x2", "--policy", "fifo,srtf", "--json", str(tmp_path / "out.json")]) == 0
    told = capsys.readouterr()
    assert "jobs.csv: 3 jobs (csv) over 0.0 h, gangs of 1 to 2" in told.err
    head, fifo, srtf = told.out.splitlines()
    assert head.split()[:3] == ["policy", "avg", "JCT"]
    assert fifo.startswith("fifo")
    assert srtf.startswith("srtf")
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["policy"], row["avg_jct_s"], row["makespan_s"], row["suspensions"]) for row in rows] == [
        ("fifo", pytest.approx(320 / 3), 125.0, 0), ("srtf", pytest.approx(160 / 3), 125.0, 2),
    ]  # fmt: skip


def test_a_policy_of_ones_own_is_a_file(jobs, tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    assert main.run(["simulate", jobs, "--cluster", "1x2", "--policy", str(mine)]) == 0
    assert str(mine) in capsys.readouterr().out


def test_the_example_lets_small_gangs_pass(jobs, tmp_path):
    example = Path(__file__).parents[2] / "examples" / "policies" / "smallest_first.py"
    figures = tmp_path / "out.json"
    assert main.run(["simulate", jobs, "--cluster", "1x2", "--policy", str(example), "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["rows"][0]["avg_jct_s"] == pytest.approx((100 + 90 + 115) / 3)  # small, then short


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--cluster", "1x1"], 8, "job long wants 2 devices, the cluster has 1"),
        (["--cluster", "two"], 8, "cluster is 'two'"),
        (["--cluster", "1x2", "--policy", "fif"], 2, "there is no policy 'fif'; did you mean 'fifo'?"),
        (["--cluster", "1x2", "--policy", "gone.py"], 2, "policy gone.py: there is no such file"),
        (["--cluster", "1x2", "--error", "1.5"], 2, "--error is 1.5"),
        (["--cluster", "1x2", "--round", "-1"], 2, "--round is -1"),
        (["--cluster", "1x2", "--compress", "0"], 8, "cannot be compressed 0 times"),
        (["--cluster", "1x2", "--first", "0"], 2, "--first is 0"),
        (["--cluster", "1x2", "--table", "gone.json"], 8, "table gone.json cannot be read"),
        (["--cluster", "1x2", "--json", "/nowhere/out.json"], 2, "--json /nowhere/out.json cannot be written"),
        (["--cluster", "1x2", "--report", "/nowhere/out.html"], 2, "--report /nowhere/out.html cannot be written"),
        (["--cluster", "1x2", "--unseen-s", "5"], 2, "--unseen-s says nothing of a trace"),
        (["--cluster", "1x2", "--ideal"], 2, "--ideal says nothing without --table"),
        (["--cluster", "1x2", "--mtbf-h", "-1"], 2, "--mtbf-h is -1; write hours, 0.01 or more"),
        (["--cluster", "1x2", "--mtbf-h", "nan"], 2, "--mtbf-h is nan"),
        (["--cluster", "1x2", "--mtbf-h", "0"], 2, "--mtbf-h is 0"),
        (["--cluster", "1x2", "--mtbf-h", "5", "--repair-s", "-2"], 2, "--repair-s is -2; write seconds, 0 or more"),
        (["--cluster", "1x2", "--mtbf-h", "5", "--checkpoint-s", "inf"], 2, "--checkpoint-s is inf"),
        (["--cluster", "1x2", "--repair-s", "60"], 2, "--repair-s says nothing without --mtbf-h: no machine fails"),
        (["--cluster", "1x2", "--checkpoint-s", "60"], 2, "--checkpoint-s says nothing without --mtbf-h"),
        (["--cluster", "1x2", "--stragglers", "0.9"], 2, "--stragglers is 0.9; write how many times as long"),
        (["--cluster", "1x2", "--stragglers", "nan"], 2, "--stragglers is nan"),
        (["--cluster", "1x2", "--stragglers", "2", "--straggler-h", "0"], 2, "--straggler-h is 0; write hours"),
        (["--cluster", "1x2", "--stragglers", "2", "--straggler-s", "nan"], 2, "--straggler-s is nan; write seconds"),
        (["--cluster", "1x2", "--straggler-s", "5"], 2, "--straggler-s says nothing without --stragglers: no device is slow"),
        (["--cluster", "1x2", "--seeds", "2"], 2, "--seeds 2 says nothing without --error, --mtbf-h or --stragglers"),
        (["--cluster", "1x2", "--seeds", "2", "--stragglers", "1"], 2, "--seeds 2 says nothing without"),
        ([], 2, "--cluster is missing; write for example --cluster 8x4"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_code(jobs, words, code, message, capsys):
    assert main.run(["simulate", jobs, *words]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("restow: ")
    assert message in last


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def policy(:\n", "line 1: SyntaxError"),
        ("import nothing_of_that_name\n", "line 1: ModuleNotFoundError"),
        ("x = 1\n", "mine.py defines no policy()"),
        ("raise SystemExit(4)\n", "line 1: SystemExit: 4"),
        ("class P:\n    def decide(self, snapshot):\n        return None\npolicy = P\n", "answered with a NoneType"),
        ("class P:\n    def decide(self, snapshot):\n        raise SystemExit(3)\npolicy = P\n", "mine.py, line 3"),
        ("def policy():\n    return 3\n", "gives a int without decide(snapshot)"),
        ("class P:\n    def decide(self, snapshot):\n        return 1 / 0\npolicy = P\n", "raised ZeroDivisionError"),
    ],
)
def test_a_file_that_is_wrong_is_told_with_its_line(jobs, tmp_path, content, message, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(content)
    assert main.run(["simulate", jobs, "--cluster", "1x2", "--policy", str(mine)]) in (2, 4)
    assert message in capsys.readouterr().err


def test_a_policy_that_thinks_for_ever_is_given_up(jobs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("restow.cli.simulate_runs.DECISION_S_MAX", 0.2)
    mine = tmp_path / "mine.py"
    mine.write_text("class P:\n    def decide(self, snapshot):\n        while True:\n            pass\npolicy = P\n")
    assert main.run(["simulate", jobs, "--cluster", "1x2", "--policy", str(mine)]) == 4
    assert "the policy raised TimeoutError: it thought for more than 0.2 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[1, 2]", "the table is a list"), ('"x"', "the table is a str"), ('{"V": "s"}', "V is a str"), ("{", "is not JSON"),
        ("""{"V": {"('a', 1)": {"null": "fast"}}}""", "('a', 1) is 'fast'; a speed is steps per second, 0 or more"),
        ("""{"V": {"('a', 1)": {"null": -1}}}""", "('a', 1) is -1"), ("""{"V": {"a": {"null": 1}}}""", "names 'a'"),
        ("""{"V": {"('a', 1)": {"null": 1.5}}}""", "job j: 'b' with 1 workers is not in"),
        ("""{"V": {"('b', 1)": {"null": 1.5}}}""", "is not known to run on any kind of this cluster (gpu); the table has V"),
    ],
)  # fmt: skip
def test_a_table_that_is_wrong_or_does_not_fit_is_told(tmp_path, table, message, capsys):
    (tmp_path / "table.json").write_text(table)
    (tmp_path / "jobs.csv").write_text("id,submitted_s,workers,duration_s,model\nj,0,1,10,b\n")
    options = ["--cluster", "1x2", "--policy", "fifo", "--table", str(tmp_path / "table.json")]
    assert main.run(["simulate", str(tmp_path / "jobs.csv"), *options]) == 8
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_steps_of_a_model_need_a_table(tmp_path, capsys):
    (tmp_path / "jobs.csv").write_text("id,submitted_s,workers,steps,model\nj,0,1,1000,resnet\n")
    assert main.run(["simulate", str(tmp_path / "jobs.csv"), "--cluster", "1x2"]) == 8
    assert "names its model (resnet) but no duration; a --table knows its speed" in capsys.readouterr().err


def test_a_report_is_a_page_of_all_policies_and_seeds(jobs, tmp_path):
    report = tmp_path / "out.html"
    words = ["--policy", "fifo,srtf", "--error", "0.1", "--seeds", "2", "--report", str(report)]
    assert main.run(["simulate", jobs, "--cluster", "1x2", *words]) == 0
    html = report.read_text()
    assert all(f"<td>{name}</td>" in html for name in ("fifo seed 0", "fifo seed 1", "srtf seed 0", "srtf seed 1"))
    assert html.count("<details") == 4
    assert "waits for 2 devices, 0 are left by those before it" in html


def test_a_bar_counts_the_jobs_of_all_runs(jobs, monkeypatch):
    told: list[int] = []

    @contextmanager
    def watched(words: str, total: int) -> Iterator[Tell]:
        assert (words, total) == ("2 runs, jobs: ", 6)
        yield lambda done, now_s: told.append(done)

    monkeypatch.setattr("restow.cli.simulate_runs.progress", watched)
    monkeypatch.setattr("restow.cli.simulate_runs.TELL_S", 0.0)
    assert main.run(["simulate", jobs, "--cluster", "1x2", "--policy", "fifo,srtf"]) == 0
    assert told == sorted(told)
    assert told[-1] == 6
    assert len({*told} - {0, 3, 6}) > 0  # also what has ended of a run that is not over


def test_machines_fail_and_devices_are_slow_on_request(tmp_path, capsys):
    figures, report = tmp_path / "out.json", tmp_path / "out.html"
    trace, usual = "random:jobs=20,gap=600,seed=3", ["--cluster", "4x4", "--policy", "restow", "--json", str(figures)]
    assert main.run(["simulate", trace, *usual]) == 0
    assert "failures" not in capsys.readouterr().out
    plain = json.loads(figures.read_text())["rows"][0]
    assert [plain[key] for key in ("failures", "stragglers", "lost_steps", "lost_device_s")] == [0, 0, 0, 0]
    words = ["--mtbf-h", "10", "--repair-s", "900", "--checkpoint-s", "600", "--stragglers", "3", "--seeds", "2"]
    assert main.run(["simulate", trace, *usual, *words, "--report", str(report)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("  ")[-4:] == ["failures", "lost steps", "lost device time", "stragglers"]
    rows = json.loads(figures.read_text())["rows"]
    assert all(min(row["failures"], row["stragglers"], row["lost_steps"], row["lost_device_s"]) > 0 for row in rows)
    assert [line.split()[-1] for line in lines] == [str(row["stragglers"]) for row in rows]
    assert rows[0]["failures"] != rows[1]["failures"] or rows[0]["lost_steps"] != rows[1]["lost_steps"]
    html = report.read_text()
    assert all(mark in html for mark in ('<rect class="away" x=', '<rect class="slow" x=', '<path class="lost" d="M'))
    assert "was lost (no answer for 1 s)" in html


@pytest.fixture
def now(tmp_path: Path) -> str:
    """A live cluster with a gang that is scattered, and a job that waits."""
    path = tmp_path / "now.json"
    gang = running("gang", "m1:0 m2:0", profile=SCATTERED, steps_done=1000, steps_total=11_000)
    path.write_text(json.dumps(written(gang, waiting("new", 3))))
    return str(path)


def test_a_snapshot_is_simulated_on_from_where_it_was_taken(now, tmp_path, capsys):
    figures, report = tmp_path / "out.json", tmp_path / "out.html"
    assert main.run(["simulate", now, "--policy", "fifo,restow", "--json", str(figures), "--report", str(report)]) == 0
    told = capsys.readouterr().err
    assert "now.json: 2 jobs (snapshot)" in told
    assert "2 machines, 4 devices" in told
    assert "never ran: new; taken to run for 3000 s, the median of what the others have left" in told
    fifo, restow = json.loads(figures.read_text())["rows"]
    assert fifo["makespan_s"] == pytest.approx(3000 + 3000)
    assert (restow["moves"], restow["avg_jct_s"] < fifo["avg_jct_s"]) == (1, True)
    assert "never ran: new" in report.read_text()
    assert "so that it trains on m" in report.read_text()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--cluster", "1x2"], 2, "--cluster says nothing of a snapshot: it has its own machines, jobs and speeds"),
        (["--table", "t.json"], 2, "--table says nothing of a snapshot"),
        (["--compress", "2"], 2, "--compress says nothing of a snapshot"),
        (["--unseen-s", "-1"], 2, "--unseen-s is -1"),
    ],
)
def test_what_is_for_traces_only_is_refused_for_a_snapshot(now, words, code, message, capsys):
    assert main.run(["simulate", now, *words]) == code
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("content", "message"), [('{"rows": []}', "no snapshot of a cluster"), ("{", "is not JSON")])
def test_json_that_is_no_snapshot_is_told_in_one_line(tmp_path, content, message, capsys):
    (tmp_path / "x.json").write_text(content)
    assert main.run(["simulate", str(tmp_path / "x.json")]) == 8
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert message in told[0]


@pytest.mark.live
def test_an_interrupt_ends_every_run_and_leaves_nothing_behind(tmp_path):
    words = "simulate random:jobs=5000,gap=60,seed=3 --cluster 8x8 --policy las,srtf --look 10".split()
    child = subprocess.Popen(
        [sys.executable, "-m", "restow", *words], env={**os.environ, "RESTOW_HOME": str(tmp_path)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert child.stderr
    assert "5000 jobs" in child.stderr.readline()
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    until(lambda: len(children.read_text().split()) >= 2)
    workers = children.read_text().split()
    child.send_signal(signal.SIGINT)
    told = child.communicate(timeout=60)
    assert child.returncode == 130, told
    assert told[1].splitlines()[-1] == "restow: interrupted"
    until(lambda: all(is_gone(pid) for pid in workers))


def is_gone(pid: str) -> bool:
    """Nobody may have asked for its end yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
