"""The page itself: made whole, and left for the next number when it makes no sense any more."""

from __future__ import annotations

import contextlib
import gc
import os
import random
from pathlib import Path

import pytest

from restow.errors import SetupError
from restow.gate import FREE, INTERLEAVE, PROTECTED, TIME_SLICE, Gate, Keeper
from restow.gate import file as files
from restow.gate.record import MOVED, Record
from tests.gate.crowd import Crowd, Member, until


def record(crowd: Crowd) -> Record:
    return crowd.keeper()._order.record


def overwrite_magic(page: Record) -> None:
    page.magic[0] = 0


def name_an_owner_that_cannot_be(page: Record) -> None:
    page.owner[0] = 77


def overwrite_mode(page: Record) -> None:
    page.mode[0] = 12345


def lock_the_mutex_for_nobody(page: Record) -> None:
    page._bytes[128:132] = (0x3FFF_FFF0).to_bytes(4, "little")  # a thread that does not exist


def overwrite_the_mutex(page: Record) -> None:
    page._bytes[128:192] = b"\xff" * 64


def overwrite_everything(page: Record) -> None:
    page._bytes[:] = random.Random(7).randbytes(4096)


HARM = [overwrite_magic, name_an_owner_that_cannot_be, overwrite_mode, lock_the_mutex_for_nobody, overwrite_the_mutex,
        overwrite_everything]  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_a_page_that_makes_no_sense_is_left_and_everybody_meets_on_the_next_one(crowd, monkeypatch, harm):
    monkeypatch.setattr("restow.gate.order._GRACE_S", 0.05)
    a, b, c = (crowd.join(job) for job in "abc")
    page = record(crowd)
    harm(page)
    for member in (a, b, c):
        member.begin("acquire")
    until(lambda: files.numbers(crowd.folder, 0) == [1, 2])  # one may be in without having looked, the others look
    came = []
    for _ in range(3):
        until(lambda: any(member.has_answered() for member in (a, b, c)))
        holding = [member for member in (a, b, c) if member.has_answered()]
        assert len(holding) == 1
        came.append(holding[0].job)
        assert holding[0].answer() is True
        holding[0].do("release")
    assert sorted(came) == ["a", "b", "c"]
    for member in (a, b, c):
        assert member.do("acquire", 1.0) is True
        assert member.do("number") == 2
        member.do("release")
    assert crowd.keeper().look().number == 2
    assert crowd.join("late").do("number") == 2
    assert files.numbers(crowd.folder, 0) == [1, 2]


def waiter_and_holder_on_a_bad_page(crowd: Crowd) -> tuple[Member, Member]:
    holder, waiter = crowd.join("holder"), crowd.join("waiter")
    holder.do("acquire")
    waiter.begin("acquire")
    crowd.wait_for(waiter)
    overwrite_magic(record(crowd))
    until(lambda: files.numbers(crowd.folder, 0) == [1, 2])
    return waiter, holder


def test_a_holder_keeps_the_device_until_it_has_left_the_old_page(crowd):
    waiter, holder = waiter_and_holder_on_a_bad_page(crowd)
    late = crowd.join("late")
    assert late.do("number") == 2
    assert late.do("acquire", 0.03) is False  # nobody holds page 2, but somebody may be computing
    assert not waiter.has_answered()
    holder.do("release")
    assert waiter.answer() is True
    assert holder.do("number") == 2
    holder.begin("acquire")
    crowd.wait_for(holder)
    waiter.do("release")
    assert holder.answer() is True


def test_a_holder_that_dies_on_the_old_page_is_not_waited_for(crowd):
    waiter, holder = waiter_and_holder_on_a_bad_page(crowd)
    assert not waiter.has_answered()
    holder.do("sleeper")
    holder.kill()
    assert waiter.answer() is True


def test_what_the_agent_said_holds_on_the_next_page_too(crowd):
    a, b = (Gate.join(crowd.folder, 0, job=job, rank=0) for job in "ab")
    keeper = crowd.keeper()
    keeper.set_mode(TIME_SLICE)
    keeper.set_level("b", PROTECTED)
    keeper.set_share("a", 0.5)
    name_an_owner_that_cannot_be(record(crowd))
    a.acquire(0)
    a.release()
    b.acquire(0)
    view = keeper.look()
    assert (view.number, view.mode) == (2, TIME_SLICE)
    assert {seat.job: (seat.level, seat.share) for seat in view.seats} == {"a": (1, 0.5), "b": (0, 1.0)}


def test_the_agent_leaves_a_bad_page_by_itself_and_still_fences(crowd):
    holder = crowd.join("holder")
    keeper = crowd.keeper()
    overwrite_magic(record(crowd))
    keeper.set_mode(INTERLEAVE)
    assert keeper.look().number == 2
    holder.do("acquire")
    assert holder.do("number") == 2
    holder.stop()
    assert keeper.revoke(holder.seat, "lease over")


def test_a_member_that_was_killed_after_marking_the_page_hangs_nobody(crowd):
    a = crowd.join("a")
    record(crowd).mode[0] = MOVED | INTERLEAVE  # and made no page 2
    assert a.do("acquire", 1.0) is True
    assert a.do("number") == 2
    assert a.do("mode") == INTERLEAVE


def test_all_who_come_at_once_find_one_page(crowd):
    members = [Member(crowd, f"job-{number}", 0, 1, 0) for number in range(8)]
    crowd.members += members
    for member in members:
        member.answer()
    view = crowd.keeper().look()
    assert {seat.pid for seat in view.seats} == {member.pid for member in members}
    assert [path.name for path in crowd.folder.iterdir()] == ["device0.1.gate"]


def test_devices_have_gates_of_their_own(crowd):
    gates = [Gate.join(crowd.folder, device, job="a", rank=device) for device in (0, 1, 10)]
    assert all(gate.acquire(0) for gate in gates)
    assert [files.numbers(crowd.folder, device) for device in (0, 1, 10, 2)] == [[1], [1], [1], []]


def test_a_page_made_by_the_agent_is_disarmed_and_one_made_by_a_member_is_not(crowd):
    keeper = Keeper(crowd.folder, 0)
    assert keeper.look().mode == FREE
    keeper.remove()
    Gate.join(crowd.folder, 0, job="a", rank=0)
    assert Keeper(crowd.folder, 0).look().mode == INTERLEAVE


def test_something_else_with_the_name_of_a_page_is_named(crowd):
    (crowd.folder / "device0.1.gate").write_text("hello")
    with pytest.raises(SetupError, match=r"device0\.1\.gate is too short to be the page of a gate; remove it"):
        Gate.join(crowd.folder, 0, job="a", rank=0)


def test_joining_and_leaving_leaves_no_descriptor_open(crowd):
    for _ in range(3):
        gate = Gate.join(crowd.folder, 0, job="a", rank=0)
        other = Gate.join(crowd.folder, 0, job="b", rank=0)
        gate.acquire()
        gate.leave()
        assert other.acquire(0)  # and its seat is not lost with the other's
        assert crowd.join("c").do("acquire", 0) is False
        assert opened_in(crowd.folder)
        other.leave()
    gc.collect()
    assert opened_in(crowd.folder) == []


def opened_in(folder: Path) -> list[str]:
    """Files there that this process has open; others of it may open what they like meanwhile."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(path))
    return [target for target in found if target.startswith(str(folder))]
