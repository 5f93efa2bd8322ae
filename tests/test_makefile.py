"""`make setup` says what it does in a few lines, whatever pip prints, and names what failed; all that pip said is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
ROOT = Path(__file__).parent.parent

PIP = """#!/bin/sh
# Stands in for the python of a virtual environment.
case "$*" in
    *"pip --version") ;;
    *"pip install"*)
        for number in $(seq 60); do echo "Collecting package-$number==1.0"; echo "  Downloading package-$number.whl"; done
        {end} ;;
    *) echo "setup done" ;;
esac
"""


def setup(folder: Path, end: str) -> subprocess.CompletedProcess[str]:
    """`make setup` in a folder whose pip ends so."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PIP.replace("{end}", end))
    python.chmod(0o755)
    return make_setup(folder)


def make_setup(folder: Path) -> subprocess.CompletedProcess[str]:
    """As from a shell, although a make may be running these tests."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    words = ["make", "--no-print-directory", "setup", f"PYTHON={sys.executable}"]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def test_setup_prints_a_few_lines_and_keeps_what_pip_said(tmp_path):
    made = setup(tmp_path, "echo Installing collected packages: all of them")
    assert made.returncode == 0, made.stderr
    lines = made.stdout.splitlines()
    assert [line for line in lines if line.startswith("setup 2/3")]
    assert "  25 packages found, at package-25==1.0" in [line.rstrip() for line in lines]
    assert "  60 packages found, installing them" in [line.rstrip() for line in lines]
    assert len(lines) == 7
    assert "Downloading package-60.whl" in (tmp_path / ".venv" / "pip.log").read_text()
    assert "setup 1/3" not in make_setup(tmp_path).stdout


def test_setup_that_fails_shows_the_end_of_what_pip_said_and_where_the_rest_is(tmp_path):
    made = setup(tmp_path, "echo ERROR: no space left >&2; exit 1")
    assert made.returncode != 0
    assert "ERROR: no space left" in made.stdout
    assert made.stdout.splitlines()[-1] == "setup: pip could not install everything; all it said is in .venv/pip.log"
    assert not (tmp_path / ".venv" / "restow-setup").exists()
