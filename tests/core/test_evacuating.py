"""The state of suspended jobs leaves machines that are drained, and what can go wrong on its way."""

from __future__ import annotations

import pytest

from restow.core import evacuating
from restow.job import JobSpec, JobState, Saved
from restow.messages import (
    Discard,
    Forget,
    JobSubmitted,
    NodeCordoned,
    NodeDrained,
    OfferVault,
    OpenVault,
    TakeVault,
    VaultMoved,
    VaultMoveFailed,
    VaultMoveProposed,
)
from restow.placement import parse_placement
from tests.core.obedient import Cluster


def suspended(nodes: str, **jobs: str) -> Cluster:
    """Paused jobs with their state where they ran."""
    cluster = Cluster(nodes)
    for job, where in jobs.items():
        cluster.submit(job, len(where.split()))
        cluster.place(**{job: where})
        cluster.train(job, 10)
        cluster.run()
        cluster.pause(job)
        cluster.run()
    return cluster


def drain(cluster: Cluster, node: str, on: bool = True) -> None:
    cluster.observe(NodeDrained(time_s=cluster.now_s, node=node, is_draining=on))


def lies(cluster: Cluster, job: str = "a") -> tuple[str, ...]:
    """Where the state of each rank is believed to be; and it is there."""
    kept = cluster.job(job).kept
    where = tuple(slot.node for slot in kept.placement)
    assert {(node, job, kept.generation) for node in (*where, *kept.replicas)} <= cluster.agents.vaults
    return where


def nodes_told(cluster: Cluster, kind: type) -> list[str]:
    return [node for node, _ in cluster.commands_of(kind)]


def test_it_moves_to_a_node_that_has_a_part_of_it_and_is_then_removed():
    cluster = suspended("m0:4 m1:2 m2:2", a="m1:0 m1:1 m2:0")
    drain(cluster, "m1")
    cluster.run()
    assert lies(cluster) == ("m2", "m2", "m2")
    assert cluster.job("a").kept.replicas == ("m2",)
    assert (nodes_told(cluster, OfferVault), nodes_told(cluster, TakeVault)) == (["m1"], ["m2"])
    assert nodes_told(cluster, Discard) == ["m1"]
    assert {node for node, _, _ in cluster.agents.vaults} == {"m2"}
    cluster.lose("m1")
    cluster.resume("a")
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING
    assert set(nodes_told(cluster, OpenVault)) == {"m2"}
    assert not cluster.agents.vaults


def test_without_a_part_anywhere_else_it_goes_where_the_least_is_kept_and_then_where_the_fewest_ranks_train():
    cluster = suspended("m1:2 m2:1 m3:1 m4:1", a="m1:0", b="m2:0")
    cluster.submit("c")
    cluster.place(c="m3:0")
    drain(cluster, "m1")
    cluster.run()
    assert lies(cluster) == ("m4",)


def test_the_next_one_knows_where_the_one_before_goes():
    cluster = suspended("m1:2 m2:1 m3:1", a="m1:0", b="m1:1")
    drain(cluster, "m1")
    cluster.run()
    assert (lies(cluster, "a"), lies(cluster, "b")) == (("m2",), ("m3",))


def test_a_few_leave_a_node_at_once_and_the_others_follow():
    cluster = suspended("m1:4 m2:4", **{job: f"m1:{n}" for n, job in enumerate("abcd")})
    drain(cluster, "m1")
    cluster.agents.deaf = {OfferVault}
    cluster.run()
    assert [event.job for event in cluster.journal if isinstance(event, VaultMoveProposed)] == ["a", "b"]
    cluster.agents.deaf = set()
    cluster.restart()
    cluster.run()
    assert [lies(cluster, job) for job in "abcd"] == [("m2",)] * 4


def test_all_of_it_leaves_when_all_its_nodes_are_drained():
    cluster = suspended("m1:1 m2:1 m3:1", a="m1:0 m2:0")
    drain(cluster, "m1")
    drain(cluster, "m2")
    cluster.run()
    assert lies(cluster) == ("m3", "m3")
    assert {node for node, _, _ in cluster.agents.vaults} == {"m3"}


def test_what_is_suspended_because_of_the_drain_leaves_too():
    cluster = Cluster("m1:2 m2:1")
    cluster.submit("a", 2)
    cluster.run()
    cluster.train("a", 10)
    cluster.run()
    drain(cluster, "m1")
    cluster.run()
    assert lies(cluster) == ("m2", "m2")


@pytest.mark.parametrize("trouble", ["cordoned", "draining", "lost", "alone"])
def test_where_no_other_node_can_take_it_it_stays_until_one_can(trouble):
    cluster = suspended("m1:1" if trouble == "alone" else "m1:1 m2:1", a="m1:0")
    if trouble == "cordoned":
        cluster.observe(NodeCordoned(time_s=0.0, node="m2", is_cordoned=True))
    elif trouble == "draining":
        drain(cluster, "m2")
    elif trouble == "lost":
        cluster.lose("m2")
    drain(cluster, "m1")
    cluster.run()
    assert lies(cluster) == ("m1",)
    assert not cluster.commands_of(OfferVault)
    cluster.join("m3", 1)
    cluster.run()
    assert lies(cluster) == ("m3",)


def test_without_room_it_stays_and_is_tried_elsewhere_later():
    cluster = suspended("m1:1 m2:1 m3:1", a="m1:0")
    cluster.agents.full_nodes = {"m2"}
    drain(cluster, "m1")
    cluster.run()
    assert lies(cluster) == ("m1",)
    assert not cluster.commands_of(Discard)
    cluster.clock(29)
    cluster.run()
    assert nodes_told(cluster, TakeVault) == ["m2"]
    cluster.clock(1)
    cluster.run()
    assert nodes_told(cluster, TakeVault) == ["m2", "m3"]
    assert lies(cluster) == ("m3",)


def test_it_waits_longer_after_each_failure_until_a_person_asks_again():
    cluster = suspended("m1:1 m2:1", a="m1:0")
    cluster.agents.full_nodes = {"m2"}
    drain(cluster, "m1")
    cluster.run()
    for wait_s, tries in ((30, 2), (59, 2), (1, 3), (119, 3)):
        cluster.clock(wait_s)
        cluster.run()
        assert len(cluster.commands_of(TakeVault)) == tries
    cluster.agents.full_nodes = set()
    drain(cluster, "m1")
    cluster.run()
    assert lies(cluster) == ("m2",)


def test_a_job_that_is_about_to_come_back_is_not_moved_first():
    cluster = suspended("m1:1 m2:1", a="m1:0")
    drain(cluster, "m1")
    cluster.state.records["a"].change(intended=parse_placement("m2:0"))
    assert cluster.state.tick(0.0) == []
    cluster.state.records["a"].change(intended=())
    assert [type(event) for event in cluster.state.tick(0.0)] == [VaultMoveProposed]


@pytest.mark.parametrize("deaf", [OfferVault, TakeVault])
def test_a_job_that_comes_back_meanwhile_does_so_from_where_its_state_was(deaf):
    cluster = suspended("m1:1 m2:1", a="m1:0")
    cluster.agents.deaf = {deaf}
    drain(cluster, "m1")
    cluster.run()
    kept = cluster.job("a").kept
    cluster.resume("a")
    cluster.decide()
    cluster.agents.vaults.add(("m2", "a", kept.generation))  # it had arrived, and nobody has heard of it
    cluster.observe(VaultMoved(
        time_s=0.0, job="a", generation=kept.generation, node="m2", attempt=1, source="m1", bytes=1, copy_s=0.1
    ))  # fmt: skip
    assert cluster.job("a").state is JobState.STARTING
    assert cluster.job("a").kept == kept
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING
    assert nodes_told(cluster, OpenVault) == ["m1"]
    assert not cluster.agents.vaults


def test_a_return_that_fails_lets_it_move_after_all():
    cluster = suspended("m1:1 m2:1", a="m1:0")
    cluster.agents.deaf = {OfferVault}
    drain(cluster, "m1")
    cluster.run()
    cluster.agents.deaf, cluster.agents.wrong_twins = set(), True
    cluster.resume("a")
    cluster.run()
    assert cluster.job("a").state is JobState.PENDING
    assert lies(cluster) == ("m2",)


def test_a_controller_that_comes_back_goes_on_with_it_at_every_stage():
    for deaf in (OfferVault, TakeVault, Discard):
        cluster = suspended("m1:1 m2:1", a="m1:0")
        cluster.agents.deaf = {deaf}
        drain(cluster, "m1")
        cluster.run()
        cluster.agents.deaf = set()
        cluster.restart()
        cluster.run()
        assert lies(cluster) == ("m2",), deaf
        assert {node for node, _, _ in cluster.agents.vaults} == {"m2"}, deaf


def test_a_node_that_is_used_again_keeps_what_it_has():
    cluster = suspended("m1:1 m2:1", a="m1:0")
    cluster.agents.deaf = {OfferVault}
    drain(cluster, "m1")
    cluster.run()
    drain(cluster, "m1", on=False)
    cluster.agents.deaf = set()
    cluster.run()
    assert lies(cluster) == ("m1",)
    assert not cluster.state.records["a"].evacuation


def test_a_target_that_is_lost_is_replaced_by_another():
    cluster = suspended("m1:1 m2:1 m3:1", a="m1:0")
    cluster.agents.deaf = {TakeVault}
    drain(cluster, "m1")
    cluster.run()
    cluster.agents.deaf = set()
    cluster.lose("m2")
    cluster.run()
    assert lies(cluster) == ("m3",)


def test_a_source_that_is_switched_off_when_all_has_arrived_is_not_needed_any_more():
    cluster = suspended("m1:1 m2:1", a="m1:0")
    cluster.agents.deaf = {TakeVault}
    drain(cluster, "m1")
    cluster.run()
    cluster.agents.deaf = set()
    cluster.restart()
    cluster.send()
    cluster.lose("m1")  # before anybody heard that it has
    assert [type(event) for event in cluster.agents.reports] == [VaultMoved]
    cluster.run()
    assert lies(cluster) == ("m2",)


def test_a_source_that_is_lost_on_the_way_is_waited_for():
    cluster = suspended("m1:1 m2:1", a="m1:0")
    cluster.agents.deaf = {TakeVault}
    drain(cluster, "m1")
    cluster.run()
    cluster.agents.deaf = set()
    cluster.lose("m1")
    cluster.run()
    assert cluster.job("a").kept.placement[0].node == "m1"
    cluster.join("m1", 1)
    cluster.run()
    assert lies(cluster) == ("m2",)


def test_late_words_about_an_earlier_attempt_change_nothing():
    cluster = suspended("m1:1 m2:1 m3:1", a="m1:0")
    cluster.agents.full_nodes = {"m2"}
    drain(cluster, "m1")
    cluster.run()
    cluster.agents.deaf = {TakeVault}
    cluster.clock(30)
    cluster.run()
    generation, doing = cluster.job("a").kept.generation, cluster.state.records["a"].evacuation
    about = {"time_s": 30.0, "job": "a", "generation": generation, "node": "m2", "attempt": 1}
    cluster.observe(VaultMoveFailed(**about, reason="again"))
    cluster.observe(VaultMoved(**about, source="m1", bytes=1, copy_s=0.1))
    assert cluster.state.records["a"].evacuation == doing
    assert lies(cluster) == ("m1",)


def test_one_that_nobody_answers_for_is_given_up_and_tried_again():
    cluster = suspended("m1:1 m2:1", a="m1:0")
    cluster.agents.deaf = {TakeVault}
    drain(cluster, "m1")
    cluster.run()
    cluster.clock(3601)
    cluster.run()
    assert "did not arrive within 3600 s" in next(e.reason for e in cluster.journal if isinstance(e, VaultMoveFailed))
    cluster.agents.deaf = set()
    cluster.clock(30)
    cluster.run()
    assert lies(cluster) == ("m2",)


def test_back_on_a_node_that_it_had_left_it_is_not_removed_there():
    cluster = suspended("m1:1 m2:1", a="m1:0")
    drain(cluster, "m1")
    cluster.run()
    drain(cluster, "m1", on=False)
    drain(cluster, "m2")
    cluster.run()
    assert lies(cluster) == ("m1",)
    cluster.restart()
    cluster.run()
    assert lies(cluster) == ("m1",)


def test_a_cancelled_job_is_forgotten_where_its_state_was_and_where_it_was_going():
    cluster = suspended("m1:1 m2:1", a="m1:0")
    cluster.agents.deaf = {TakeVault}
    drain(cluster, "m1")
    cluster.run()
    cluster.cancel("a")
    cluster.run()
    assert not cluster.state.records["a"].evacuation
    assert set(nodes_told(cluster, Forget)) == {"m1", "m2"}


def test_a_checkpoint_is_not_moved():
    cluster = Cluster("m1:1 m2:1")
    saved = Saved(step=7, path="/c/7", node="m1", signatures=("s.0",), time_s=0.0)
    drain(cluster, "m1")
    drain(cluster, "m2")
    cluster.observe(JobSubmitted(time_s=0.0, job="a", spec=JobSpec(command=("x",)), saved=(saved,)))
    drain(cluster, "m2", on=False)
    cluster.pause("a")
    cluster.run()
    assert cluster.job("a").kept.checkpoint
    assert not cluster.commands_of(OfferVault)


def test_the_plan_says_where_each_state_would_go_and_what_cannot_leave():
    cluster = suspended("m1:2 m2:1 m3:1", a="m1:0", b="m1:1", c="m2:0")
    saved = Saved(step=7, path="/c/7", node="m1", signatures=("s.0",), time_s=0.0)
    cluster.observe(JobSubmitted(time_s=0.0, job="d", spec=JobSpec(command=("x",)), saved=(saved,)))
    jobs, nodes = cluster.state.jobs.values(), cluster.state.nodes.values()
    assert [(job.id, to) for job, to in evacuating.planned(jobs, nodes, "m1")] == [("a", "m3"), ("b", "m2"), ("d", "")]
    cluster.lose("m2")
    cluster.lose("m3")
    assert [to for _, to in evacuating.planned(jobs, cluster.state.nodes.values(), "m1")] == ["", "", ""]
