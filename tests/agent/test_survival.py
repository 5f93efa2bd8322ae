"""What outlives what: agents and nurseries are killed, ranks go on and are found again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from restow.agent.loop import Agent
from restow.codec import to_json
from restow.errors import SetupError
from restow.job import JobSpec
from restow.messages import Decide, Launch, LaunchFailed, RankExited, RankReady, RankStarted, Stop
from restow.placement import parse_placement
from tests.agent.node import PATIENCE_S, SECRET, Node, is_gone
from tests.agent.test_channel import RANK

pytestmark = pytest.mark.live

TALKER = RANK + """
import time
while True:
    try:
        line = connect()
        say(line, **ready)
        print("up")
        line.recv(1)
    except OSError: pass
    time.sleep(0.05)
"""
COUNTER = "import time, sys\nfor i in range(10**9):\n    print(i)\n    time.sleep(0.02)"


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as node:
        yield node


@pytest.fixture
def cold_node() -> Iterator[Node]:
    """Its nursery imports nothing, which is quicker where nothing of torch is run."""
    with Node(warm=False) as node:
        yield node


def test_a_new_agent_finds_ranks_stores_pages_and_unread_exits(node: Node):
    talker = node.launch("python", "-c", TALKER)
    pid = node.await_event(RankStarted, job=talker).pid
    node.await_event(RankReady, job=talker)
    opened = node.open_store(talker)
    short = node.launch("python", "-c", "import sys; sys.exit(4)")
    node.await_event(RankStarted, job=short)
    node.await_true(lambda: not [p for p in node.ask("status")["processes"] if p["job"] == short], "it did not end")
    numbers = [n for n, _ in node.run(node.agent.events(0, 0))["events"]]
    epoch = node.ask("status")["epoch"]
    node.seen.clear()
    node.restart()
    assert node.ask("status")["epoch"] != epoch
    assert node.await_event(RankStarted, job=talker).pid == pid
    assert node.await_event(RankExited, job=short).code == 4
    assert node.await_event(RankReady, job=talker).signature == "s"  # said again to the new agent
    assert node.after > max(numbers)
    node.tell(Decide(job=talker, generation=1, step=5, go=True))
    client = dist.TCPStore(opened.host, opened.port, is_master=False, timeout=timedelta(seconds=20))
    assert client.get("decision/5") == b"go"
    node.launch("python", "-c", TALKER, job=talker)
    assert [p["pid"] for p in node.ask("status")["processes"]] == [pid]  # not started twice
    node.read()  # acknowledges the exit
    node.read()
    node.restart()
    assert not [event for event in node.read(wait_s=0.5) if isinstance(event, RankExited)]


def test_a_killed_agent_leaves_its_ranks_running(cold_node: Node):
    """Killed for real, in a process of its own."""
    cold_node.run(cold_node.agent.stop(keep_ranks=True))
    launch = Launch(
        job="lonely", generation=1, spec=JobSpec(command=("python", "-c", COUNTER)), placement=parse_placement("a:0"),
        store=("127.0.0.1", 1), secret=SECRET,
    )  # fmt: skip
    code = (
        "import asyncio, json, sys\nfrom pathlib import Path\nfrom restow.agent.loop import Agent, AgentConfig\n"
        "async def main():\n"
        f"    agent = Agent(AgentConfig(node='a', address='127.0.0.1', cluster_id='0123abcd', "
        f"node_dir=Path({str(cold_node.config.node_dir)!r}), shm_dir=Path({str(cold_node.config.shm_dir)!r})))\n"
        "    await agent.start()\n"
        f"    await agent.tell({to_json(launch)!r})\n"
        "    assert 'torch' not in sys.modules and 'ray' not in sys.modules\n"
        "    print('started', flush=True)\n    await asyncio.sleep(1000)\nasyncio.run(main())"
    )
    source = str(Path(__file__).parents[2] / "src")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": source})
    try:
        assert process.stdout
        assert process.stdout.readline() == b"started\n"
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        process.stdout.close()
    cold_node.agent = Agent(cold_node.config)
    cold_node.run(cold_node.agent.start())
    pid = cold_node.await_event(RankStarted, job="lonely").pid
    seen = len(cold_node.log("lonely").split())
    cold_node.await_true(lambda: len(cold_node.log("lonely").split()) > seen, "it does not go on")
    cold_node.tell(Stop(job="lonely", generation=1, grace_s=0))
    assert cold_node.await_event(RankExited, job="lonely").reason == "killed by SIGKILL"
    assert is_gone(pid)


def test_a_killed_nursery_is_replaced_and_its_children_are_still_watched(node: Node):
    jobs = [node.launch("python", "-c", code) for code in (COUNTER, "import time; time.sleep(1000)")]
    pids = [node.await_event(RankStarted, job=job).pid for job in jobs]
    ending = node.launch("python", "-c", "import os, time\nwhile not os.path.exists('end'): time.sleep(0.01)")
    node.await_event(RankStarted, job=ending)
    first = node.nursery_pid()
    os.kill(first, signal.SIGKILL)
    later = node.launch("python", "-c", "print('from the second')")
    node.await_event(RankExited, job=later, code=0)
    assert node.log(later) == "from the second\n"
    assert node.nursery_pid() != first
    assert not [event for event in node.seen if isinstance(event, RankExited)]
    (node.folder / "end").touch()
    assert node.await_event(RankExited, job=ending).code == 0  # it wrote that down itself
    os.kill(pids[0], signal.SIGKILL)
    killed = node.await_event(RankExited, job=jobs[0])
    assert (killed.code, killed.reason) == (-9, "exit code unknown: the nursery was killed")
    node.tell(Stop(job=jobs[1], generation=1, grace_s=30))
    node.await_event(RankExited, job=jobs[1])
    assert all(map(is_gone, pids))


def test_grace_ends_although_the_agent_is_gone(cold_node: Node):
    job = cold_node.launch("sh", "-c", "trap '' TERM; echo up; while true; do sleep 0.05; done")
    pid = cold_node.await_event(RankStarted, job=job).pid
    cold_node.await_line(job, "up")
    cold_node.tell(Stop(job=job, generation=1, grace_s=0.3))
    cold_node.run(cold_node.agent.stop(keep_ranks=True))
    cold_node.await_true(lambda: is_gone(pid), "nobody killed it")
    cold_node.agent = Agent(cold_node.config)
    cold_node.run(cold_node.agent.start())
    assert cold_node.await_event(RankExited, job=job).code == -9


def test_stopping_the_agent_ends_everything_and_keeps_the_logs(node: Node):
    job = node.launch("sh", "-c", "echo kept; sleep 1000 & sleep 1000")
    pid = node.await_event(RankStarted, job=job).pid
    node.open_store(job)
    store = node.ask("status")["stores"][0]["pid"]
    node.await_line(job, "kept")
    nursery = node.nursery_pid()
    node.run(node.agent.stop())
    for process in (pid, store, nursery):
        node.await_true(lambda process=process: is_gone(process), f"{process} is left")
    assert not node.config.shm_dir.exists()
    assert sorted(path.name for path in node.config.node_dir.iterdir()) == ["agent.lock", "logs", "nursery.log"]
    assert (node.config.node_dir / "logs" / job / "0.g1.log").read_text() == "kept\n"
    node.agent = Agent(node.config)
    node.run(node.agent.start())


def test_what_a_crash_left_in_shared_memory_is_removed(cold_node: Node):
    cold_node.run(cold_node.agent.stop(keep_ranks=True))
    stale = cold_node.config.shm_dir / "old.g1.r0.page"
    stale.write_bytes(b"x")
    cold_node.agent = Agent(cold_node.config)
    cold_node.run(cold_node.agent.start())
    assert not stale.exists()


def test_two_agents_cannot_have_one_node(cold_node: Node):
    with pytest.raises(SetupError, match="another agent lives in"):
        asyncio.run(Agent(cold_node.config).start())


def test_full_shared_memory_is_a_reason_not_a_crash(cold_node: Node):
    target = cold_node.config.shm_dir
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(target)], capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        (target / "filler").write_bytes(b"x" * 4096)
        job = cold_node.launch("python", "-c", "print('never')")
        assert "No space left on device" in cold_node.await_event(LaunchFailed, job=job).reason
    finally:
        subprocess.run(["umount", str(target)], check=True)
    ended, _ = cold_node.run_to_end("python", "-c", "1")
    assert ended.code == 0
