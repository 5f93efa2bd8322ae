"""Whose turn it is: exclusion, order, classes, hand-off, and what a member may ask."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time

import pytest

from restow.errors import SetupError
from restow.gate import BEST_EFFORT, FREE, INTERLEAVE, ORDINARY, PROTECTED, SEATS, Gate, Keeper
from restow.gate.record import job_key, job_name
from tests.gate.crowd import each_line, until


def test_only_one_holds_the_device_and_the_others_come_in_the_order_of_their_arrival(crowd):
    members = [crowd.join(job) for job in "abcd"]
    assert members[0].do("acquire")
    for waiting in members[1:]:
        waiting.begin("acquire")
        crowd.wait_for(waiting)
    for holder, following in itertools.pairwise(members):
        assert not any(member.has_answered() for member in members)
        assert crowd.owner() == holder.pid
        holder.do("release")
        assert following.answer() is True


def test_a_better_class_goes_first_and_within_a_class_who_came_first(crowd):
    holder = crowd.join("holder")
    holder.do("acquire")
    levels = {"background": BEST_EFFORT, "one": ORDINARY, "two": ORDINARY, "serving": PROTECTED}
    waiting = [crowd.join(job, level=level) for job, level in levels.items()]
    for member in waiting:
        member.begin("acquire")
        crowd.wait_for(member)
    came = []
    for _ in waiting:
        holder.do("release")
        until(lambda: any(member.has_answered() for member in waiting))
        (holder,) = (member for member in waiting if member.has_answered())
        holder.answer()
        came.append(holder.job)
    assert came == ["serving", "one", "two", "background"]


def test_who_comes_back_at_once_queues_behind_who_waits(crowd):
    a, b = crowd.join("a"), crowd.join("b")
    a.do("acquire")
    b.begin("acquire")
    crowd.wait_for(b)
    b.stop()  # it cannot even wake up
    a.do("release")
    assert crowd.owner() == b.pid
    assert a.do("acquire", 0) is False
    b.go_on()
    assert b.answer() is True


def test_two_that_come_back_at_once_take_strict_turns(crowd):
    a, b = Gate.join(crowd.folder, 0, job="a", rank=0), Gate.join(crowd.folder, 0, job="b", rank=0)
    came = []

    def run(gate: Gate) -> None:
        for _ in range(50):
            gate.acquire()
            came.append(gate.job)
            if len(came) < 80:
                until(gate.crowded)
            gate.release()

    threads = [threading.Thread(target=run, args=(gate,)) for gate in (a, b)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one != other for one, other in itertools.pairwise(came[:80]))


def test_acquiring_what_is_held_and_releasing_what_is_not_does_nothing(crowd):
    gate = Gate.join(crowd.folder, 0, job="a", rank=0)
    gate.release()
    assert not gate.held
    assert gate.acquire()
    assert gate.acquire(0)
    assert gate.held
    gate.release()
    gate.release()
    assert not gate.held
    assert crowd.keeper().look().seats[0].grants == 1


def test_who_did_not_want_to_wait_any_longer_is_out_of_the_queue(crowd):
    a, b = (Gate.join(crowd.folder, 0, job=job, rank=0) for job in "ab")
    a.acquire()
    assert b.acquire(0.01) is False
    assert not a.crowded()
    a.release()
    assert crowd.keeper().look().owner is None
    assert b.acquire(0)


def test_what_one_thread_acquired_another_may_release(crowd):
    gate = Gate.join(crowd.folder, 0, job="a", rank=0)
    gate.acquire()
    thread = threading.Thread(target=gate.release)
    thread.start()
    thread.join()
    assert not gate.held
    assert gate.acquire(0)


def test_a_holder_sees_that_somebody_waits_and_whether_it_is_of_a_better_class(crowd):
    holder, other = crowd.join("holder"), crowd.join("other")
    holder.do("acquire")
    assert holder.do("poll") is False
    assert holder.do("crowded") is False
    other.begin("acquire")
    crowd.wait_for(other)
    assert holder.do("poll") is False
    assert holder.do("crowded") is True
    assert holder.do("give_way") is False
    crowd.keeper().set_level("other", PROTECTED)
    assert holder.do("poll") is True
    crowd.keeper().set_level("holder", PROTECTED)
    assert holder.do("poll") is False


def test_a_yield_point_lets_a_better_class_go_first_and_comes_back(crowd):
    background, serving = crowd.join("background", level=BEST_EFFORT), crowd.join("serving", level=PROTECTED)
    background.do("acquire")
    serving.begin("acquire")
    crowd.wait_for(serving)
    background.begin("give_way")
    assert serving.answer() is True
    crowd.wait_for(background)
    serving.do("release")
    assert background.answer() is True
    assert background.do("held") is True


def test_equals_give_way_only_if_they_want_to(crowd):
    a, b = (Gate.join(crowd.folder, 0, job=job, rank=0) for job in "ab")
    assert a.give_way(equal=True) is False
    a.acquire()
    thread = threading.Thread(target=lambda: (b.acquire(), b.release()))
    thread.start()
    until(a.crowded)
    assert a.give_way() is False
    assert a.give_way(equal=True) is True
    thread.join()
    assert a.held
    assert crowd.keeper().look().seats[1].grants == 1


def test_a_disarmed_gate_holds_nobody_up(crowd):
    keeper = Keeper(crowd.folder, 0)
    a, b = (Gate.join(crowd.folder, 0, job=job, rank=0) for job in "ab")
    assert keeper.look().mode == a.mode == FREE
    assert a.acquire()
    assert b.acquire()
    assert not a.held
    assert not b.held
    a.release()
    keeper.set_mode(INTERLEAVE)
    assert a.acquire()
    assert a.held
    assert b.acquire(0) is False
    keeper.close()


def test_disarming_lets_everybody_go_and_what_was_held_can_still_be_released(crowd):
    holder, waiter = crowd.join("holder"), crowd.join("waiter")
    holder.do("acquire")
    waiter.begin("acquire")
    crowd.wait_for(waiter)
    crowd.keeper().set_mode(FREE)
    assert waiter.answer() is True
    assert waiter.do("held") is False
    assert holder.do("held") is True
    holder.do("release")
    assert holder.do("held") is False
    crowd.keeper().set_mode(INTERLEAVE)
    assert crowd.keeper().look().owner is None
    assert waiter.do("acquire", 0) is True


def test_who_has_left_is_nobody_and_its_seat_is_free(crowd):
    a, b = (Gate.join(crowd.folder, 0, job=job, rank=0) for job in "ab")
    a.acquire()
    a.leave()
    assert b.acquire(0)
    assert a.acquire()
    assert not a.held
    assert a.seat is None
    a.release()
    a.leave()
    assert b.held
    assert [seat.job for seat in crowd.keeper().look().seats] == ["b"]
    c = Gate.join(crowd.folder, 0, job="c", rank=0)
    assert c.seat == 0


def test_leaving_hands_the_device_on(crowd):
    a, b = crowd.join("a"), crowd.join("b")
    a.do("acquire")
    b.begin("acquire")
    crowd.wait_for(b)
    a.do("leave")
    assert b.answer() is True


def test_there_are_sixteen_seats_and_the_seventeenth_is_told(crowd):
    gates = [Gate.join(crowd.folder, 0, job=f"job-{number % 2}", rank=number) for number in range(SEATS)]
    with pytest.raises(SetupError, match=r"all 16 seats are taken \(by job-0, job-1\)"):
        Gate.join(crowd.folder, 0, job="late", rank=0)
    gates[5].leave()
    assert Gate.join(crowd.folder, 0, job="late", rank=0).seat == 5


def test_full_shared_memory_is_one_clear_line_and_leaves_nothing(crowd, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    for come in (lambda: Gate.join(crowd.folder, 0, job="a", rank=0), lambda: Keeper(crowd.folder, 0)):
        with pytest.raises(SetupError, match=r"gate .*device0\.1\.gate: No space left on device; free some of"):
            come()
    assert list(crowd.folder.iterdir()) == []


def test_the_page_keeps_account(crowd):
    a, b = crowd.join("a", rank=3, level=BEST_EFFORT), crowd.join("b")
    before_ns = time.monotonic_ns()
    a.do("acquire")
    b.begin("acquire")
    crowd.wait_for(b)
    keeper = crowd.keeper()
    holding, waiting = keeper.look().seats
    assert (holding.job, holding.rank, holding.level, holding.holding, holding.waiting) == ("a", 3, 2, True, False)
    assert (waiting.job, waiting.rank, waiting.level, waiting.holding, waiting.waiting) == ("b", 0, 1, False, True)
    assert before_ns < holding.held_since_ns < waiting.waiting_since_ns < time.monotonic_ns()
    a.do("release")
    b.answer()
    after_ns = time.monotonic_ns()
    first, second = keeper.look().seats
    assert (first.grants, second.grants) == (1, 1)
    assert 0 < second.waited_ns_total <= first.held_ns_total < after_ns - before_ns
    assert first.held_since_ns == 0
    assert second.held_since_ns >= holding.held_since_ns + second.waited_ns_total


def test_a_seat_with_a_share_stays_away_in_proportion_to_its_last_hold(crowd, monkeypatch):
    gate = Gate.join(crowd.folder, 0, job="a", rank=0, level=BEST_EFFORT)
    now_ns = [10_000_000_000]
    slept_s = []

    def sleep(word: object, value: int, timeout_s: float) -> None:
        slept_s.append(timeout_s)
        now_ns[0] += int(timeout_s * 1e9)

    monkeypatch.setattr("restow.gate.gate._now_ns", lambda: now_ns[0])
    monkeypatch.setattr("time.monotonic_ns", lambda: now_ns[0])
    monkeypatch.setattr("restow.gate.native.wait_while", sleep)
    assert crowd.keeper().set_share("a", 0.25) == 1
    gate.acquire()
    now_ns[0] += 100_000_000
    gate.release()
    gate.acquire()
    assert sum(slept_s) == pytest.approx(0.3)  # three times as long as it held
    assert max(slept_s) <= 0.02


def test_a_share_of_nothing_keeps_away_until_there_is_another(crowd):
    a = crowd.join("a")
    a.do("acquire")
    a.do("release")
    crowd.keeper().set_share("a", 0)
    a.begin("acquire")
    assert not a.has_answered()
    assert crowd.owner() is None
    crowd.keeper().set_share("a", 1)
    assert a.answer() is True


def test_a_share_counts_holds_of_equal_length_as_it_should(crowd):
    """The one with a share of a third holds the device a third of the time: it is away for two holds after each of its own."""
    crowd.join("a")
    crowd.keeper().set_share("a", 1 / 3)
    gate = Gate.join(crowd.folder, 0, job="b", rank=0)
    crowd.members[0].begin("acquire")
    crowd.members[0].answer()
    crowd.members[0].do("release")
    crowd.members[0].begin("acquire")
    crowd.members[0].answer()
    a, record = crowd.members[0].look(), crowd.keeper()._order.record
    assert a
    # between its release and its next grant lie two holds, whatever the machine did meanwhile
    assert a.held_since_ns - record.released_ns[a.number] >= 2 * record.hold_ns[a.number]
    assert gate.acquire(0) is False


def test_members_do_without_an_agent(crowd):
    keeper = Keeper(crowd.folder, 0)
    keeper.set_mode(INTERLEAVE)
    keeper.close()
    a, b = (Gate.join(crowd.folder, 0, job=job, rank=0) for job in "ab")
    a.acquire()
    assert b.acquire(0) is False
    a.release()
    assert b.acquire(0)


def test_an_interrupt_while_waiting_leaves_no_ticket_behind(crowd, monkeypatch):
    a, b = (Gate.join(crowd.folder, 0, job=job, rank=0) for job in "ab")
    a.acquire()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("restow.gate.native.wait_while", interrupt)
        with pytest.raises(KeyboardInterrupt):
            b.acquire()
    assert not a.crowded()
    a.release()
    assert a.acquire(0)


@pytest.mark.parametrize("story", ["acquire", "acquire behind another", "release", "release to another", "leave"])
def test_an_interrupt_at_any_line_leaves_the_gate_usable(crowd, story):
    what = story.split()[0]
    other = Gate.join(crowd.folder, 0, job="other", rank=0)

    def interrupt() -> None:
        raise KeyboardInterrupt

    held_after: list[int] = []  # an acquire that was interrupted
    for line in range(1, 1000):
        gate = Gate.join(crowd.folder, 0, job="gate", rank=0)
        waiting = threading.Thread(target=other.acquire)
        if story == "acquire behind another":
            other.acquire()
        if what != "acquire":
            gate.acquire()
        if story == "release to another":
            waiting.start()
            until(gate.crowded)
        try:
            with each_line(line, interrupt):
                getattr(gate, what)(*([0.001] if story == "acquire behind another" else []))
            break
        except KeyboardInterrupt:
            pass
        if what == "acquire" and gate.held:
            held_after.append(line)
        gate.release()
        if story == "acquire behind another":
            other.release()
        if waiting.ident:
            waiting.join(5)
        assert other.acquire(1), f"line {line}: {crowd.keeper().look()}"
        other.release()
        assert not other.crowded(), f"line {line}"
        gate.leave()
    assert line > 10
    assert held_after in ([], [line - 1])  # it was done, and interrupted in the act of returning


def test_a_signal_handler_that_uses_the_gate_in_the_middle_of_its_use_is_told_and_hangs_nobody(crowd, monkeypatch):
    gate, other = (Gate.join(crowd.folder, 0, job=job, rank=0) for job in "ab")
    monkeypatch.setattr("restow.gate.order._GRACE_S", 0.01)

    def use_it() -> int:
        monkeypatch.undo()
        monkeypatch.setattr("restow.gate.order._GRACE_S", 0.01)
        gate._order.inside(lambda: None)
        return 0

    monkeypatch.setattr("restow.gate.gate._now_ns", use_it)
    with pytest.raises(AssertionError, match="signal handler"):
        gate.acquire()
    assert other.acquire(0)


def test_long_names_of_jobs_stay_apart(crowd):
    names = ["digits", "d" * 70 + "1", "d" * 70 + "2", "ü" * 60, ""]
    keys = [job_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert {len(key) for key in keys} == {64}
    assert job_name(keys[0]) == "digits"
    Gate.join(crowd.folder, 0, job=names[1], rank=0)
    assert crowd.keeper().set_level(names[1], PROTECTED) == 1
    assert crowd.keeper().set_level(names[2], PROTECTED) == 0


@pytest.mark.parametrize(
    "mistake",
    [
        lambda folder: Gate.join(folder, 0, job="a", rank=0, level=3),
        lambda folder: Keeper(folder, 0).set_mode(3),
        lambda folder: Keeper(folder, 0).set_level("a", -1),
        lambda folder: Keeper(folder, 0).set_share("a", 1.5),
    ],
)
def test_numbers_out_of_range_are_refused(crowd, mistake):
    with pytest.raises(ValueError, match=r"is (-1|3|1\.5); it is"):
        mistake(crowd.folder)
