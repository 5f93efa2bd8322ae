"""Leavers and twins are killed at every stage of a switch: the gang prints what it would have printed, and no step is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from restow.placement import parse_placement
from restow.sdk.group import DoneWork, SwitchGroup
from restow.sdk.guard import Guard
from restow.sdk.takeover import Stuck, choose, keepers
from restow.sdk.terms import Outcome, Report, Role
from tests.sdk.gang import PATIENCE_S, Gang, Switching
from tests.sdk.test_switch import SCRIPT, arguments, undisturbed

LAST = ("a:0 a:1 b:0", "a:0 a:1 a:2")  # three ranks, the last one leaves
FIRST = ("b:0 a:1 a:2", "a:0 a:1 a:2")  # rank 0 leaves: it broadcasts the buffers
HOLD = 20


@contextlib.contextmanager
def connected(now: str, then: str, fill: str = "replica", stops: str = "", holds: tuple[int, ...] = (HOLD,)) -> Iterator[Switching]:
    """A gang whose twins stand by, held inside step HOLD; guarded from its next save point on."""
    with Gang(SCRIPT, now, [*arguments(), "--stops", stops], holds=holds) as gang:
        gang.await_step(HOLD)
        switching = gang.prepare(then, fill)
        switching.connect()
        yield switching


def assert_nothing_was_lost(gang: Gang) -> None:
    gang.await_end()
    ranks = len(gang.placement)
    assert [gang.story(rank) for rank in range(ranks)] == undisturbed(ranks)


def test_nothing_overtakes_what_was_held_back_during_a_switch_that_is_rolled_back():
    """The guard is dropped when the outcome is known, before it has launched what waited: the next collective waits, too."""
    launched: list[int] = []
    is_waiting, is_dropped, is_given = threading.Event(), threading.Event(), threading.Event()

    class Inner:
        def backend(self, device_type: str) -> Any:
            return self

        def allreduce(self, tensors: list[torch.Tensor], options: Any) -> dist.Work:
            launched.append(tensors[0].numel())
            return DoneWork(tensors)

    class NoStore(SimpleNamespace):
        role, rank, is_guarded, busy = Role.STAYING, 0, True, threading.Lock()
        terms = SimpleNamespace(now=parse_placement(LAST[0]), then=parse_placement(LAST[1]))

        def open_store(self) -> None: ...

        def finish(self, groups: Any, report: Report) -> None:
            is_waiting.wait(PATIENCE_S)
            report.outcome = Outcome.ROLLED_BACK

    def drop(attempt: Any, step: int, report: Report) -> None:
        guard.close()
        is_dropped.set()
        is_given.wait(PATIENCE_S)

    group = SwitchGroup("group0", range(3), 0, Inner())
    table = SimpleNamespace(tensors=dict)
    nobody = lambda *_: None  # noqa: E731
    guard = Guard(NoStore(), table, [group], on_finished=drop, on_moved=nobody, on_back=nobody)  # type: ignore[arg-type]
    guard.arm(20)
    guard.finish_later(Report())
    works = [group.allreduce([torch.ones(1)])]
    is_waiting.set()
    assert is_dropped.wait(PATIENCE_S)
    works.append(group.allreduce([torch.ones(2)]))
    is_given.set()
    assert all(work.wait() for work in works)
    group.allreduce([torch.ones(3)]).wait()
    assert launched == [1, 2, 3]
    assert group.guard is None


@pytest.mark.live
@pytest.mark.parametrize(
    ("move", "leaver", "fill", "place"),
    [
        (LAST, 2, "replica", "forward"),
        (LAST, 2, "shadow", "backward"),
        (LAST, 2, "copy", "backward"),
        (FIRST, 0, "replica", "backward"),
        (LAST, 2, "replica", "update"),
        (FIRST, 0, "shadow", "update"),
        (LAST, 2, "shadow", "end"),
    ],
)
def test_the_twin_takes_over_from_a_leaver_that_is_killed_inside_a_step(move, leaver, fill, place):
    with connected(*move, fill, stops=f"{leaver}:25:{place}") as switching:
        gang = switching.gang
        gang.release()
        gang.await_stop(leaver, 25, place)
        gang.kill(switching.old[leaver])
        facts = switching.await_taken_over()
        assert {fact["step"] for fact in facts} == {25}
        assert_nothing_was_lost(gang)


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.parametrize(("move", "leaver", "fill", "place"), [
    (LAST, 2, "replica", "backward"), (FIRST, 0, "copy", "update"),
])  # fmt: skip
def test_a_leaver_is_killed_while_its_twin_still_rehearses(move, leaver, fill, place):
    now, then = move
    with Gang(SCRIPT, now, [*arguments(), "--stops", f"{leaver}:25:{place}"], holds=(HOLD,)) as gang:
        gang.await_step(HOLD)
        switching = gang.begin(then, fill)
        gang.release()
        gang.await_stop(leaver, 25, place)
        gang.kill(switching.old[leaver])
        gang.await_fact(switching.twins, "parked")
        switching.connect(without=leaver)
        assert {fact["step"] for fact in switching.await_taken_over()} == {25}
        assert_nothing_was_lost(gang)


@pytest.mark.live
def test_two_of_four_leave_and_one_of_them_is_killed():
    with connected("a:0 a:1 b:0 b:1", "b:2 b:3 b:0 b:1", stops="0:25:backward") as switching:
        gang = switching.gang
        gang.release()
        gang.await_stop(0, 25, "backward")
        gang.kill(switching.old[0])
        switching.await_taken_over()
        assert switching.old[1].popen.wait(PATIENCE_S) == 0
        assert_nothing_was_lost(gang)


@pytest.mark.live
def test_a_leaver_killed_at_the_switch_step_before_it_handed_over():
    with connected(*LAST) as switching:
        gang, leaver = switching.gang, switching.old[2]
        switching.propose()
        gang.release()
        await_kept(switching, 2, switching.step)  # now it waits for the decision
        gang.kill(leaver)
        assert switching.decide("go") == "go"
        assert {fact["step"] for fact in switching.await_taken_over()} == {switching.step}
        assert_nothing_was_lost(gang)


@pytest.mark.live
def test_a_leaver_killed_at_the_switch_step_after_it_handed_over():
    with connected(*LAST, holds=(HOLD, 24)) as switching:
        gang, leaver, staying = switching.gang, switching.old[2], switching.old[0]
        switching.propose(25)
        gang.release()
        await_line(gang, 0, 24)  # it is held there, its part in the step is done
        os.kill(staying.popen.pid, signal.SIGSTOP)  # so that the others come to the switch step and cannot finish it
        switching.decide("go")
        gang.release()
        await_key(switching, "private/2")
        gang.kill(leaver)
        os.kill(staying.popen.pid, signal.SIGCONT)
        assert {fact["step"] for fact in switching.await_taken_over()} == {25}
        assert_nothing_was_lost(gang)


@pytest.mark.live
@pytest.mark.parametrize(
    ("move", "rank", "fill", "place"),
    [
        (LAST, 2, "replica", "forward"),
        (FIRST, 0, "replica", "backward"),
        (LAST, 2, "shadow", "update"),
        (LAST, 2, "copy", "end"),
    ],
)
def test_the_leaver_goes_on_when_its_twin_is_killed_in_its_first_step(move, rank, fill, place):
    with connected(*move, fill, stops=f"{rank}:26:{place}") as switching:
        gang = switching.gang
        switching.propose(26)
        switching.decide("go")
        gang.release()
        gang.await_stop(rank, 26, place)
        gang.kill(switching.twins[0])
        facts = gang.await_fact(switching.old, "rolled_back", 2)
        assert {fact["step"] for fact in facts} == {26}
        assert_nothing_was_lost(gang)


@pytest.mark.live
def test_leaver_and_twin_killed_together_end_the_job_with_a_reason():
    with connected(*LAST, stops="2:25:backward") as switching:
        gang = switching.gang
        gang.release()
        gang.await_stop(2, 25, "backward")
        gang.kill(switching.twins[0])
        gang.kill(switching.old[2])
        await_key(switching, "stuck/0")  # both know by now that the step has failed
        await_key(switching, "stuck/1")
        for process in switching.old[:2]:
            gang.tell(process, type="abandon", generation=2, reason="rank 2 and its twin were lost")
        for process in switching.old[:2]:
            assert process.popen.wait(PATIENCE_S) == 1
            assert "could not save this step" in process.log.read_text()


def await_line(gang: Gang, rank: int, step: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not any(line.startswith(f"{step} ") for line in gang.output(rank)):
        assert time.monotonic() < deadline, f"rank {rank} did not print step {step}"
        time.sleep(0.002)


def await_kept(switching: Switching, rank: int, step: int) -> None:
    """Until the private state of this save point is in the store."""
    key = f"private/{rank}/{step % 2}"
    await_key(switching, key)
    deadline = time.monotonic() + PATIENCE_S
    while int.from_bytes(switching.store.get(key)[:8], "big") < step:
        assert time.monotonic() < deadline, f"rank {rank} did not come to step {step}"
        time.sleep(0.002)


def await_key(switching: Switching, key: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not switching.store.check([key]):
        assert time.monotonic() < deadline, f"nobody wrote {key}"
        time.sleep(0.002)


# ---------------------------------------------------------------- the decision alone

NOW, THEN = (parse_placement(text) for text in LAST)


def stuck(step: int, *holds: int, first: int = 20) -> Stuck:
    return Stuck(step=step, first=first, holds=holds)


def test_the_step_is_the_earliest_that_somebody_still_needs():
    taken = choose(NOW, THEN, {0: stuck(26, 26, 25), 1: stuck(25, 25)}, {2: (25, 24)})
    assert (taken.step, taken.sources, taken.muted) == (25, {2: 0}, ())


def test_a_step_that_the_lost_process_finished_is_not_printed_again():
    taken = choose(NOW, THEN, {0: stuck(26, 26), 1: stuck(25, 25)}, {2: (25, 26)})
    assert (taken.step, taken.sources, taken.muted) == (25, {2: 1}, (2,))


def test_state_comes_from_the_twins_own_node_where_it_can():
    now, then = parse_placement("b:0 a:0 c:0"), parse_placement("b:0 a:0 a:1")
    assert choose(now, then, {0: stuck(25, 25), 1: stuck(25, 25)}, {2: (25,)}).sources == {2: 1}


def test_what_cannot_be_saved_says_why():
    both = {0: stuck(26, 26), 1: stuck(26, 26)}
    assert "left no private state" in choose(NOW, THEN, both, {2: ()}).why_not
    assert "no rank holds the state of step 25" in choose(NOW, THEN, both, {2: (25, 24)}).why_not
    assert "from step 26 on, step 25 is needed" in choose(NOW, THEN, {0: stuck(26, 25, first=26)}, {2: (25,)}).why_not


def test_the_lowest_staying_rank_of_each_destination_keeps_the_state():
    assert keepers(NOW, THEN) == {0}
    assert keepers(*(parse_placement(text) for text in ("a:0 a:1 b:0 b:1", "b:2 b:3 b:0 b:1"))) == {2}
    assert keepers(*(parse_placement(text) for text in ("a:0 a:1", "b:0 b:1"))) == {0, 1}
