"""The agent's part in sleeping: who was suspended stays, is gone for everybody else, and is the twin when its job comes back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from restow.job import JobSpec
from restow.messages import (
    Connect,
    Discard,
    Forget,
    Prepare,
    RankExited,
    RankKept,
    RankRolledBack,
    RankStarted,
    TwinParked,
)
from restow.placement import parse_placement
from tests.agent.node import SECRET, Node, is_gone
from tests.agent.test_channel import RANK

pytestmark = pytest.mark.live

DEVICES = '{"devices": [{"index": 0, "core": 0}, {"index": 1, "core": 0}]}'
SLEEPY = RANK + """
import signal
signal.signal(signal.SIGTERM, lambda *_: print("told to go"))
said = dict(generation=2, step=7, bytes=1, pause_s=0.1, phases=[])
role, g, is_asleep = os.environ["RESTOW_ROLE"], int(os.environ["RESTOW_GENERATION"]), False
while True:
    line = connect(role=role, generation=g)
    if is_asleep:
        say(line, type="kept", sleeps=True, **said)
    elif role == "twin":
        say(line, type="parked", signature="s", rehearsal_step_s=0.5)
    else:
        say(line, **ready)
    print("up")
    for raw in line.makefile():
        message = json.loads(raw)
        if message["type"] == "connect" and not message["then"] and not is_asleep:
            word = os.environ.get("WORD")
            if word:
                say(line, type="rolled_back", generation=2, step=7, reason="not now", may_retry=word == "later")
            else:
                is_asleep = True
                say(line, type="kept", sleeps=True, **said)
        if message["type"] == "wake" and is_asleep:
            role, g, is_asleep = "twin", message["generation"], False
            say(line, type="parked", signature="s", rehearsal_step_s=0.5)
    import time
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node(devices=DEVICES) as node:
        yield node


def suspend(job: str) -> Connect:
    return Connect(job=job, generation=2, present=1, now=parse_placement("a:0"), then=(), store=("127.0.0.1", 1), fill="vault")


def come_back(job: str, placement: str = "a:0") -> Prepare:
    spec = JobSpec(command=("python", "-c", SLEEPY))
    return Prepare(
        job=job, generation=3, spec=spec, placement=parse_placement(placement), ranks=(0,), store=("127.0.0.1", 1), secret=SECRET
    )


def asleep(node: Node) -> tuple[str, int]:
    """A job and its process."""
    job = node.launch("python", "-c", SLEEPY)
    pid = node.await_event(RankStarted, job=job).pid
    node.await_line(job, "up")
    node.tell(suspend(job))
    assert node.await_event(RankKept, job=job).step == 7
    left = node.await_event(RankExited, job=job)
    assert (left.role, left.generation, left.code) == ("leaver", 1, 0)
    return job, pid


def roles(node: Node, job: str) -> list[str]:
    return [process["role"] for process in node.ask("status")["processes"] if process["job"] == job]


def vault_of(node: Node, job: str) -> Path:
    folder = node.agent.folders.vault(job, 2)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("restarts", [False, True])
def test_who_sleeps_is_the_twin_of_its_return(node: Node, restarts):
    job, pid = asleep(node)
    assert roles(node, job) == ["sleeper"]
    if restarts:
        node.restart()
        node.await_event(RankKept, job=job)  # it says so to the new agent
    node.tell(come_back(job))
    assert node.await_event(RankStarted, job=job, generation=3).pid == pid
    assert node.await_event(TwinParked, job=job).generation == 3
    assert roles(node, job) == ["twin"]
    node.tell(come_back(job))  # once is enough
    node.tell(Forget(job=job, generation=3))
    node.await_true(lambda: is_gone(pid) and not roles(node, job), "it is left")


def test_elsewhere_another_process_begins_and_the_sleeper_ends_with_its_vault(node: Node):
    job, pid = asleep(node)
    node.tell(come_back(job, "a:1"))
    assert node.await_event(RankStarted, job=job, generation=3).pid != pid
    node.tell(Discard(job=job, generation=1))  # of a suspension before: told late
    assert sorted(roles(node, job)) == ["sleeper", "twin"]
    node.tell(Discard(job=job, generation=2))
    node.await_true(lambda: is_gone(pid), "it is left")
    node.tell(Forget(job=job, generation=3))


def test_whoever_is_killed_in_its_sleep_was_gone_before(node: Node):
    job, pid = asleep(node)
    os.kill(pid, signal.SIGKILL)
    left = node.await_event(RankExited, job=job)
    assert (left.role, left.generation) == ("leaver", 1)  # said again: nobody may have heard it
    node.tell(come_back(job))
    assert node.await_event(RankStarted, job=job, generation=3).pid != pid
    node.tell(Forget(job=job, generation=3))


def test_a_script_that_sleeps_is_not_told_to_go(node: Node):
    """It would save, log or destroy what is not its any more."""
    job, pid = asleep(node)
    node.tell(Forget(job=job, generation=2))
    node.await_true(lambda: is_gone(pid), "it is left")
    assert "told to go" not in node.log(job)


@pytest.mark.parametrize(("word", "stays"), [("later", True), ("never", False)])
def test_a_suspension_that_may_be_tried_again_keeps_what_it_has_prepared(node: Node, word, stays):
    job = node.launch("python", "-c", SLEEPY, env={"WORD": word})
    node.await_line(job, "up")
    folder = vault_of(node, job)
    node.tell(suspend(job))
    node.await_event(RankRolledBack, job=job)
    assert folder.exists() is stays
    node.tell(Forget(job=job, generation=1))
