"""Holders that live and do not let go: their grant is made void from outside, and they come in again by proxy."""

from __future__ import annotations

import os

import pytest

from restow.errors import Refused, Unreachable
from restow.gate import PROTECTED, Gate, Keeper
from tests.gate.crowd import Crowd, Member, until


def stopped_holder_and_waiter(crowd: Crowd) -> tuple[Member, Member]:
    stuck, waiter = crowd.join("stuck"), crowd.join("waiter")
    stuck.do("acquire")
    waiter.begin("acquire")
    crowd.wait_for(waiter)
    stuck.stop()
    return stuck, waiter


def test_a_stuck_holder_is_fenced_the_next_one_let_in_and_it_comes_back_by_proxy(crowd):
    stuck, waiter = stopped_holder_and_waiter(crowd)
    keeper = crowd.keeper()
    seat = stuck.seat
    assert keeper.revoke(seat, "lease over")
    assert waiter.answer() is True
    shown = keeper.look().seat(seat)
    assert shown
    assert (shown.fenced, shown.waiting, shown.holding) == ("lease over", True, False)
    assert keeper.readmit(seat) is False  # not its turn yet

    waiter.begin("release")
    waiter.answer()
    view = keeper.look()
    assert view.owner == seat
    assert view.seats[seat].fenced == "lease over"
    waiter.begin("acquire")
    crowd.wait_for(waiter)
    assert keeper.readmit(seat) is True
    stuck.go_on()
    assert keeper.look().seats[seat].fenced == ""
    assert stuck.do("held") is True  # it never knew
    assert stuck.do("acquire") is True
    stuck.do("release")
    assert waiter.answer() is True


def test_only_the_holder_can_be_fenced(crowd):
    stuck, waiter = stopped_holder_and_waiter(crowd)
    assert crowd.keeper().revoke(waiter.seat) is False
    stuck.go_on()
    stuck.do("release")
    assert waiter.answer() is True


def test_where_nobody_else_waits_a_fenced_holder_is_in_again_at_once(crowd):
    stuck = crowd.join("stuck")
    stuck.do("acquire")
    stuck.stop()
    keeper = crowd.keeper()
    assert keeper.revoke(stuck.seat, "lease over")
    view = keeper.look()
    assert view.owner == stuck.seat
    assert view.seats[0].fenced
    assert keeper.readmit(stuck.seat)
    assert view.seats[0].grants + 0 == keeper.look().seats[0].grants == 2


def test_who_was_stopped_by_a_person_is_passed_over_until_it_is_queued_again(crowd):
    stuck, waiter = stopped_holder_and_waiter(crowd)
    keeper = crowd.keeper()
    assert keeper.revoke(stuck.seat, "stopped by somebody", queue=False)
    assert waiter.answer() is True
    waiter.do("release")
    assert keeper.look().owner is None
    assert keeper.requeue(stuck.seat)
    assert keeper.look().owner == stuck.seat
    assert keeper.requeue(stuck.seat) is False
    assert keeper.readmit(stuck.seat)


def test_a_fenced_process_that_runs_all_the_same_queues_for_itself_at_its_next_acquire(crowd):
    stuck, waiter = stopped_holder_and_waiter(crowd)
    crowd.keeper().revoke(stuck.seat, "lease over")
    waiter.answer()
    stuck.go_on()  # by somebody else
    assert stuck.do("held") is False
    stuck.begin("acquire")
    until(lambda: not crowd.keeper().look().seats[stuck.seat].fenced)
    assert not stuck.has_answered()
    waiter.do("release")
    assert stuck.answer() is True


def test_a_fenced_process_that_runs_all_the_same_and_releases_needs_no_proxy(crowd):
    stuck, waiter = stopped_holder_and_waiter(crowd)
    crowd.keeper().revoke(stuck.seat, "lease over")
    waiter.answer()
    stuck.go_on()
    stuck.do("release")
    seat = stuck.look()
    assert seat
    assert (seat.fenced, seat.waiting) == ("", False)
    waiter.do("release")
    assert crowd.keeper().look().owner is None


def test_a_fenced_process_that_is_killed_is_dead_like_any_other(crowd):
    stuck, waiter = stopped_holder_and_waiter(crowd)
    crowd.keeper().revoke(stuck.seat, "lease over")
    waiter.answer()
    stuck.kill()
    waiter.do("release")
    assert crowd.keeper().look().owner is None
    assert waiter.do("acquire", 0) is True


def test_without_an_agent_to_continue_it_a_fenced_process_is_passed_over(crowd):
    stuck, waiter = stopped_holder_and_waiter(crowd)
    keeper = crowd.keeper()
    seat = stuck.seat
    keeper.revoke(seat, "lease over")
    waiter.answer()
    keeper.close()
    waiter.do("release")
    assert waiter.do("acquire", 1.0) is True
    waiter.do("release")
    again = Keeper(crowd.folder, 0)  # an agent that was started anew
    assert again.look().owner == seat
    assert again.look().seats[seat].fenced == "lease over"

    waiter.begin("acquire")
    until(lambda: any(shown.waiting for shown in again.look().seats))
    again.close()  # dies before it has continued it
    assert waiter.answer() is True
    crowd._keepers.clear()


def test_one_agent_at_a_time_can_fence(crowd):
    holder = crowd.join("holder")
    holder.do("acquire")
    crowd.keeper()
    other = os.fork()
    if other == 0:
        code = 1
        try:
            Keeper(crowd.folder, 0).revoke(0)
        except Refused:
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(other, 0)[1] == 0
    assert crowd.owner() == holder.pid


def test_a_process_stopped_inside_the_mutex_is_named_and_not_waited_for_without_end(crowd):
    stuck, other = crowd.join("stuck"), crowd.join("other")
    stuck.do("lock_the_mutex")
    stuck.stop()
    keeper = crowd.keeper()
    with pytest.raises(Unreachable, match=rf"process {stuck.pid} was stopped inside its mutex; continue it"):
        keeper.set_level("other", PROTECTED)
    assert keeper.look().seats[1].job == "other"  # looking needs no mutex
    assert other.do("acquire", 0.01) is False
    other.begin("acquire")
    stuck.go_on()
    assert not other.has_answered()
    stuck.do("unlock_the_mutex")
    assert other.answer() is True
    assert keeper.set_level("other", PROTECTED) == 1


def test_a_gate_in_use_is_not_removed(crowd):
    gate = Gate.join(crowd.folder, 0, job="a", rank=0)
    keeper = Keeper(crowd.folder, 0)
    with pytest.raises(Refused, match="is in use by a; stop them first"):
        keeper.remove()
    gate.leave()
    keeper.remove()
    assert list(crowd.folder.iterdir()) == []
    with pytest.raises(Refused, match="was closed"):
        keeper.look()
    assert Gate.join(crowd.folder, 0, job="b", rank=0).acquire(0)
