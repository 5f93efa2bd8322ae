"""The harness with a tiny model, on this machine alone: that it runs, not how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench import switch
from bench.cases import SCATTERED, Case
from bench.place import Here, Wire
from bench.run import Run, RunFailed
from bench.systems.torchrun import TorchrunRestart

ROOT = Path(__file__).resolve().parents[2]


def test_an_unknown_case_is_refused_with_the_names_of_those_there_are():
    asked = [sys.executable, "bench/switch.py", "--json", "/dev/null", "--cases", "remote-1TB"]
    answer = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 2
    assert "--cases names 'remote-1TB'; choose from local-100MB" in answer.stderr


def test_a_system_that_cannot_run_here_is_a_row_that_says_why(tmp_path):
    class Absent(TorchrunRestart):
        def why_not(self) -> str:
            return "it is not installed"

    row = switch.row(Absent(), tiny(), tmp_path, moves=1, lab=False)
    assert (row["error"], row["downtime_s"], row["system"]) == ("it is not installed", None, "torchrun_restart")


def test_nothing_that_a_run_started_is_left(tmp_path):
    child = "subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
    twice = f"import subprocess, sys; {child}; print('up', flush=True)"
    sleeper = "import threading; threading.Event().wait()"
    with Run(tmp_path) as run:
        program = run.start(Here().nodes["m1"], [sys.executable, "-c", f"{twice}; {sleeper}", sleeper], {})
        run.wait_for("both", lambda: run.lines() == ["up"])
        child = psutil.Process(program.pid).children()[0]
    psutil.wait_procs([child], timeout=10)
    assert not psutil.pid_exists(program.pid)
    assert not child.is_running()


def test_waiting_for_a_program_that_failed_ends_with_its_last_words(tmp_path):
    with Run(tmp_path) as run:
        run.start(Here().nodes["m1"], [sys.executable, "-c", "raise ValueError('no such thing')"], {})
        with pytest.raises(RunFailed, match="ValueError: no such thing"):
            run.wait_for_step(0, timeout_s=30)


def test_bytes_on_the_wire_are_counted_between_two_samples():
    class Place:
        counts = iter([100, 350, 350, 900])

        def counters(self, node: str) -> tuple[int, int]:
            return next(self.counts, 900), 0

    wire = Wire(Place(), "m1")
    wire._samples = [(0.0, 100), (1.0, 350), (2.0, 350), (3.0, 900)]
    assert wire.between(1.5, 1.6) == 0
    assert wire.between(1.5, 2.5) == 550


@pytest.mark.slow
def test_a_torchrun_restart_is_measured_from_end_to_end(tmp_path):
    row = switch.row(TorchrunRestart(), tiny(), tmp_path, moves=1, lab=False)
    assert "error" not in row, row["error"]
    assert set(switch.REQUIRED) <= row.keys()
    assert row["lost_steps"] == 0
    assert row["downtime_s"] > 0
    assert json.loads(json.dumps(row)) == row
    assert not list(Path("/dev/shm").glob("restow-bench-*"))


def tiny() -> Case:
    return Case(name="local-tiny", state_mb=0.5, now=SCATTERED, then=("m1",) * 3, fill="replica", before=4)
