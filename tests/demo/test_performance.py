"""The demo itself, with real processes: the whole performance, and being interrupted in the middle of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from restow.lab import availability

pytest.importorskip("sklearn", reason="the demo needs scikit-learn")
pytestmark = [pytest.mark.live, pytest.mark.lab, pytest.mark.timeout(400)]


def perform(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("RESTOW_HOME", "RESTOW_RUN")}
    return subprocess.Popen(
        [sys.executable, "-m", "restow", "demo", "--fast", *arguments],
        cwd=folder,
        env={**environment, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(demo: subprocess.Popen[str]) -> str:
    try:
        return demo.communicate(timeout=300)[0]
    finally:
        if demo.poll() is None:
            demo.terminate()  # it takes everything down itself
            demo.wait(60)


@pytest.mark.slow
@pytest.mark.skipif(availability()[0] == "none", reason=f"no lab here, NOT TESTED: {availability()[1]}")
def test_a_machine_is_pulled_out_and_the_gang_goes_on(tmp_path):
    demo = perform(tmp_path, "--scene", "survive", "--json", "numbers.json")
    text = finish(demo)
    assert demo.returncode == 0, text
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["bit_identical"] is True
    assert numbers["rows"][0]["system"] == "restow"
    assert numbers["rows"][0]["lost_steps"] == 0
    assert numbers["devices"][:2] == [3, 2]
    assert "m2 is lost: silent for" in text


@pytest.mark.skipif(availability()[0] == "none", reason=f"no lab here, NOT TESTED: {availability()[1]}")
def test_the_gang_is_moved_and_nothing_is_lost(tmp_path):
    demo = perform(tmp_path, "--json", "numbers.json", "--picture", "timeline.svg")
    text = finish(demo)
    assert demo.returncode == 0, text
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["bit_identical"] is True
    assert numbers["lost_steps"] == 0
    assert numbers["step_after_s"] < numbers["step_before_s"]
    assert numbers["step_predicted_s"] > 0
    assert 0 < numbers["downtime_s"] < 5
    assert 0 < numbers["wire_bytes"] < 1_000_000          # the parameters, 7 MB, did not cross
    assert len({slot.split(":")[0] for slot in numbers["from"]}) == 2
    assert len({slot.split(":")[0] for slot in numbers["to"]}) == 1
    assert (tmp_path / "timeline.svg").stat().st_size > 5_000
    assert "restow decides: moves rank" in text


@pytest.mark.slow
@pytest.mark.skipif(availability()[0] == "none", reason=f"no lab here, NOT TESTED: {availability()[1]}")
def test_two_gangs_share_two_devices_and_nobody_computes_anything_else(tmp_path):
    demo = perform(tmp_path, "--scene", "multiplex", "--json", "numbers.json")
    text = finish(demo)
    assert demo.returncode == 0, text
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["bit_identical"] is True, numbers["why_not_identical"]
    assert [row["phase"] for row in numbers["rows"]] == ["turns", "free", "gate"]
    for row in numbers["rows"]:
        assert len(row["speeds"]) == 2 and min(row["speeds"]) > 0  # how much is the benchmark's business, not a test's
        assert row["sum"] == pytest.approx(sum(row["speeds"]))
        assert 1 <= row["bound"] <= 2
    assert numbers["fairness"] >= 0
    assert numbers["protected_slowdown_mean"] > -1
    assert numbers["background_share"] > 0
    assert "restow share gpt-a-1: interleave" in text
    assert "now computing: m1:0 gpt-" in text


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["consolidate", "multiplex"])
def test_ctrl_c_takes_everything_down(tmp_path, scene):
    demo = perform(tmp_path, "--scene", scene)
    for line in demo.stdout:
        if "arrives" in line:  # the cluster is up and a job has come
            break
    demo.send_signal(signal.SIGINT)
    began_s = time.monotonic()
    text = finish(demo)
    assert demo.returncode == 130, text
    assert "Traceback" not in text
    assert time.monotonic() - began_s < 60
    # processes and labs: the session's own look at the end (tests/conftest.py)
