"""`restow lab` as a person types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.lab

RUN = """
import sys
from restow.cli.lab import lab
from restow.errors import RestowError
try:
    lab(prog_name="restow lab")
except RestowError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def argv_of(line: str) -> list[str]:
    return [sys.executable, "-c", RUN, *line.split()]


def restow_lab(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv_of(line), capture_output=True, text=True, timeout=60)


def answer(line: str) -> Any:
    done = restow_lab(line)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def name() -> Iterator[str]:
    """The name of a lab that `up` left up."""
    name = f"test-cli-{os.getpid()}"
    made = answer(f"up --nodes 2 --devices 1 --rate 100mbit --name {name} --json")
    assert made["name"] == name
    assert made["owner"] is None
    yield name
    restow_lab(f"down {name}")


def of(labs: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return next((lab for lab in labs if lab["name"] == name), None)


def test_a_lab_that_was_brought_up_stays_and_is_listed(name: str):
    lab = of(answer("ls --json"), name)
    assert lab
    assert [node["name"] for node in lab["nodes"]] == ["m1", "m2"]
    assert [node["rate_bits_per_s"] for node in lab["nodes"]] == [100e6, 100e6]
    assert f"lab {name}" in restow_lab("ls").stdout


def test_links_change_and_the_list_shows_it(name: str):
    assert restow_lab(f"link m1 m2 --rate 10mbit --lab {name}").returncode == 0
    assert restow_lab(f"link m2 --cut --lab {name}").returncode == 0
    lab = of(answer("ls --json"), name)
    assert lab
    assert lab["pairs"][0]["nodes"] == ["m1", "m2"]
    assert lab["pairs"][0]["rate_bits_per_s"] == 10e6
    assert [node["is_cut"] for node in lab["nodes"]] == [False, True]
    assert restow_lab(f"link m2 --heal --lab {name}").returncode == 0
    assert restow_lab(f"link m1 m2 --rate none --lab {name}").returncode == 0
    lab = of(answer("ls --json"), name)
    assert lab
    assert lab["pairs"] == []


def test_exec_runs_inside_the_node_and_gives_back_its_exit_code(name: str):
    inside = restow_lab(f"exec --lab {name} m1 -- cat /proc/net/dev")
    assert inside.returncode == 0
    assert "eth0" in inside.stdout
    assert restow_lab(f"exec --lab {name} m1 -- false").returncode == 1
    assert restow_lab(f"exec --lab {name} m1 ls --no-such-option").returncode == 2
    assert restow_lab(f"exec --lab {name} m1 -- no-such-program").returncode == 127


def test_ctrl_c_goes_to_the_program_inside(name: str):
    script = "trap 'echo interrupted; exit 9' INT; echo started; while :; do sleep 0.1; done"
    program = subprocess.Popen(
        [*argv_of(f"exec --lab {name} m1 -- sh -c"), script],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout
    assert program.stdout.readline() == "started\n"
    os.killpg(program.pid, signal.SIGINT)  # as the terminal does
    assert program.communicate(timeout=30)[0] == "interrupted\n"
    assert program.returncode == 9


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("up --rate fast", 2, "rate is 'fast'; write for example 200mbit"),
        ("up --nodes 0", 2, "nodes is 0; choose 1 to 100"),
        ("up --name {name}", 4, "is up already; take it down with restow lab down"),
        ("link m9 --cut --lab {name}", 3, "no node is named 'm9'; there are m1, m2"),
        ("link m1 --lab {name}", 2, "give --rate, --delay, --cut or --heal"),
        ("link m1 m2 m1 --cut --lab {name}", 2, "link got 3 nodes"),
        ("exec --lab {name} m9 -- true", 3, "no node is named 'm9'"),
        ("exec --lab no-such m1 -- true", 3, "no lab is named 'no-such'"),
        ("down no-such", 3, "no lab is named 'no-such'"),
    ],
)
def test_mistakes_get_one_line_and_a_code(name: str, line: str, code: int, words: str):
    done = restow_lab(line.format(name=name))
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_down_ends_what_runs_inside(name: str):
    second = f"{name}-2"
    assert restow_lab(f"up --nodes 1 --devices 0 --name {second}").returncode == 0
    with subprocess.Popen(
        [*argv_of(f"exec --lab {second} m1 -- sh -c"), "echo started; exec sleep 1000"], stdout=subprocess.PIPE
    ) as program:
        assert program.stdout
        program.stdout.readline()
        done = restow_lab(f"down {second}")
    assert done.stdout == f"{second} is down\n"
    assert program.returncode == -signal.SIGTERM
    assert of(answer("ls --json"), second) is None
    assert of(answer("ls --json"), name)
