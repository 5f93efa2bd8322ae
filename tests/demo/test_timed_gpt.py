"""The example that the scene plays with: what it prints is enough to compare two runs, one of which was ended early."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

from restow.demo.multiplex.measure import losses, read_marks

pytestmark = pytest.mark.live
TINY = "--layers 1 --width 16 --heads 2 --context 8 --batch 2 --characters 2000".split()


def marks(script, *arguments, ranks=1):
    torchrun = [*"-m torch.distributed.run --standalone --nproc-per-node".split(), str(ranks)] if ranks > 1 else []
    env = {key: value for key, value in os.environ.items() if not key.startswith("RESTOW_") or key == "RESTOW_TEST"}
    with tempfile.TemporaryDirectory() as folder:  # torchrun leaves one
        child = subprocess.run(
            [sys.executable, *torchrun, str(script), *TINY, *arguments],
            env=env | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PET_LOG_DIR": folder},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert child.returncode == 0, child.stderr
    return read_marks(child.stdout.splitlines())


@pytest.mark.slow
def test_a_run_that_ends_early_prints_the_same_losses_up_to_there(examples):
    script = examples / "timed_gpt.py"
    whole, early = marks(script, "--steps", "8"), marks(script, "--steps", "8", "--stop-after", "3")
    assert [mark.step for mark in early] == [1, 2, 3]
    assert losses(early, 1)[0] == losses(whole, 1)[0][:3]
    assert all(mark.cpu_s > 0 for mark in whole)
    assert [mark.end_s for mark in whole] == sorted(mark.end_s for mark in whole)


@pytest.mark.slow
def test_every_rank_prints_its_own(examples):
    found = losses(marks(examples / "timed_gpt.py", "--steps", "3", ranks=2), 2)
    assert [len(of_rank) for of_rank in found] == [3, 3]
    assert found[0] != found[1]
