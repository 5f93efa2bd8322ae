"""Every example runs: alone, under torchrun, and (tests/live) under restow; equal runs give equal numbers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the examples need scikit-learn")
pytestmark = pytest.mark.live

TINY_GPT = "--steps 6 --layers 1 --width 16 --heads 2 --context 8 --batch 2 --characters 2000 --log-every 2".split()
RUN_S_MAX = 120


def start(folder: Path, script: Path, *arguments: str, ranks: int = 1) -> subprocess.Popen[str]:
    """The script as a process, under torchrun if it has several ranks; one thread each, so that runs can be compared."""
    torchrun = [*"-m torch.distributed.run --standalone --nproc-per-node".split(), str(ranks)] if ranks > 1 else []
    env = {key: value for key, value in os.environ.items() if not key.startswith("RESTOW_") or key == "RESTOW_TEST"}
    env |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PET_LOG_DIR": str(folder)}  # torchrun leaves its folder there
    return subprocess.Popen(
        [sys.executable, *torchrun, str(script), *arguments],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(child: subprocess.Popen[str]) -> str:
    """What it printed until its end; with everything that it started it is gone afterwards."""
    try:
        return child.communicate(timeout=RUN_S_MAX)[0]
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def run(folder: Path, script: Path, *arguments: str, ranks: int = 1) -> str:
    child = start(folder, script, *arguments, ranks=ranks)
    text = finish(child)
    assert child.returncode == 0, text
    return text


def digest(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


@pytest.mark.slow
def test_the_digit_reader_learns_alone(tmp_path, examples):
    text = run(tmp_path, examples / "digits_cnn.py", "--steps", "40", "--log-every", "20", "--digest", "d.json")
    printed = re.findall(r"^step (\d+) loss [\d.]+ (\S+)$", text, re.MULTILINE)
    losses = digest(tmp_path, "d.json")["losses"]
    assert printed == [("20", losses[19]), ("40", losses[39])]
    assert float.fromhex(losses[39]) < float.fromhex(losses[0]) / 2
    assert float(re.search(r"test accuracy ([\d.]+)", text)[1]) > 0.5


@pytest.mark.slow
def test_the_digit_reader_runs_under_torchrun_with_loader_workers(tmp_path, examples):
    run(tmp_path, examples / "digits_cnn.py", *"--steps 4 --loader-workers 1 --digest d.json".split(), ranks=2)
    first, second = digest(tmp_path, "d.json"), digest(tmp_path, "d.json.rank1")
    assert first["steps"] == second["steps"] == 4
    assert first["losses"] != second["losses"]  # each rank sees its own images


@pytest.mark.slow
def test_the_gpt_gives_the_same_numbers_twice_and_the_same_parameters_on_both_ranks(tmp_path, examples):
    run(tmp_path, examples / "chars_gpt.py", *TINY_GPT, "--digest", "a.json", ranks=2)
    run(tmp_path, examples / "chars_gpt.py", *TINY_GPT, "--digest", "b.json", ranks=2)
    assert digest(tmp_path, "a.json") == digest(tmp_path, "b.json")
    assert digest(tmp_path, "a.json")["sha256"] == digest(tmp_path, "a.json.rank1")["sha256"]


def test_the_gpt_writes_alone(tmp_path, examples):
    text = run(tmp_path, examples / "chars_gpt.py", *TINY_GPT, "--write", "20")
    assert "parameters" in text
    assert "step 6 loss" in text


def test_wrong_sizes_are_refused_in_one_line(tmp_path, examples):
    child = start(tmp_path, examples / "chars_gpt.py", "--width", "10", "--heads", "3")
    assert "--width 10 cannot be divided among --heads 3" in finish(child).splitlines()[-1]
    assert child.returncode == 2


@pytest.mark.slow
def test_the_plain_script_saves_on_sigterm_and_goes_on_bit_for_bit(tmp_path, examples):
    script, steps = examples / "plain_ddp.py", "--steps 400 --log-every 1 --checkpoint plain.pt --digest d.json".split()
    child = start(tmp_path, script, *steps, ranks=2)
    for line in child.stdout:
        if line.startswith("step 5 "):
            break
    os.kill(child.pid, signal.SIGTERM)
    text = finish(child)
    assert child.returncode != 0
    left_after = int(re.search(r"asked to leave after step (\d+); saved in plain.pt", text)[1])
    assert 5 <= left_after < 400

    assert f"goes on after step {left_after}" in run(tmp_path, script, *steps, ranks=2)
    run(tmp_path, script, *"--steps 400 --log-every 0 --digest whole.json".split(), ranks=2)
    assert digest(tmp_path, "d.json") == digest(tmp_path, "whole.json")


@pytest.mark.slow
def test_under_torchrun_the_group_is_ended_before_the_interpreter_is(tmp_path):
    """A thread of gloo that wants the interpreter while it ends aborts the process."""
    script = tmp_path / "leaves.py"
    script.write_text(
        "import atexit, torch.distributed as dist\n"
        "atexit.register(lambda: print('still there' if dist.is_initialized() else 'left', flush=True))\n"
        "import restow\n"
        "restow.init()\n"
        "assert dist.is_initialized()\n"
    )
    assert run(tmp_path, script, ranks=3).count("left") == 3
