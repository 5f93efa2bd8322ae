"""What arrives at the agent's socket: ranks that prove who they are, and everything else."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator

import pytest

from restow.messages import Progressed, RankExited, RankReady, RankStarted, Stop
from tests.agent.node import SECRET, Line, Node

pytestmark = pytest.mark.live

IDLE = "import time\nprint('up')\ntime.sleep(1000)"
RANK = """
import json, os, socket, sys
def connect(**changes):
    line = socket.socket(socket.AF_UNIX)
    line.connect(os.environ["RESTOW_AGENT"])
    hello = dict(type="hello", job=os.environ["RESTOW_JOB"], generation=int(os.environ["RESTOW_GENERATION"]),
                 rank=int(os.environ["RANK"]), role=os.environ["RESTOW_ROLE"], pid=os.getpid(), secret=os.environ["RESTOW_SECRET"])
    line.sendall(json.dumps({**hello, **changes}).encode() + b"\\n")
    return line
def say(line, **message):
    line.sendall(json.dumps(message).encode() + b"\\n")
ready = dict(type="ready", signature="s", state_bytes=8, private_bytes=4, movable=True, why_not="")
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as node:
        yield node


def rank(node: Node, text: str) -> str:
    return node.launch("python", "-c", RANK + text)


def test_a_rank_that_proves_itself_is_heard(node: Node):
    job = rank(node, "line = connect(); say(line, **ready, from_a_later_version=1); line.recv(1)")
    ready = node.await_event(RankReady, job=job)
    assert (ready.rank, ready.generation, ready.node, ready.state_bytes, ready.movable) == (0, 1, "a", 8, True)
    node.tell(Stop(job=job, generation=1, grace_s=0))


@pytest.mark.parametrize("lie", ["secret='00'", "secret=None", "pid=1", "job='other'", "rank=5", "pid='x'"])
def test_a_hello_that_lies_is_refused(node: Node, lie: str):
    job = rank(node, f"line = connect({lie}); print('refused' if line.recv(1) == b'' else 'heard')")
    node.await_line(job, "refused")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * (2 << 20), b"{" * (2 << 20) + b"\n", b"[" * 100_000 + b"\n", b"\xff\xfe\n", b"GET / HTTP/1.1\r\n\r\n",
        b"half a line",
    ],
    ids=["zeros", "braces", "deep", "not-text", "http", "half"],
)
def test_garbage_from_a_stranger_ends_its_connection_and_nothing_else(node: Node, garbage: bytes, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "restow.agent.channel"), Line(node.config.node_dir / "agent.sock") as line:
        try:
            line.send(garbage)
            line.socket.shutdown(1)
        except OSError:
            pass  # it hung up on us in the middle, which is the point
        assert line.is_closed_by_agent()
        node.await_true(lambda: caplog.records, "nothing was logged")
    assert len(caplog.records) == 1
    assert len(caplog.text) < 500
    assert node.ask("status")["node"] == "a"


def test_garbage_from_a_rank_is_dropped_and_what_follows_is_heard(node: Node, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "restow.agent.channel"):
        job = rank(
            node,
            "line = connect()\nfor i in range(50): line.sendall(b'nonsense\\n')\n"
            "say(line, type='ready'); say(line, type='dance'); say(line, **{**ready, 'state_bytes': 'many'})\n"
            "raw = json.dumps(ready).encode() + b'\\n'\nline.sendall(raw[:20])\nline.sendall(raw[20:])\nline.recv(1)",
        )
        assert node.await_event(RankReady, job=job).signature == "s"
    assert len([record for record in caplog.records if "nonsense" in record.message]) == 1
    node.tell(Stop(job=job, generation=1, grace_s=0))


def test_the_socket_is_ours_alone(node: Node):
    assert os.stat(node.config.node_dir / "agent.sock").st_mode & 0o777 == 0o600
    for folder in (node.config.node_dir, node.config.shm_dir):
        assert os.stat(folder).st_mode & 0o777 == 0o700


def test_progress_is_read_from_the_page_and_told_when_it_changes(node: Node):
    job = node.launch("python", "-c", IDLE)
    node.await_event(RankStarted, job=job)
    page = node.page(job)
    for name, value in {"generation": 1, "steps_total": 90, "step": 7, "step_s": 0.25, "wire_bytes": 11}.items():
        page.set(name, value)
    page.write_text(json.dumps({"loss": 0.5, "note": "text is not a number"}))
    told = node.await_event(Progressed, job=job, step=7)
    assert (told.steps_total, told.step_s, told.values) == (90, 0.25, (("loss", 0.5),))
    page.set("generation", 2)  # it has switched while the agent was away, which knows it as of generation 1
    page.set("step", 8)
    assert node.await_event(Progressed, job=job, step=8).generation == 2
    node.read()
    node.seen = [event for event in node.seen if not isinstance(event, Progressed)]
    assert node.ask("page", job=job, rank=0)["words"]["step"] == 8
    assert not [event for event in node.read(wait_s=1.2) if isinstance(event, Progressed)]
    page.close()
    node.tell(Stop(job=job, generation=1, grace_s=0))
    assert SECRET not in json.dumps(node.ask("status"))


def test_how_far_a_rank_came_is_told_when_it_ends(node: Node):
    code = (
        "import os; from pathlib import Path; from restow.page import open_page\n"
        "page = open_page(Path(os.environ['RESTOW_PAGE'])); page.set('generation', 1); page.set('step', 41)"
    )
    job = node.launch("python", "-c", code)
    node.await_event(RankExited, job=job)
    assert [event.step for event in node.seen if isinstance(event, Progressed) and event.job == job][-1:] == [41]
