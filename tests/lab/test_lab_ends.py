"""However a lab ends, nothing stays: no process, no namespace, no control group, no file."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from restow.lab import Lab
from restow.lab.lab import all_labs
from restow.lab.state import LabState, read_state
from tests.lab import ordinary_user

pytestmark = pytest.mark.lab

MAKER = """
import json, os, subprocess, sys
from restow.lab import Lab
lab = Lab(nodes=2, devices=1, name=sys.argv[1])
stubborn = "trap '' TERM; echo started; exec sleep 1000"
child = lab.nodes["m1"].popen(["sh", "-c", stubborn], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(lab._state.folder, flush=True)
sys.stdin.readline()
"""


def make_in_another_process(name: str) -> tuple[subprocess.Popen[Any], LabState]:
    """A process that made a lab with a program inside that ignores SIGTERM, and waits."""
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert maker.stdout
    state = read_state(Path(maker.stdout.readline().strip()))
    assert state
    return maker, state


def leftovers(state: LabState) -> list[str]:
    """What is still there of a lab, one line each. Its namespaces are gone when nobody is inside or holds them.

    Processes are found by their mark: the kernel gives the number of a namespace that is gone to the next one.
    """
    left = [path for path in (*state.cgroups, str(state.folder)) if os.path.exists(path)]
    if state.holder and state.holder.is_alive:
        left.append("its holder")
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"RESTOW_LAB={state.mark}".encode() in environment.read_bytes().split(b"\0"):
                left.append(f"{environment.parent}: {(environment.parent / 'cmdline').read_bytes()!r}")
        except OSError:
            continue  # gone, or another user's
    return left


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    """Does it become true in time?"""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        select.select([], [], [], 0.02)
    return True


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def made(ends_clean: None, request: pytest.FixtureRequest) -> Any:
    """A maker and its lab; both ended, whatever the test does."""
    maker, state = make_in_another_process(f"test-{os.getpid()}")
    assert leftovers(state)
    yield maker, state
    maker.kill()
    maker.communicate()
    if leftovers(state):
        all_labs()


def test_closing_ends_every_process_inside_and_leaves_nothing():
    with Lab(nodes=2, devices=2) as lab:
        states = [lab._state]
        child = lab.nodes["m2"].popen(
            ["sh", "-c", "(trap '' TERM; sleep 1000) & echo started; wait"], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout
        assert child.stdout.readline() == "started\n"
        assert len(lab.processes()) >= 2
    child.stdout.close()
    assert child.returncode is not None
    assert leftovers(states[0]) == []


def test_an_error_inside_the_with_block_takes_the_lab_down():
    states = []

    def fail_inside_a_lab() -> None:
        with Lab(nodes=1, devices=1) as lab:
            states.append(lab._state)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside_a_lab()
    assert leftovers(states[0]) == []


def test_when_its_maker_is_killed_the_lab_goes_by_itself(made: tuple[subprocess.Popen[Any], LabState]):
    maker, state = made
    kill(maker.pid)
    maker.wait()
    assert wait_until(lambda: not leftovers(state)), leftovers(state)


def test_when_maker_and_holder_are_killed_the_next_start_cleans_up(made: tuple[subprocess.Popen[Any], LabState]):
    maker, state = made
    assert state.holder
    os.kill(state.holder.pid, signal.SIGSTOP)  # so that it does not clean up between the two kills
    kill(maker.pid, state.holder.pid)
    maker.wait()
    assert wait_until(lambda: not (state.holder and state.holder.is_alive))
    assert any("sleep" in line for line in leftovers(state))
    assert state.folder.exists()
    with Lab(nodes=1, devices=0):
        assert leftovers(state) == []


def test_a_holder_that_hangs_is_not_waited_for_for_ever(made: tuple[subprocess.Popen[Any], LabState]):
    maker, state = made
    assert state.holder
    os.kill(state.holder.pid, signal.SIGSTOP)
    kill(maker.pid)
    maker.wait()
    all_labs()
    assert leftovers(state) == []


def test_a_lab_whose_holder_was_killed_is_closed_by_its_maker():
    with Lab(nodes=2, devices=1) as lab:
        state = lab._state
        assert state.holder
        child = lab.nodes["m1"].popen(["sh", "-c", "echo started; exec sleep 1000"], stdout=subprocess.PIPE)
        assert child.stdout
        child.stdout.readline()
        kill(state.holder.pid)
    child.stdout.close()
    assert child.returncode == -signal.SIGTERM
    assert leftovers(state) == []


def test_processes_of_another_lab_and_of_ours_are_left_alone(made: tuple[subprocess.Popen[Any], LabState]):
    maker, state = made
    with Lab(nodes=1, devices=0), subprocess.Popen(["sleep", "1000"]) as outside:
        pass_by = outside.poll()
        outside.kill()
    assert pass_by is None
    assert state.holder
    assert state.holder.is_alive
    assert maker.poll() is None


@pytest.mark.parametrize("at", ["propose", "place", "_start_holder", "_adopt"])
def test_ctrl_c_while_it_is_made_leaves_nothing(at: str, ends_clean: None):
    """The signal comes at a known place: an audit of calls interrupts as the terminal would."""
    name = f"test-{os.getpid()}-{at.strip('_').replace('_', '-')}"
    maker = subprocess.run([sys.executable, "-c", INTERRUPTED, name, at], capture_output=True, text=True, timeout=60)
    assert "KeyboardInterrupt" in maker.stderr
    found = json.loads(maker.stdout)
    assert wait_until(lambda: not os.path.exists(found["folder"]))
    assert name not in {state.name for state in all_labs()}


INTERRUPTED = """
import json, os, signal, sys
from restow.lab import Lab
from restow.lab.state import base_folder
name, at = sys.argv[1:]
print(json.dumps({"folder": str(base_folder() / name)}), flush=True)
seen = []
def interrupt(frame, event, argument):
    inside = frame.f_code.co_name == at and "restow/lab" in frame.f_code.co_filename
    done = event == "call" if at == "_adopt" else event == "return"
    if inside and done and not seen:
        seen.append(1)
        os.kill(os.getpid(), signal.SIGINT)
sys.setprofile(interrupt)
Lab(nodes=2, devices=1, name=name)
"""


def test_an_ordinary_user_has_labs_too(ends_clean: None):
    script = f"import sys; sys.path[:0] = [{str(ordinary_user.PROJECT)!r}, {str(ordinary_user.PROJECT / 'src')!r}]"
    done = subprocess.run(
        [sys.executable, ordinary_user.__file__, "-c", script + ORDINARY],
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode == 77:
        pytest.skip(f"NOT TESTED as an ordinary user: {done.stdout}")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["uid"] != 0
    assert told["how"] == "user"
    assert told["arrived"]
    assert told["slow_s"] > 0.6
    assert not told["cut"]
    assert told["healed"]
    assert told["left"] == []


ORDINARY = """
import json, os
from restow.lab import Lab, availability
from tests.lab.test_lab_ends import leftovers
from tests.lab.wire import send, serve
how, missing = availability()
if how != "user":
    print(missing)
    raise SystemExit(77)
with Lab(nodes=2, devices=1) as lab:
    serve(lab.nodes["m2"])
    arrived = send(lab, "m1", "m2").arrived
    lab.set_link("m1", rate_bits_per_s=20e6)
    slow = send(lab, "m1", "m2", 2_000_000)
    lab.cut("m2")
    cut = send(lab, "m1", "m2", timeout_s=0.5).arrived
    lab.heal("m2")
    healed = send(lab, "m1", "m2").arrived
    state = lab._state
print(json.dumps({
    "uid": os.getuid(), "how": lab.how, "arrived": arrived, "slow_s": slow.seconds, "cut": cut, "healed": healed,
    "left": leftovers(state),
}))
"""
