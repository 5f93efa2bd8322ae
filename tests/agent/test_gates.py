"""The gates of a node as its agent keeps them: what stands on the page, and who is stopped when it does not let go."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from restow.agent.gates import Gates, is_stopped
from restow.agent.workers import Worker
from restow.errors import SetupError
from restow.gate import BEST_EFFORT, FREE, INTERLEAVE, PROTECTED, TIME_SLICE
from restow.job import Sharing
from restow.messages import DeviceFenced, RankExited, RankStarted, Share
from restow.page import create_page
from tests.agent.node import Node
from tests.gate.crowd import Crowd, Member, until

LEASE_S = 0.2


class Agent:
    """What of an agent concerns the gates of device 0, in a thread with its own event loop; the crowd looks through its keeper."""

    def __init__(self, crowd: Crowd):
        self.crowd = crowd
        self.fenced: list[tuple[str, int, int, str]] = []  # job, rank, device, reason
        self.given_on: list[tuple[str, int, str]] = []  # job, device, reason
        self.workers: list[Worker] = []
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._open()

    def _open(self) -> None:
        self.gates = Gates(self.crowd.folder, [0], drains=False, lease_s=LEASE_S, on_fenced=self._on_fenced,
                           on_given_on=lambda *what: self.given_on.append(what))  # fmt: skip
        self.do(self.gates.open)
        self.crowd._keepers = self.gates._keepers
        self._watch = asyncio.run_coroutine_threadsafe(self.gates.watch(), self.loop)

    def _on_fenced(self, job: str, rank: int, device: int, held_s: float, reason: str) -> None:
        self.fenced.append((job, rank, device, reason))

    def do(self, what: Callable[..., Any], *arguments: Any) -> Any:
        """In the agent's own thread, as everything there."""

        async def call() -> Any:
            return what(*arguments)

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(30)

    def born(self, *members: Member, device: int = 0) -> None:
        self.workers += [
            Worker(pid=m.pid, job=m.job, generation=1, rank=m.rank, role="rank", born=1, secret="", page="", log="", device=device)
            for m in members
        ]
        self.do(self.gates.update, self.workers)

    def gone(self, *members: Member) -> None:
        for member in members:
            member.kill()
        self.workers = [worker for worker in self.workers if worker.pid not in [member.pid for member in members]]
        self.do(self.gates.update, self.workers)

    def share(self, job: str, mode: str = "interleave", **how: Any) -> None:
        self.do(self.gates.share, job, Sharing(mode=mode, partners=("other",), **how), self.workers)

    def end(self) -> None:
        """As by kill -9, but for what the kernel does then: its locks are gone."""
        self._watch.cancel()
        self.do(lambda: None)
        self.do(self.gates.close)

    def restart(self) -> None:
        self.end()
        self._open()
        self.do(self.gates.update, self.workers)

    def close(self) -> None:
        self.end()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        self.loop.close()

    @property
    def mode(self) -> int:
        return self.crowd.keeper().look().mode


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    crowd = Crowd()
    try:
        yield crowd
    finally:
        crowd.close()


@pytest.fixture
def agent(crowd: Crowd) -> Iterator[Agent]:
    agent = Agent(crowd)
    try:
        yield agent
    finally:
        for member in crowd.members:
            member.kill()
        agent.close()


def two(agent: Agent, mode: str = "interleave") -> tuple[Member, Member]:
    """Members of jobs `a` and `b` on device 0, said to share in that mode."""
    members = agent.crowd.join("a"), agent.crowd.join("b")
    agent.born(*members)
    for job in ("a", "b"):
        agent.share(job, mode, quantum_s=5.0 if mode == "time-slice" else 0.0)
    return members


def stuck_and_waiting(agent: Agent) -> tuple[Member, Member]:
    """`a` holds the device and does not let go; `b` waits for it."""
    a, b = two(agent)
    a.do("acquire")
    b.begin("acquire")
    return a, b


# ---------------------------------------------------------------- what stands on the page


def test_a_gate_is_armed_while_two_jobs_are_there(crowd, agent):
    a = crowd.join("a")
    agent.born(a)
    assert agent.mode == FREE
    b = crowd.join("b")
    agent.born(b)
    assert agent.mode == INTERLEAVE  # nobody said how: in turns, so that nothing is lost
    agent.gone(b)
    assert agent.mode == FREE


def test_the_mode_is_what_the_controller_says_and_changes_while_they_are_there(agent):
    two(agent)
    for mode, word in (("time-slice", TIME_SLICE), ("free", FREE), ("interleave", INTERLEAVE)):
        for job in ("a", "b"):
            agent.share(job, mode)
        assert agent.mode == word


def test_classes_and_parts_are_said_also_to_those_who_come_later(crowd, agent):
    two(agent)
    agent.share("a", level=PROTECTED)
    agent.share("b", level=BEST_EFFORT, part=0.25)
    late = crowd.join("b", rank=1)
    agent.born(late)
    until(lambda: (seat := late.look()) is not None and (seat.level, seat.share) == (BEST_EFFORT, 0.25))
    assert [(seat.job, seat.level, seat.share) for seat in crowd.keeper().look().seats] == [
        ("a", PROTECTED, 1.0), ("b", BEST_EFFORT, 0.25), ("b", BEST_EFFORT, 0.25),
    ]  # fmt: skip


def test_what_concerns_a_rank_alone_stands_on_its_own_page(crowd, agent, tmp_path):
    members = two(agent)
    agent.workers[1].shared = page = create_page(tmp_path / "b.page")
    agent.share("b", "time-slice", quantum_s=7.5, swap_bytes=3_000_000)
    assert (page.get("quantum_s"), page.get("swap_bytes")) == (7.5, 3_000_000)
    assert members[1].look() is not None


def test_a_page_that_was_made_nonsense_is_made_anew_and_everything_said_again(crowd, agent):
    a, b = two(agent, "time-slice")
    agent.share("b", "time-slice", level=BEST_EFFORT, part=0.5, quantum_s=5.0)
    (page,) = crowd.folder.glob("device0.*.gate")
    page.write_bytes(os.urandom(4096))
    a.begin("acquire")
    b.do("acquire", 0)  # both go to the new page by themselves; before that, nobody is let in who could meet another
    b.do("release")
    assert a.answer() is True
    until(lambda: agent.mode == TIME_SLICE)
    until(lambda: (seat := b.look()) is not None and (seat.level, seat.share) == (BEST_EFFORT, 0.5))


def test_a_process_that_was_stopped_inside_the_gate_delays_what_is_said_but_loses_none_of_it(crowd, agent, caplog):
    a, b = crowd.join("a"), crowd.join("b")
    a.do("lock_the_mutex")
    a.stop()
    agent.born(a, b)
    for job in ("a", "b"):
        agent.share(job)
    assert agent.mode == FREE
    a.begin("unlock_the_mutex")
    until(lambda: a.go_on() or a.has_answered())  # again: said while the agent just lets it out, it is not heard
    a.answer()
    until(lambda: agent.mode == INTERLEAVE)
    lines = [record.message for record in caplog.records if "gate of device 0" in record.message]
    assert len(lines) == 1  # it was tried again and again, and said once
    assert f"process {a.pid} was stopped inside its mutex; continue it" in lines[0]


def test_where_no_page_can_be_made_the_agent_says_so_in_one_line(tmp_path):
    (tmp_path / "full").write_text("")
    gates = Gates(tmp_path / "full" / "gates", [0], drains=False, on_fenced=lambda *_: None, on_given_on=lambda *_: None)
    with pytest.raises(SetupError, match=r"full/gates cannot be made: .*; set RESTOW_SHM"):
        gates.open()


# ---------------------------------------------------------------- who does not let go


def test_who_holds_a_device_for_longer_than_its_lease_is_stopped_and_continued_when_its_turn_comes(agent):
    a, b = stuck_and_waiting(agent)
    assert b.answer() is True
    assert is_stopped(a.pid)
    until(lambda: bool(agent.fenced))
    ((job, rank, device, reason),) = agent.fenced
    assert (job, rank, device) == ("a", 0, 0)
    assert reason.startswith("held it for 0.")
    b.do("release")
    assert a.do("held") is True  # it never knew
    assert not is_stopped(a.pid)
    assert list(agent.crowd.folder.glob("stopping.*")) == []


def test_nobody_is_stopped_while_nobody_waits(agent):
    a, b = two(agent)
    a.do("acquire")
    looks = agent.crowd.keeper().look().seat(a.seat)
    assert looks
    until(lambda: agent.crowd.keeper().look().seat(a.seat).held_ns_total > 2 * LEASE_S * 1e9)
    assert (agent.fenced, is_stopped(a.pid)) == ([], False)
    assert b.look() is not None


def test_who_was_stopped_by_a_person_is_passed_over_until_that_person_continues_it(agent):
    a, b = stuck_and_waiting(agent)
    a.stop()
    assert b.answer() is True
    until(lambda: agent.fenced == [("a", 0, 0, "stopped by somebody")])
    b.do("release")
    assert b.do("acquire") is True  # again and again, and it stays stopped
    assert is_stopped(a.pid)
    a.go_on()
    until(lambda: is_stopped(a.pid))  # it is not its turn
    b.do("release")
    assert a.do("held") is True


@pytest.mark.slow
def test_who_is_stopped_at_any_line_of_a_release_holds_up_nobody(crowd, agent):
    for line in range(1, 1000):
        a, b = stuck_and_waiting(agent)
        crowd.wait_for(b)
        a.begin("stopped", line, "release")
        until(lambda a=a: is_stopped(a.pid) or a.has_answered())  # type: ignore[misc]
        has_ended = a.has_answered()
        assert b.answer() is True, f"line {line}"
        until(lambda a=a, ended=has_ended: ended or is_stopped(a.pid))  # type: ignore[misc]  # continued for a moment at most
        agent.gone(a, b)
        if has_ended:
            break
    assert line > 10


def test_a_turn_that_nobody_uses_is_given_on(agent):
    a, b = two(agent, "time-slice")  # a has the first turn, and computes nothing
    b.begin("acquire")
    assert b.answer() is True
    a.begin("acquire")
    b.do("release")
    assert a.answer() is True  # b had its turn, and lets it pass
    assert [(job, device) for job, device, _ in agent.given_on] == [("a", 0), ("b", 0)]
    assert agent.fenced == []


def test_a_turn_is_not_given_on_where_memory_was_to_be_swapped_out_first(agent):
    a, b = two(agent, "time-slice")
    agent.share("a", "time-slice", swap_bytes=1000)
    b.begin("acquire")
    until(lambda: bool((seat := b.look()) and seat.waiting and time.monotonic_ns() - seat.waiting_since_ns > 4 * LEASE_S * 1e9))
    assert b.has_answered() is False
    a.do("acquire")
    a.do("pass_turn")
    assert b.answer() is True


def test_a_fenced_process_goes_on_when_the_other_job_has_ended(agent):
    a, b = stuck_and_waiting(agent)
    assert b.answer() is True
    until(lambda: bool(agent.fenced))
    agent.gone(b)  # a device with one job has a free gate, where nobody is let in any more
    assert a.do("held") is True
    until(lambda: agent.mode == FREE)


def test_a_fenced_process_that_is_continued_by_a_person_before_its_turn_is_stopped_again(agent):
    a, b = stuck_and_waiting(agent)
    assert b.answer() is True
    until(lambda: bool(agent.fenced))
    a.go_on()
    until(lambda: is_stopped(a.pid))
    b.do("release")
    assert a.do("held") is True


# ---------------------------------------------------------------- agents that end


def test_without_an_agent_the_gate_goes_on_and_the_next_one_finds_it_as_it_was(agent):
    a, b = two(agent, "time-slice")
    agent.end()
    a.do("acquire")
    b.begin("acquire")
    a.do("pass_turn")
    assert b.answer() is True
    agent._open()
    agent.do(agent.gates.update, agent.workers)
    assert agent.mode == TIME_SLICE  # although it has not been told yet
    assert agent.crowd.owner() == b.pid


def test_an_agent_that_comes_after_a_killed_one_continues_whom_that_one_had_fenced(agent):
    a, b = stuck_and_waiting(agent)
    assert b.answer() is True
    until(lambda: bool(agent.fenced))
    agent.end()
    b.kill()
    agent.workers = [worker for worker in agent.workers if worker.pid == a.pid]
    agent._open()
    agent.do(agent.gates.update, agent.workers)
    assert a.do("held") is True  # though it is alone now, and its gate was to be free
    until(lambda: agent.mode == FREE)


def test_who_was_stopped_by_a_person_stays_so_under_the_next_agent(agent):
    a, b = stuck_and_waiting(agent)
    a.stop()
    assert b.answer() is True
    until(lambda: bool(agent.fenced))
    agent.restart()
    b.do("release")
    assert b.do("acquire") is True
    b.do("release")
    assert is_stopped(a.pid)
    a.go_on()
    assert a.do("held") in (True, False)  # stopped once more at most, and let in, since nobody waits
    assert a.do("acquire") is True


def test_whom_a_killed_agent_had_stopped_without_saying_why_goes_on(agent):
    a, b = stuck_and_waiting(agent)
    agent.end()
    (agent.crowd.folder / f"stopping.{a.pid}").touch()
    a.stop()
    agent._open()
    until(lambda: not is_stopped(a.pid))
    a.do("release")
    assert b.answer() is True
    assert agent.fenced == []


HOLDER = """
import os, sys, time
from pathlib import Path
from restow.gate import Gate
folder, _, device = os.environ["RESTOW_GATE"].rpartition(":")
gate = Gate.join(Path(folder), int(device), job=os.environ["RESTOW_JOB"], rank=0)
while gate.mode == 0:  # we are alone here
    time.sleep(0.01)
gate.acquire()
print("in", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
gate.release()
"""


def test_an_event_says_who_was_fenced_and_why_and_the_job_ends_well(tmp_path: Path):
    sharing = Sharing(mode="interleave", partners=("other",))
    with Node(warm=False) as node:
        script = node.script(HOLDER)
        first = node.launch(sys.executable, script, str(tmp_path / "go"))
        pid = node.await_event(RankStarted, job=first).pid
        second = node.launch(sys.executable, script, str(tmp_path / "go"))
        for job in (first, second):
            node.tell(Share(job=job, generation=1, sharing=sharing))
        node.await_line(first, "in")  # as soon as there are two, long before the other's interpreter is up
        os.kill(pid, signal.SIGSTOP)
        fenced = node.await_event(DeviceFenced)
        assert (fenced.job, fenced.generation, fenced.rank, fenced.device, fenced.reason) == (first, 1, 0, 0, "stopped by somebody")
        node.await_line(second, "in")
        node.restart()
        os.kill(pid, signal.SIGCONT)
        (tmp_path / "go").touch()
        assert {node.await_event(RankExited, job=job).code for job in (first, second)} == {0}
