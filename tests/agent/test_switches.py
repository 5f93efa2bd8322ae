"""The agent's part in a switch, with ranks that speak the channel and the page and do nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch.distributed as dist

from restow.job import JobSpec
from restow.messages import (
    Abandon,
    Connect,
    Decide,
    Forget,
    OpenStore,
    Prepare,
    Propose,
    RankConnected,
    RankExited,
    RankStarted,
    RankSwitched,
    StepAccepted,
    StepRefused,
    Stop,
    StoreOpened,
    TwinParked,
)
from restow.placement import parse_placement
from tests.agent.node import SECRET, Node, is_gone
from tests.agent.test_channel import RANK

pytestmark = pytest.mark.live

DEVICES = '{"devices": [{"index": 0, "core": 0}, {"index": 1, "core": 0}]}'
OBEDIENT = RANK + """
def serve(role, g):
    global line
    line = connect(role=role, generation=g)
    say(line, **(dict(type="parked", signature="s", rehearsal_step_s=0.5) if role == "twin" else ready))
    print("up")
    for raw in line.makefile():
        message = json.loads(raw)
        print("heard", message["type"], message["generation"])
        if message["type"] == "abandon" and role == "twin":
            os._exit(0)
        if message["type"] == "connect":
            say(line, type="connected", generation=message["generation"])
        if message["type"] == "connect" and message["fill"] == "copy":
            leaves = role == "rank" and message["now"][0] != message["then"][0]
            if leaves:
                say(line, type="retired", generation=message["generation"])
                os._exit(0)
            say(line, type="switched", generation=message["generation"], step=9, pause_s=0.1, wire_bytes=3, phases=[["fill", 0.1]])
            role, g = "rank", message["generation"]
import time
while True:
    serve(os.environ["RESTOW_ROLE"], int(os.environ["RESTOW_GENERATION"]))
    time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node(devices=DEVICES) as node:
        yield node


def connect(job: str, now: str = "a:0", then: str = "a:1", generation: int = 2, fill: str = "replica") -> Connect:
    return Connect(
        job=job, generation=generation, present=1, now=parse_placement(now), then=parse_placement(then), store=("127.0.0.1", 1),
        fill=fill,
    )  # fmt: skip


def prepare(node: Node, job: str, script: str, generation: int = 2, placement: str = "a:1") -> int:
    spec = JobSpec(command=("python", "-c", script))
    node.tell(
        Prepare(
            job=job, generation=generation, spec=spec, placement=parse_placement(placement), ranks=(0,),
            store=("127.0.0.1", 1), secret=SECRET,
        )
    )  # fmt: skip
    return node.await_event(RankStarted, job=job, generation=generation).pid


def test_a_twin_parks_connects_and_becomes_the_rank(node: Node):
    job = node.launch("python", "-c", OBEDIENT)
    old = node.await_event(RankStarted, job=job).pid
    node.await_line(job, "up")
    pid = prepare(node, job, OBEDIENT)
    assert node.page(job).get("armed") == 1
    parked = node.await_event(TwinParked, job=job)
    assert (parked.generation, parked.signature, parked.rehearsal_step_s) == (2, "s", 0.5)
    node.tell(connect(job, fill="copy"))
    assert {node.await_event(RankConnected, job=job).role, node.await_event(RankConnected, job=job).role} == {"rank", "twin"}
    switched = node.await_event(RankSwitched, job=job)
    assert (switched.generation, switched.step, switched.phases) == (2, 9, (("fill", 0.1),))
    left = node.await_event(RankExited, job=job)
    assert (left.role, left.generation, left.code) == ("leaver", 1, 0)
    [process] = [p for p in node.ask("status")["processes"] if p["job"] == job]
    assert (process["role"], process["generation"], process["pid"]) == ("rank", 2, pid)
    assert old != pid
    assert "up" in node.log(job, generation=2, rehearsal=True)
    node.tell(Forget(job=job, generation=2))
    node.await_event(RankExited, job=job, generation=2)


def test_a_step_that_all_will_see_is_accepted_and_one_too_near_is_refused(node: Node):
    job = node.launch("sleep", "1000", placement="a:0 a:1")
    for rank in (0, 1):
        node.await_event(RankStarted, job=job, rank=rank)
    pages = [node.page(job, rank) for rank in (0, 1)]
    node.tell(connect(job, now="a:0 a:1", then="a:1 a:0"))
    pages[0].set("step", 10)
    pages[1].set("step", 11)
    node.tell(Propose(job=job, generation=2, step=11))
    assert node.await_event(StepRefused, job=job).at == 11
    assert [page.get("switch_step") for page in pages] == [-1, 11]  # who is there may wait there; it reads the decision
    node.tell(Propose(job=job, generation=2, step=14))
    assert node.await_event(StepAccepted, job=job).step == 14
    assert [(page.get("switch_step"), page.get("switch_generation")) for page in pages] == [(14, 2), (14, 2)]
    pid = next(p["pid"] for p in node.ask("status")["processes"] if p["job"] == job and p["rank"] == 1)
    os.kill(pid, signal.SIGKILL)
    node.await_event(RankExited, job=job, rank=1)
    node.tell(Propose(job=job, generation=2, step=15))
    assert node.await_event(StepRefused, job=job, step=15).at == -1
    node.tell(Stop(job=job, generation=1, grace_s=0))
    node.await_event(RankExited, job=job, rank=0)


def test_who_comes_late_is_told_what_it_missed(node: Node):
    job = node.launch("sh", "-c", "sleep 1000")
    twin = prepare(node, job, "import time\nwhile not __import__('os').path.exists('go'): time.sleep(0.01)\n" + OBEDIENT)
    node.tell(connect(job))
    (node.folder / "go").touch()
    os.kill(twin, 0)
    node.tell(Abandon(job=job, generation=1, reason="an old story"))
    node.tell(Abandon(job=job, generation=2, reason="a change of mind"))
    gone = node.await_event(RankExited, job=job, generation=2)
    assert (gone.role, gone.reason) == ("twin", "not needed: the switch was given up")
    node.tell(connect(job, generation=2))  # late
    assert node.page(job).get("armed") == 0
    node.tell(Stop(job=job, generation=1, grace_s=0))


def test_a_rank_that_connects_after_the_word_hears_it(node: Node):
    gate = node.folder / "gate"
    script = node.script(f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n" + OBEDIENT, "late.py")
    job = node.launch("python", script)
    node.tell(connect(job))
    gate.touch()
    node.await_event(RankConnected, job=job, generation=2)
    node.tell(Abandon(job=job, generation=2, reason="no"))
    node.await_line(job, "heard abandon 2")
    node.tell(Stop(job=job, generation=1, grace_s=0))
    assert node.await_event(RankExited, job=job).role == "rank"


def test_a_twin_that_ends_before_it_parks_says_what_is_missing(node: Node):
    job = node.job()
    prepare(node, job, "print('done already')")
    gone = node.await_event(RankExited, job=job)
    assert (gone.role, gone.code) == ("twin", 0)
    assert "before it reached job.steps" in gone.reason


def test_a_store_is_opened_once_takes_the_first_word_and_ends_when_forgotten(node: Node):
    job = node.job()
    opened = node.open_store(job, 3)
    node.tell(OpenStore(job=job, generation=3))
    assert node.await_event(StoreOpened, job=job).port == opened.port
    node.tell(Decide(job=job, generation=3, step=20, go=True))
    node.tell(Decide(job=job, generation=3, step=20, go=False))
    node.tell(Decide(job=job, generation=4, step=20, go=True))  # no such store: the ranks decide
    client = dist.TCPStore(opened.host, opened.port, is_master=False, timeout=timedelta(seconds=20))
    assert client.get("decision/20") == b"go"
    [pid] = [store["pid"] for store in node.ask("status")["stores"] if store["job"] == job]
    del client
    node.tell(Forget(job=job, generation=3))
    node.await_true(lambda: is_gone(pid), "the store is left")
    assert not [store for store in node.ask("status")["stores"] if store["job"] == job]
