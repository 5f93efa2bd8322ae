"""Jobs that share devices, in stories: who joins, what is measured, who parts, and that it is all one schedule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restow.job import JobState, ShareSpec, Sharing
from restow.messages import Launch, Prepare, ScaleAsked, Share, SharingMeasured
from restow.placement import Schedule
from restow.policies.restow import Restow
from restow.policies.sharing import devices_of
from tests.core.obedient import Cluster, Program

GB = 10**9
NO_LINK = ShareSpec(link="off")  # the link's own gate is not what these stories are about


def waiting(step_s: float = 0.3, exposed_s: float = 0.2, **changes: object) -> Program:
    """A program that computes for a third of its steps and waits for the link in the rest."""
    return Program(step_s=step_s, exposed_s=exposed_s, state_bytes=10_000_000, **changes)  # type: ignore[arg-type]


def shared_pair(nodes: str = "m1:1 m2:1", exposed_s: float = 0.2, **second: object) -> Cluster:
    """a on m1:0 m2:0, measured; then b came, found nothing free and joined it."""
    cluster = Cluster(nodes, 25e6, policy=Restow())
    cluster.submit("a", 2, waiting(exposed_s=exposed_s), share=NO_LINK)
    cluster.place(a="m1:0 m2:0")
    cluster.train("a", 100)
    cluster.run(decide=False)
    cluster.submit("b", 2, waiting(exposed_s=exposed_s), **{"share": NO_LINK, **second})
    cluster.run()
    return cluster


def look_at(cluster: Cluster, newcomer: str, step_s: float) -> None:
    """It makes the steps that nobody disturbs, which take so long."""
    cluster.agents.programs[newcomer].step_s = step_s
    for steps in (1, 20):
        cluster.train(newcomer, steps)
        cluster.run()


def scarce_pair() -> Cluster:
    """Both compute for two thirds of their time, and were measured in turns inside a step."""
    cluster = shared_pair(exposed_s=0.1)
    cluster.agents.programs["b"].waited_s = 0.18  # it was never alone: what it does not wait is its own
    (measured,) = train_on(cluster, a=0.48, b=0.48)
    assert (measured.mode, measured.speeds) == ("interleave", (0.625, 0.625))
    assert {sharing(cluster, id).mode for id in "ab"} == {"free"}
    cluster.agents.programs["b"].waited_s = 0.0
    return cluster


def train_on(cluster: Cluster, seconds: float = 30.0, **step_s: float) -> list[SharingMeasured]:
    """Everybody makes steps for so long, with a step time like that from now on; then it is measured, and decided."""
    for id, each in step_s.items():
        cluster.agents.programs[id].step_s = each
    for id in cluster.state.jobs:
        cluster.train(id, 1)
    cluster.run(decide=False)
    cluster.measure()
    cluster.clock(seconds)
    for id in cluster.state.jobs:
        cluster.train(id, 100)
    cluster.run(decide=False)
    measured = cluster.measure()
    cluster.run()
    return measured


def sharing(cluster: Cluster, job: str) -> Sharing:
    found = cluster.job(job).sharing
    assert found
    return found


# ---------------------------------------------------------------- joining


def test_a_gang_that_finds_nothing_free_joins_another_on_exactly_its_devices():
    cluster = shared_pair()
    assert (cluster.where("a"), cluster.where("b")) == ("m1:0@0.5 m2:0@0.5", "m1:0@0.5 m2:0@0.5")
    assert cluster.job("b").reason == "shares m1:0 m2:0 with a: together 1.67 of one job alone is expected"
    told = {(node, command.job): command.sharing for node, command in cluster.commands_of(Share)}
    assert set(told) == {("m1", "a"), ("m2", "a"), ("m1", "b"), ("m2", "b")}
    assert {(each.mode, each.level, round(each.total_predicted, 2)) for each in told.values()} == {("interleave", 1, 1.67)}


def test_a_gang_takes_free_devices_rather_than_join_anybody():
    cluster = shared_pair("m1:2 m2:2")
    assert cluster.where("b") == "m1:1 m2:1"
    assert cluster.job("a").sharing is None


def test_a_gang_that_would_overlap_two_others_waits_and_both_reasons_are_said():
    cluster = Cluster("m1:1 m2:1", 25e6, policy=Restow())
    for job, place in (("a", "m1:0"), ("c", "m2:0")):
        cluster.submit(job, 1, waiting())
        cluster.place(**{job: place})
        cluster.train(job, 100)
    cluster.run(decide=False)
    cluster.submit("b", 2, waiting())
    cluster.run()
    assert cluster.job("b").reason == "needs 2 slots, 0 are free; a has 1 worker, and jobs that share must have the same devices"


def test_a_group_takes_one_newcomer_at_a_time_so_that_each_is_measured():
    cluster = shared_pair()
    cluster.submit("c", 2, waiting(exposed_s=0.25))
    cluster.run()
    assert cluster.job("c").reason == "needs 2 slots, 0 are free; b has not made 20 steps yet"


def test_who_waits_for_long_is_not_overtaken_by_one_that_could_share():
    cluster = Cluster("m1:1 m2:1", 25e6, policy=Restow())
    cluster.submit("a", 1, waiting())
    cluster.run()
    cluster.submit("big", 2, waiting(), share=ShareSpec(allow=False))
    cluster.submit("x", 1, waiting())
    cluster.run()
    cluster.train("a", 100)
    cluster.clock(1900)
    cluster.submit("late", 1, waiting())
    cluster.run()
    assert cluster.job("late").state is JobState.PENDING
    assert cluster.job("late").reason == "waits behind big, which has waited for 2 slots for long"


# ---------------------------------------------------------------- predicted and measured


def test_a_pair_that_reaches_enough_is_kept_and_nothing_moves():
    cluster = shared_pair()
    look_at(cluster, "b", 0.3)
    (measured,) = train_on(cluster, a=0.36, b=0.40)
    assert (measured.kept, measured.reason, round(measured.predicted, 2)) == (True, "kept", 1.5)  # 1.67 before b was known
    assert measured.speeds == (0.8333, 0.75)
    before = {id: (job.intended, job.sharing) for id, job in cluster.state.jobs.items()}
    for _ in range(3):
        train_on(cluster, 100.0)
        assert {id: (job.intended, job.sharing) for id, job in cluster.state.jobs.items()} == before


def slow_pair(nodes: str = "m1:1 m2:1", **second: object) -> Cluster:
    """The pair was measured: each as slow as if they took turns."""
    cluster = shared_pair(nodes, **second)
    cluster.agents.programs["b"].waited_s = 0.3
    (measured,) = train_on(cluster, a=0.62, b=0.6)
    assert (measured.kept, measured.speeds) == (False, (0.4839, 0.5))
    assert measured.reason == "not worth it: 1.05 is the least"
    return cluster


def test_who_came_later_is_seen_alone_once_while_the_other_stands_still():
    cluster = shared_pair()
    cluster.train("b", 1)
    cluster.run()
    assert (sharing(cluster, "a").part, sharing(cluster, "b").part) == (0.0, 1.0)
    assert cluster.job("a").reason == "stands still for some steps of b, so that it is known how long these take alone"
    cluster.clock(10.0)
    assert cluster.measure() == []  # what they reach now says nothing
    cluster.agents.programs["b"].step_s = 0.28
    cluster.train("b", 20)
    cluster.run()
    assert (sharing(cluster, "a").part, sharing(cluster, "b").part, sharing(cluster, "b").alone_step_s) == (1.0, 1.0, 0.28)
    (measured,) = train_on(cluster, a=0.36, b=0.40)
    assert measured.speeds == (0.8333, 0.7)


@pytest.mark.parametrize(("waited_s", "alone_s"), [(0.1, 0.2), (0.3, 0.3)])
def test_a_look_at_a_job_that_makes_no_steps_ends_once_and_what_it_does_not_wait_counts(waited_s, alone_s):
    cluster = shared_pair()
    cluster.agents.programs["b"].waited_s = waited_s
    cluster.train("b", 1)
    cluster.run()
    cluster.clock(25.0)
    cluster.run()
    assert (sharing(cluster, "a").part, round(sharing(cluster, "b").alone_step_s, 2)) == (1.0, alone_s)
    cluster.run()
    assert sharing(cluster, "a").part == 1.0


def test_a_job_whose_partner_ends_says_that_its_devices_are_its_own_again():
    cluster = shared_pair()
    cluster.end("b")
    cluster.run()
    assert (cluster.job("a").sharing, cluster.job("a").reason) == (None, "has its devices to itself again")


def test_a_pair_that_brings_nothing_is_put_on_turns_remembered_and_told_why():
    cluster = slow_pair()
    assert (cluster.job("a").tried, cluster.job("b").tried) == ((("b", "interleave", 0.9839),), (("a", "interleave", 0.9839),))
    assert {(sharing(cluster, id).mode, sharing(cluster, id).total_predicted) for id in "ab"} == {("time-slice", 1.0)}
    assert cluster.policy.plan(cluster.state.snapshot(cluster.now_s)).reasons["b"] == (
        "takes turns of 5 s with a; should leave, since together they bring 0.98 of one job alone, but no other devices are free"
    )


def test_where_the_device_is_the_scarce_thing_computing_freely_is_measured_too_and_kept_if_it_brings_more():
    cluster = scarce_pair()
    (measured,) = train_on(cluster, a=0.46, b=0.46)
    assert (measured.mode, measured.speeds) == ("free", (0.6522, 0.6522))
    before = {id: sharing(cluster, id) for id in "ab"}
    assert {each.mode for each in before.values()} == {"free"}
    train_on(cluster, 100.0)
    assert {id: sharing(cluster, id) for id in "ab"} == before


def test_computing_freely_is_given_up_where_it_brings_no_more_and_not_tried_again():
    cluster = scarce_pair()
    train_on(cluster, a=0.475, b=0.475)
    assert {sharing(cluster, id).mode for id in "ab"} == {"interleave"}
    assert cluster.job("a").tried == (("b", "free", 1.2632), ("b", "interleave", 1.25))
    train_on(cluster, 100.0, a=0.48, b=0.48)
    assert {sharing(cluster, id).mode for id in "ab"} == {"interleave"}


def test_it_is_parted_by_a_move_as_soon_as_devices_are_free_and_both_have_theirs_again():
    cluster = slow_pair()
    cluster.join("m3", 2)
    cluster.run()
    assert (cluster.where("a"), cluster.where("b")) == ("m1:0 m2:0", "m3:0 m3:1")
    assert cluster.job("b").reason.startswith("leaves m1:0 m2:0 to the others: together they bring 0.98 of one job alone: 0.6 → ")
    assert [command.ranks for _, command in cluster.commands_of(Prepare)] == [(0, 1)]
    assert cluster.job("a").sharing is None
    assert cluster.job("b").sharing is None
    assert cluster.job("a").tried == (("b", "interleave", 0.9839),)


def test_what_was_measured_of_a_pair_lowers_what_is_promised_of_the_next():
    cluster = slow_pair()
    assert cluster.job("a").friendliness == 0.7952  # 0.98 of 1.67 was reached, and half of that counts
    cluster.observe(SharingMeasured(
        time_s=cluster.now_s, jobs=("a", "x"), mode="interleave", speeds=(0.4, 0.4), total=0.8, predicted=1.6, kept=False,
        reason="not worth it",
    ))  # fmt: skip
    assert cluster.job("a").friendliness == 0.6476
    cluster.cancel("b")
    cluster.agents.programs["a"].step_s = 0.3
    cluster.run()
    cluster.train("a", 100)
    cluster.run()
    cluster.submit("c", 2, waiting())
    cluster.run()
    assert cluster.job("c").reason == (
        "needs 2 slots, 0 are free; with a it would bring 1.08 of one job alone, worth it from 1.2 on"
    )


def test_turns_that_go_as_expected_say_nothing_of_how_they_get_on_inside_a_step():
    cluster = slow_pair()
    before = (cluster.job("a").tried, cluster.job("a").friendliness)
    train_on(cluster, 61.0)
    (measured,) = [event for event in cluster.journal if isinstance(event, SharingMeasured) and event.mode == "time-slice"][-1:]
    assert (measured.kept, measured.predicted) == (True, 1.0)
    assert (cluster.job("a").tried, cluster.job("a").friendliness) == before
    assert sharing(cluster, "a").mode == "time-slice"  # and does not swing back


def test_a_pair_on_turns_parts_when_devices_are_free_since_a_step_does_not_show_the_wait():
    cluster = shared_pair(share=ShareSpec(mode="time-slice", link="off"))
    train_on(cluster, a=0.3, b=0.3)
    cluster.join("m3", 2)
    cluster.run()
    assert (cluster.where("a"), cluster.where("b")) == ("m1:0 m2:0", "m3:0 m3:1")
    assert "has devices of its own again" in cluster.job("b").reason


def test_a_job_that_cannot_move_stays_and_says_why():
    cluster = slow_pair(migrate=False)
    cluster.join("m3", 2)
    cluster.run()
    assert cluster.where("b") == "m1:0@0.5 m2:0@0.5"
    reason = cluster.policy.plan(cluster.state.snapshot(cluster.now_s)).reasons["b"]
    assert reason.endswith("should leave, since together they bring 0.98 of one job alone, but its spec says migrate: false")


def test_a_move_that_would_pause_for_too_long_is_not_made():
    cluster = slow_pair(max_pause_s=0.01)
    cluster.join("m3", 2)
    cluster.run()
    assert cluster.where("b") == "m1:0@0.5 m2:0@0.5"
    assert "more than max_pause_s allows" in cluster.policy.plan(cluster.state.snapshot(cluster.now_s)).reasons["b"]


def test_while_the_leaver_is_on_its_way_what_is_measured_of_the_other_is_not_yet_alone():
    cluster = slow_pair()
    cluster.join("m3", 2)
    cluster.agents.deaf = {Prepare}
    cluster.run()
    assert cluster.job("b").switch
    cluster.train("a", 10)
    cluster.run(decide=False)
    assert (cluster.job("a").sharing, cluster.job("a").profile.step_s, cluster.job("a").profile.alone_step_s) == (None, 0.62, 0.3)


def test_who_stays_has_the_whole_device_only_when_the_leaver_is_gone_even_if_it_cannot_move_itself():
    cluster = shared_pair()
    cluster.submit("plain", 1, Program(step_s=0.3, data_s=0.25, uses_sdk=False), share=NO_LINK)
    cluster.join("m3", 1)
    cluster.run()
    cluster.submit("guest", 1, Program(step_s=0.3, data_s=0.25), share=NO_LINK)
    for _ in range(2):
        train_on(cluster)
    assert (cluster.where("plain"), cluster.where("guest")) == ("m3:0@0.5", "m3:0@0.5")
    cluster.join("m4", 1)
    cluster.migrate("guest", "m4:0")
    cluster.run()  # the invariants are checked after every event
    assert (cluster.where("plain"), cluster.where("guest")) == ("m3:0", "m4:0")


def test_when_the_leaver_cannot_go_they_share_as_before():
    cluster = slow_pair()
    cluster.join("m3", 2)
    cluster.agents.wrong_twins = True
    cluster.run()
    assert (cluster.where("a"), cluster.where("b")) == ("m1:0@0.5 m2:0@0.5", "m1:0@0.5 m2:0@0.5")
    assert sharing(cluster, "a").partners == ("b",)


# ---------------------------------------------------------------- what people say


def test_a_protected_job_goes_first_and_its_guard_cuts_the_other():
    cluster = shared_pair()
    cluster.ask_to_share("a", protect=True, link="off")
    cluster.run()
    assert (sharing(cluster, "a").level, sharing(cluster, "b").level) == (0, 2)
    parts = []
    for _ in range(3):
        train_on(cluster, 9.0, a=0.33)
        parts.append(round(sharing(cluster, "b").part, 3))
    assert parts == [0.7, 0.49, 0.343]
    train_on(cluster, 10.0, a=0.301)
    assert round(sharing(cluster, "b").part, 3) == 0.393
    assert round(cluster.agents.sharing["m1", "b"].part, 3) == 0.393  # the agents know


def test_a_protected_job_that_changes_in_the_middle_does_not_starve_the_other():
    cluster = shared_pair()
    cluster.ask_to_share("a", protect=True, link="off")
    cluster.run()
    for _ in range(12):
        train_on(cluster, 10.0, a=0.5)  # longer sequences from now on: not the other's doing
    assert sharing(cluster, "a").alone_step_s == 0.5
    assert sharing(cluster, "b").part > 0.05


def test_a_job_that_shall_not_share_any_more_has_its_devices_as_soon_as_the_other_has_some():
    cluster = shared_pair()
    train_on(cluster)
    cluster.ask_to_share("a", allow=False)
    cluster.run()
    assert (cluster.where("a"), cluster.job("a").sharing) == ("m1:0 m2:0", None)
    assert (cluster.job("b").state, cluster.job("b").kept is not None) == (JobState.PENDING, True)
    assert cluster.job("b").reason == "needs 2 slots, 0 are free; a does not share its devices"
    cluster.join("m3", 2)
    cluster.run()
    assert (cluster.where("a"), cluster.where("b")) == ("m1:0 m2:0", "m3:0 m3:1")


@pytest.mark.parametrize("words", [{"allow": False}, {"mode": "exclusive"}])
def test_where_the_other_has_somewhere_to_go_it_moves_and_where_it_can_do_neither_it_says_why(words):
    cluster = shared_pair()
    train_on(cluster)
    cluster.join("m3", 2)
    cluster.ask_to_share("a", **words)
    cluster.run()
    assert (cluster.where("b"), cluster.job("b").kept) == ("m3:0 m3:1", None)
    cluster = shared_pair()
    train_on(cluster)
    cluster.state.records["b"].change(movable=False, why_not="it holds a socket")
    cluster.ask_to_share("a", **words)
    cluster.run()
    assert cluster.where("b") == "m1:0@0.5 m2:0@0.5"
    reason = cluster.policy.plan(cluster.state.snapshot(cluster.now_s)).reasons["b"]
    assert reason.endswith("a does not share its devices any more, but it cannot move while it trains: it holds a socket")


def test_nobody_makes_a_protected_job_wait_for_whole_turns_but_itself():
    cluster = shared_pair()
    cluster.ask_to_share("a", protect=True)
    cluster.ask_to_share("b", mode="time-slice")
    cluster.run()
    assert (sharing(cluster, "a").mode, sharing(cluster, "a").level) == ("interleave", 0)
    assert (sharing(cluster, "b").mode, sharing(cluster, "b").level) == ("interleave", 2)
    cluster.ask_to_share("a", protect=True, mode="time-slice")
    cluster.run()
    assert sharing(cluster, "a").mode == "time-slice"


def test_a_wish_for_other_devices_that_a_job_that_shares_cannot_have_is_answered():
    cluster = shared_pair()
    train_on(cluster)
    cluster.observe(ScaleAsked(time_s=cluster.now_s, job="b", devices=1))
    cluster.run()
    assert cluster.job("b").reason == "asked to have 1 devices, but it shares its devices"


def test_other_terms_make_both_forget_what_was_tried():
    cluster = slow_pair()
    cluster.ask_to_share("b", mode="interleave", link="off")
    assert (cluster.job("a").tried, cluster.job("b").tried) == ((), ())
    cluster.run()
    assert sharing(cluster, "a").mode == "interleave"


def test_a_wish_that_would_leave_two_gangs_overlapping_only_partly_is_refused():
    """b keeps m1:0 and would take m3:0; a has m1:0 and m2:0."""
    cluster = shared_pair()
    cluster.join("m3", 1)
    train_on(cluster)
    for job in ("a", "b"):
        cluster.migrate(job, "m1:0 m3:0")
        cluster.run()
        other = "b" if job == "a" else "a"
        assert cluster.job(job).reason == f"asked to be on m1:0 m3:0, but m1:0 is held by {other}"
        cluster.migrate(job, "")
    assert (cluster.where("a"), cluster.where("b")) == ("m1:0@0.5 m2:0@0.5", "m1:0@0.5 m2:0@0.5")


def test_a_wish_to_leave_takes_only_the_one_that_has_it():
    cluster = shared_pair()
    train_on(cluster)
    cluster.join("m3", 1)
    cluster.join("m4", 1)
    cluster.migrate("a", "m3:0 m4:0")
    cluster.run()
    assert (cluster.where("a"), cluster.where("b")) == ("m3:0 m4:0", "m1:0 m2:0")


def test_a_limit_that_was_asked_for_later_is_given_to_the_next_process():
    cluster = shared_pair()
    train_on(cluster)
    cluster.ask_to_share("b", memory_bytes=4 * GB, link="off")
    cluster.join("m3", 2)
    cluster.migrate("b", "m3:0 m3:1")
    cluster.run()
    (prepare,) = [command for _, command in cluster.commands_of(Prepare)]
    assert prepare.spec.share.memory_bytes == 4 * GB
    assert all(command.spec.share.memory_bytes == 0 for _, command in cluster.commands_of(Launch))


def test_a_controller_that_was_killed_says_the_same_again():
    cluster = slow_pair()
    before = {id: (job.placement, job.sharing, job.tried, job.friendliness) for id, job in cluster.state.jobs.items()}
    cluster.agents.sharing.clear()
    cluster.restart()
    cluster.run(decide=False)
    after = {id: (job.placement, job.sharing, job.tried, job.friendliness) for id, job in cluster.state.jobs.items()}
    assert after == before
    assert cluster.agents.sharing["m2", "b"] == sharing(cluster, "b")


# ---------------------------------------------------------------- moved so that they can share


def two_gangs(nodes: str = "m1:2 m2:2", **spec: object) -> Cluster:
    """a on m1:0 m2:0 and b on m1:1 m2:1, both measured and both waiting for the link most of the time."""
    cluster = Cluster(nodes, 25e6, policy=Restow())
    for job, place in (("a", "m1:0 m2:0"), ("b", "m1:1 m2:1")):
        cluster.submit(job, 2, waiting(), **{"share": NO_LINK, **spec})
        cluster.place(**{job: place})
        cluster.train(job, 100)
    cluster.run(decide=False)
    return cluster


def test_a_person_puts_a_running_job_onto_the_devices_of_another_by_one_switch():
    cluster = two_gangs()
    cluster.migrate("b", "m1:0 m2:0")
    cluster.run()
    assert (cluster.where("a"), cluster.where("b")) == ("m1:0@0.5 m2:0@0.5", "m1:0@0.5 m2:0@0.5")
    assert cluster.job("b").reason.startswith("shares m1:0 m2:0 with a, as was asked: ")
    assert (cluster.job("b").generation, cluster.job("b").moves, cluster.job("a").generation) == (2, 1, 1)
    assert sharing(cluster, "a").partners == ("b",)
    assert cluster.agents.sharing["m1", "b"] == sharing(cluster, "b")


def test_the_same_wish_is_refused_with_both_reasons_when_the_other_does_not_share():
    cluster = two_gangs(share=ShareSpec(allow=False))
    cluster.migrate("b", "m1:0 m2:0")
    cluster.run()
    assert cluster.where("b") == "m1:1 m2:1"
    assert cluster.job("b").reason == "asked to be on m1:0 m2:0, but m1:0 is held by a; a does not share its devices"


def test_two_gangs_come_together_to_make_room_for_one_that_waits():
    cluster = two_gangs()
    cluster.submit("c", 2, waiting(), share=ShareSpec(allow=False))
    schedule = cluster.policy.decide(cluster.state.snapshot(cluster.now_s))
    assert schedule.reasons["c"] == "starts on m1:0 m2:0, once a has made room"
    cluster.run()
    assert (cluster.where("a"), cluster.where("b")) == ("m1:1@0.5 m2:1@0.5", "m1:1@0.5 m2:1@0.5")
    assert cluster.where("c") == "m1:0 m2:0"
    assert cluster.job("a").reason.startswith(
        "joins b on m1:1 m2:1 to make room for c, together 1.50 of one job alone is expected: "
    )
    moves = {id: job.moves for id, job in cluster.state.jobs.items()}
    train_on(cluster, 100.0)
    assert {id: job.moves for id, job in cluster.state.jobs.items()} == moves == {"a": 1, "b": 0, "c": 0}


def test_when_that_move_fails_nobody_has_lost_anything():
    cluster = two_gangs()
    cluster.submit("c", 2, waiting(), share=ShareSpec(allow=False))
    cluster.agents.wrong_twins = True
    cluster.run()
    assert (cluster.where("a"), cluster.where("b"), cluster.where("c")) == ("m1:0 m2:0", "m1:1 m2:1", "")
    assert (cluster.job("a").sharing, cluster.job("b").sharing) == (None, None)


def test_nobody_is_moved_for_it_who_is_protected_may_not_move_or_would_not_gain():
    for spec in ({"share": ShareSpec(protect=True)}, {"migrate": False}, {"share": ShareSpec(allow=False)}, {"max_pause_s": 0.01}):
        cluster = two_gangs(**spec)
        cluster.submit("c", 2, waiting(), share=ShareSpec(allow=False))
        cluster.run()
        assert cluster.job("c").reason == "needs 2 slots, 0 are free; its spec does not let it share devices"


# ---------------------------------------------------------------- memory


def test_what_does_not_fit_at_once_shares_in_turns_and_says_so():
    cluster = Cluster("m1:1 m2:1", 25e6, policy=Restow(), memory_bytes=10 * GB)
    cluster.submit("a", 2, waiting(memory_bytes=8 * GB, valley_bytes=6 * GB), share=NO_LINK)
    cluster.run()
    cluster.train("a", 100)
    cluster.run()
    cluster.submit("b", 2, waiting(), memory_bytes=7 * GB, share=NO_LINK)
    cluster.run()
    assert cluster.job("b").reason.startswith("takes turns of 5 s with a")
    assert cluster.job("a").reason.endswith("since their memory does not fit at once")
    assert {sharing(cluster, id).mode for id in "ab"} == {"time-slice"}
    assert sharing(cluster, "a").swap_bytes >= 3 * GB  # 6 and 7 held between steps, less 10
    cluster.submit("c", 2, waiting(), memory_bytes=12 * GB)
    cluster.run()
    assert cluster.job("c").reason == (
        "needs 2 slots with 12 GB of memory each, the cluster has 0; one of them alone needs 12 GB of the 10 GB of a device"
    )


# ---------------------------------------------------------------- properties

MODES = st.sampled_from(["auto", "auto", "interleave", "time-slice", "best-effort", "free", "exclusive"])
JOBS = st.lists(
    st.tuples(
        st.integers(1, 2), st.floats(0.0, 0.29), MODES, st.booleans(), st.integers(0, 9), st.floats(0.0, 0.3), st.booleans()
    ),
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(JOBS, st.lists(st.integers(0, 5), max_size=3))
def test_no_share_is_promised_twice_groups_have_the_same_devices_and_with_nothing_new_nothing_changes(jobs, ends):
    cluster = Cluster("m1:2 m2:2", 25e6, policy=Restow(), memory_bytes=10 * GB)
    for index, (workers, exposed_s, mode, protect, gigabytes, waited_s, movable) in enumerate(jobs):
        share = ShareSpec(mode=mode, protect=protect and mode != "best-effort", max_slowdown=0.2 if gigabytes == 9 else 0.0)
        program = waiting(exposed_s=exposed_s, waited_s=0.0, memory_bytes=gigabytes * GB, valley_bytes=gigabytes * GB // 2)
        program.uses_sdk = movable
        cluster.submit(f"j{index}", workers, program, share=share, memory_bytes=gigabytes * GB)
        cluster.run()
        train_on(cluster)
        program.waited_s = waited_s if cluster.job(f"j{index}").sharing else 0.0
        check(cluster)
    for index in ends:
        if index < len(jobs):
            cluster.end(f"j{index}")
            cluster.run()
            check(cluster)
    for _ in range(30):  # until every guard has done what it does
        train_on(cluster, 100.0)
        check(cluster)
    before = settled(cluster)
    for _ in range(3):
        train_on(cluster, 100.0)
        check(cluster)
    assert settled(cluster) == before


def settled(cluster: Cluster) -> list[tuple[object, ...]]:
    """What must not change by itself. A guard may go on to feel its way."""
    jobs = cluster.state.jobs.values()
    return [(job.id, job.moves, job.generation, job.intended, job.sharing and job.sharing.mode) for job in jobs]


def check(cluster: Cluster) -> None:
    """The invariants hold after every event anyhow; here what is adopted of sharing."""
    jobs = [job for job in cluster.state.jobs.values() if job.intended]
    schedule: Schedule = cluster.policy.decide(cluster.state.snapshot(cluster.now_s))
    for placements in ({job.id: job.intended for job in jobs}, schedule.placements):
        promised: dict[tuple[str, int], float] = {}
        for placement in placements.values():
            for slot in placement:
                promised[slot[:2]] = promised.get(slot[:2], 0.0) + slot.share
        assert all(share <= 1.0 + 1e-9 for share in promised.values())
        for one in placements.values():
            for other in placements.values():
                assert devices_of(one) == devices_of(other) or devices_of(one).isdisjoint(devices_of(other))
    for job in jobs:
        group = [other for other in jobs if devices_of(other.intended) == devices_of(job.intended)]
        if job.sharing:
            assert set(job.sharing.partners) == {other.id for other in group if other is not job}
            assert len({other.sharing.mode for other in group if other.sharing}) == 1
        else:
            assert len(group) == 1
        if len(group) > 1:
            assert all(other.spec.share.mode != "exclusive" for other in group)
            peaks = sum(max(other.spec.memory_bytes, other.profile.memory_bytes) for other in group)
            assert peaks <= 10 * GB or (job.sharing and job.sharing.mode != "free")
