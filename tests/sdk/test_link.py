"""The gate of the link: a collective waits until the link is ours, in order, and computing goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from restow.gate import FREE, INTERLEAVE, Gate, Keeper
from restow.placement import parse_placement
from restow.sdk.group import DoneWork
from restow.sdk.link import Link
from tests.sdk.test_sharing import THREE, Gates, assert_as_alone, folder, gang, until

__all__ = ["folder"]


class Sent:
    """A collective that a test ends."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.future: torch.futures.Future[str] = torch.futures.Future()

    def start(self) -> dist.Work:
        self.started.set()
        work = DoneWork("")
        work._future = self.future
        return work


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    keeper = Keeper(tmp_path, 0)
    yield keeper
    keeper.close()


@pytest.fixture
def link(tmp_path: Path, keeper: Keeper) -> Iterator[Link]:
    link = Link(Gate.join(tmp_path, 0, job="one", rank=0))
    yield link
    link.close()


@pytest.fixture
def other(tmp_path: Path, keeper: Keeper) -> Iterator[Gate]:
    gate = Gate.join(tmp_path, 0, job="two", rank=0)
    yield gate
    gate.leave()


def test_a_free_link_gives_the_collective_itself(link: Link, keeper: Keeper):
    keeper.set_mode(FREE)
    sent = Sent()
    assert isinstance(link.launch(sent.start), DoneWork)
    assert sent.started.is_set()


def test_a_collective_waits_for_the_link_and_gives_it_on_when_it_is_done(link: Link, keeper: Keeper, other: Gate):
    keeper.set_mode(INTERLEAVE)
    other.acquire()
    sent = Sent()
    work = link.launch(sent.start)
    until("it queues", lambda: other.crowded())
    assert not sent.started.is_set()
    other.release()
    assert sent.started.wait(10)
    assert not other.acquire(0.02)
    sent.future.set_result("all of it")
    work.wait()
    assert work.get_future().value() == "all of it"
    assert other.acquire(10)


def test_collectives_are_launched_in_their_order_also_when_the_gate_opens_meanwhile(link: Link, keeper: Keeper, other: Gate):
    keeper.set_mode(INTERLEAVE)
    other.acquire()
    order: list[int] = []

    def start(number: int) -> dist.Work:
        order.append(number)
        return DoneWork(number)

    works = [link.launch(lambda number=number: start(number)) for number in range(3)]  # type: ignore[misc]
    keeper.set_mode(FREE)
    works.append(link.launch(lambda: start(3)))
    for work in works:
        work.wait()
    assert order == [0, 1, 2, 3]


def test_what_a_collective_fails_with_is_told_to_who_waits_and_the_link_is_free(link: Link, keeper: Keeper, other: Gate):
    keeper.set_mode(INTERLEAVE)

    def start() -> dist.Work:
        raise dist.DistError("rank 2 is gone")

    with pytest.raises(RuntimeError, match="rank 2 is gone"):
        link.launch(start).wait()
    assert other.acquire(10)


def test_a_gang_that_hangs_with_the_link_holds_nobody_up_for_ever(link: Link, keeper: Keeper, other: Gate, monkeypatch):
    monkeypatch.setattr("restow.sdk.link.PATIENCE_S", 0.05)
    keeper.set_mode(INTERLEAVE)
    other.acquire()
    sent = Sent()
    link.launch(sent.start)
    assert sent.started.wait(10)


def test_who_held_the_link_for_moments_so_far_is_not_waited_for_for_long(
    link: Link, keeper: Keeper, other: Gate, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("restow.sdk.link.PATIENCE_S", 3600.0)
    keeper.set_mode(INTERLEAVE)
    for _ in range(2):
        other.acquire()
        assert link.gate.holding() is not None
        other.release()
    other.acquire()
    assert link.gate.last_hold_s() > 0
    sent = Sent()
    link.launch(sent.start)
    assert sent.started.wait(60)


def test_patience_is_lost_with_a_gang_that_hangs_once_and_not_at_each_collective(
    link: Link, keeper: Keeper, other: Gate, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("restow.sdk.link.PATIENCE_S", 0.05)
    keeper.set_mode(INTERLEAVE)
    other.acquire()
    first = Sent()
    link.launch(first.start)
    assert first.started.wait(10)
    first.future.set_result("sent without the gate")
    monkeypatch.setattr("restow.sdk.link.PATIENCE_S", 3600.0)
    second = Sent()
    link.launch(second.start)
    assert second.started.wait(10)  # it is the same hold still
    second.future.set_result("likewise")
    other.release()
    other.acquire()
    third = Sent()
    link.launch(third.start)
    until("it queues again, since the other has let go meanwhile", lambda: other.crowded())
    assert not third.started.is_set()
    other.release()
    assert third.started.wait(10)


@pytest.mark.live
def test_two_gangs_that_send_in_turns_print_what_they_print_alone(folder: Path):
    gates = Gates(folder, THREE, INTERLEAVE)
    node = parse_placement(THREE)[0].node
    (folder / node / "link").mkdir()
    keeper = Keeper(folder / node / "link", 0)
    keeper.set_mode(INTERLEAVE)
    with gang(folder, "one", steps=100) as one, gang(folder, "two", steps=100) as two:
        until("all are members", lambda: gates.members() == [2, 2, 2])
        until("both send", lambda: min([seat.grants for seat in keeper.look().seats] or [0]) > 5)
        keeper.set_mode(FREE)
        one.await_step(50)
        keeper.set_mode(INTERLEAVE)
        assert_as_alone(one, two, steps=100)
    keeper.close()
