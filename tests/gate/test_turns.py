"""Time slices: a turn belongs to a job, goes round in the same order everywhere, and outlives no job."""

from __future__ import annotations

from restow.gate import INTERLEAVE, TIME_SLICE, Gate
from tests.gate.crowd import Crowd, Member


def gangs(crowd: Crowd, jobs: str, devices: int = 2) -> dict[str, list[Member]]:
    """Each job with one rank on each device; time slices begin."""
    members = {job: [crowd.join(job, rank=device, device=device) for device in range(devices)] for job in jobs}
    for device in range(devices):
        crowd.keeper(device).set_mode(TIME_SLICE)
    return members


def turns(crowd: Crowd, devices: int = 2) -> list[str | None]:
    return [crowd.keeper(device).look().turn for device in range(devices)]


def test_turns_go_round_in_the_order_of_the_ids_on_every_device(crowd):
    ranks = gangs(crowd, "cab")
    for job in "cab":
        for rank in ranks[job]:
            rank.begin("acquire")
    seen = []
    for job in "abcabc":
        assert turns(crowd) == [job, job]
        for rank in ranks[job]:
            assert rank.answer() is True
        assert not any(rank.has_answered() for other in "abc" if other != job for rank in ranks[other])
        crowd.wait_for(*(rank for other in "abc" if other != job for rank in ranks[other]))
        assert all(rank.do("turn_wanted") for rank in ranks[job])
        for rank in ranks[job]:
            seen.append(rank.do("pass_turn"))
            assert rank.do("held") is False
            rank.begin("acquire")
    assert seen == list("bbccaabbccaa")


def test_it_is_the_turn_of_the_job_that_was_named_to_begin(crowd):
    a, b = (Gate.join(crowd.folder, 0, job=job, rank=0) for job in "ab")
    crowd.keeper().set_mode(TIME_SLICE, turn="b")
    assert a.acquire(0) is False
    assert b.acquire(0) is True
    crowd.keeper().set_mode(TIME_SLICE, turn="a")  # said again, changes nothing
    assert crowd.keeper().look().turn == "b"


def test_the_gate_can_be_left_and_passed_again_within_a_turn(crowd):
    ranks = gangs(crowd, "ab", devices=1)
    (a,), (b,) = ranks["a"], ranks["b"]
    a.do("acquire")
    b.begin("acquire")
    crowd.wait_for(b)
    assert a.do("crowded") is False  # whom a release would not let in does not count
    a.do("release")
    assert not b.has_answered()
    assert a.do("acquire", 0) is True
    assert a.do("give_way") is False
    a.do("pass_turn")
    assert b.answer() is True


def test_nobody_else_no_turn_to_pass(crowd):
    gate = Gate.join(crowd.folder, 0, job="a", rank=0)
    assert gate.pass_turn() is None  # no time slices
    crowd.keeper().set_mode(TIME_SLICE)
    gate.acquire()
    assert gate.next_turn() is None
    assert gate.pass_turn() is None
    assert gate.held
    assert gate.turn_wanted() is False
    b = Gate.join(crowd.folder, 0, job="b", rank=0)
    assert gate.next_turn() == "b"
    assert gate.turn_wanted() is False  # seated, but does not wait
    assert b.pass_turn() is None  # not its turn
    assert gate.pass_turn() == "b"
    assert not gate.held


def test_the_turn_of_a_job_that_is_gone_goes_on_to_the_next(crowd):
    ranks = gangs(crowd, "abc", devices=1)
    (a,), (b,), (c,) = ranks["a"], ranks["b"], ranks["c"]
    a.do("acquire")
    b.begin("acquire")
    c.begin("acquire")
    crowd.wait_for(b, c)
    a.do("pass_turn")
    assert b.answer() is True
    b.kill()
    assert c.answer() is True
    assert turns(crowd, 1) == ["c"]
    c.do("leave")
    a.begin("acquire")
    assert a.answer() is True
    assert turns(crowd, 1) == ["a"]


def test_a_job_that_does_not_hold_the_device_loses_its_turn_too_when_it_dies(crowd):
    ranks = gangs(crowd, "ab", devices=1)
    (a,), (b,) = ranks["a"], ranks["b"]
    b.begin("acquire")
    crowd.wait_for(b)
    a.kill()
    assert b.answer() is True


def test_all_members_of_a_job_on_a_device_share_its_turn(crowd):
    first, second = (crowd.join("a", rank=rank) for rank in range(2))
    other = crowd.join("b")
    crowd.keeper().set_mode(TIME_SLICE)
    first.do("acquire")
    second.begin("acquire")
    other.begin("acquire")
    crowd.wait_for(second, other)
    first.do("release")
    assert second.answer() is True
    assert first.do("pass_turn") == "b"
    assert not other.has_answered()  # the second still holds the device
    second.do("release")
    assert other.answer() is True


def test_a_holder_that_is_fenced_loses_its_turn_and_gets_another_one_by_proxy(crowd):
    ranks = gangs(crowd, "abc", devices=1)
    (a,), (b,), (c,) = ranks["a"], ranks["b"], ranks["c"]
    keeper = crowd.keeper()
    for member in (a, b, c):
        member.begin("acquire")
    assert a.answer() is True
    crowd.wait_for(b, c)
    a.stop()
    assert keeper.revoke(a.seat, "turn over")
    assert b.answer() is True
    assert b.do("pass_turn") == "c"
    assert c.answer() is True
    assert c.do("pass_turn") == "a"
    view = keeper.look()
    assert (view.owner, view.turn) == (a.seat, "a")
    assert keeper.readmit(a.seat)
    a.go_on()
    assert a.do("held") is True
    assert a.do("pass_turn") == "b"


def test_turns_pass_over_a_job_that_was_stopped_by_a_person_or_that_nobody_would_continue(crowd):
    ranks = gangs(crowd, "abc", devices=1)
    (a,), (b,), (c,) = ranks["a"], ranks["b"], ranks["c"]
    keeper = crowd.keeper()
    a.do("acquire")
    a.stop()
    assert keeper.revoke(a.seat, "stopped by somebody", queue=False)
    assert b.do("acquire", 0) is True
    assert b.do("pass_turn") == "c"
    assert c.do("pass_turn") == "b"
    assert keeper.requeue(a.seat)
    assert b.do("next_turn") == "c"
    assert c.do("next_turn") == "a"
    keeper.close()  # the agent dies
    crowd._keepers.clear()
    assert c.do("next_turn") == "b"
    assert b.do("pass_turn") == "c"
    assert c.do("pass_turn") == "b"


def test_when_turns_inside_a_step_come_back_whoever_waited_for_the_turn_is_let_in(crowd):
    ranks = gangs(crowd, "ab", devices=1)
    (a,), (b,) = ranks["a"], ranks["b"]
    b.begin("acquire")
    crowd.wait_for(b)
    crowd.keeper().set_mode(INTERLEAVE)
    assert b.answer() is True
    a.begin("acquire")
    crowd.wait_for(a)
    b.do("release")
    assert a.answer() is True
