"""Gangs that lose ranks go on from what is left of them, or fail with the reason."""

from __future__ import annotations

import pytest

from restow.core.config import LOSSES_MAX, CoreConfig
from restow.job import CheckpointSpec, JobState, Phase
from restow.messages import (
    CheckpointAsked,
    Halt,
    Keep,
    LeaseRanOut,
    Prepare,
    RankExited,
    RankHalted,
    RankKept,
    RankReady,
    Stop,
)
from tests.core.obedient import Cluster
from tests.core.test_suspending import running


def halted(
    cluster: Cluster, rank: int, node: str, step: int, holds: tuple[int, ...], privates: tuple[int, ...],
    stripe: tuple[int, int] = (0, 0), copied: tuple[int, ...] = (),
) -> None:  # fmt: skip
    cluster.observe(RankHalted(
        time_s=1, job="a", generation=1, node=node, rank=rank, step=step, holds=holds, privates=privates, stripe=stripe,
        copied=copied,
    ))  # fmt: skip


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_gang_that_loses_a_rank_goes_on_from_its_step(rank):
    cluster = running()
    step = cluster.agents.programs["a"].step
    cluster.kill("a", rank)
    cluster.run()
    job = cluster.job("a")
    assert (job.state, job.kept, job.generation) == (JobState.RUNNING, None, 3)
    assert cluster.agents.programs["a"].step == step
    assert not cluster.commands_of(Stop)
    assert not cluster.agents.vaults
    assert len(cluster.agents.training("a")) == 3


def test_two_that_are_lost_at_once_are_replaced_as_well():
    cluster = running()
    cluster.kill("a", 0)
    cluster.kill("a", 2)
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING


def test_the_controller_may_be_killed_at_every_stage_of_it():
    for stage in (Halt, Keep):
        cluster = running()
        cluster.agents.deaf = {stage}
        cluster.kill("a", 1)
        cluster.run()
        assert cluster.job("a").state is JobState.STOPPING
        cluster.agents.deaf = set()
        cluster.restart()
        cluster.run()
        assert cluster.job("a").state is JobState.RUNNING, stage


def test_the_step_is_the_latest_that_is_there_as_a_whole():
    cluster = running()
    cluster.agents.deaf = {Halt, Keep}
    cluster.kill("a", 2)
    cluster.run()
    halted(cluster, 2, "m2", 10, (), (9, 10))
    halted(cluster, 0, "m1", 11, (10, 11), (10, 11))
    halted(cluster, 1, "m1", 11, (11,), (10, 11))
    cluster.send()
    keeps = cluster.commands_of(Keep)
    assert {(node, keep.step, keep.replicas, keep.lost) for node, keep in keeps} == {
        ("m1", 10, (0,), ()), ("m2", 10, (0,), (2,))
    }  # fmt: skip
    for rank, node in ((0, "m1"), (1, "m1"), (2, "m2")):
        cluster.observe(RankKept(time_s=2, job="a", generation=2, node=node, rank=rank, step=10, bytes=1))
    kept = cluster.job("a").kept
    assert (kept.step, kept.replicas, kept.muted) == (10, ("m1",), (0, 1))  # these have printed the lines of step 10 already


@pytest.mark.parametrize(
    ("lost", "other", "is_there"),
    [
        (((0, 2), (9, 10)), ((1, 2), (9, 10)), True),
        (((0, 2), (9,)), ((1, 2), (9, 10)), False),
        (((0, 1), (9, 10)), ((0, 0), ()), True),
        (((0, 1), (9,)), ((0, 1), (10,)), True),
    ],
)
def test_a_step_that_a_node_has_copied_is_there_if_the_stripes_of_its_lost_ranks_are(lost, other, is_there):
    cluster = running()
    cluster.agents.deaf = {Halt, Keep}
    cluster.kill("a", 0)
    cluster.run()
    halted(cluster, 0, "m1", 10, (), (9, 10), *lost)
    halted(cluster, 1, "m1", 11, (11,), (10, 11), *other)
    halted(cluster, 2, "m2", 11, (11,), (10, 11))
    cluster.send()
    keeps = {(node, keep.step, keep.replicas, keep.copied) for node, keep in cluster.commands_of(Keep)}
    assert keeps == ({("m1", 10, (), True), ("m2", 10, (), False)} if is_there else set())
    if not is_there:
        assert "no rank holds a whole step" in cluster.job("a").reason


def test_what_the_dead_left_on_nodes_that_live_is_enough():
    cluster = running()
    cluster.agents.deaf = {Halt, Keep}
    for rank in range(3):
        cluster.kill("a", rank)
    cluster.run()
    for rank, node in ((0, "m1"), (1, "m1"), (2, "m2")):
        halted(cluster, rank, node, 10, (), (9, 10), (0, 1) if rank != 1 else (0, 0), (9, 10) if rank != 1 else ())
    cluster.send()
    assert {(node, k.step, k.lost, k.copied) for node, k in cluster.commands_of(Keep)} == {
        ("m1", 10, (0, 1), True), ("m2", 10, (2,), True)
    }  # fmt: skip
    for rank, node in ((0, "m1"), (1, "m1"), (2, "m2")):
        cluster.observe(RankKept(time_s=2, job="a", generation=2, node=node, rank=rank, step=10, bytes=1))
    assert cluster.job("a").kept.replicas == ("m1", "m2")


@pytest.mark.parametrize(
    ("lost", "others", "reason"),
    [
        ((), (11,), "nothing is left of rank 2 for a step that others hold"),
        ((9, 10), (11,), "nothing is left of rank 2 for a step that others hold"),
        ((9, 10), (), "nothing is left of rank 0 for a step that others hold"),
    ],
)
def test_what_cannot_be_put_together_fails_the_job_with_the_reason(lost, others, reason):
    cluster = running()
    cluster.agents.deaf = {Halt}
    cluster.kill("a", 2)
    cluster.run()
    halted(cluster, 2, "m2", 10, (), lost)
    halted(cluster, 0, "m1", 11, others, (10, 11))
    halted(cluster, 1, "m1", 11, others, (10, 11))
    cluster.run()
    job = cluster.job("a")
    assert job.state is JobState.FAILED
    assert job.reason == f"rank 2 on m2 was ended by signal 9, and could not go on: {reason}"
    assert not cluster.agents.workers


@pytest.mark.parametrize("has_copy", [True, False])
def test_one_that_is_lost_while_the_others_write_fails_the_job_unless_there_is_a_copy(has_copy):
    cluster = running()
    cluster.agents.deaf = {Halt, Keep}
    cluster.kill("a", 2)
    cluster.run()
    halted(cluster, 2, "m2", 10, (), (9, 10))
    halted(cluster, 0, "m1", 10, (10,), (9, 10), *(((0, 1), (9, 10)) if has_copy else ()))
    halted(cluster, 1, "m1", 10, (), (9, 10))
    cluster.run()
    assert {keep.replicas for _, keep in cluster.commands_of(Keep)} == {(0,)}
    cluster.kill("a", 0)
    cluster.run()
    if not has_copy:
        assert cluster.job("a").state is JobState.FAILED
        assert "while the state was being saved" in cluster.job("a").reason
        return
    cluster.send()
    assert ("m1", (0,), True) in {(node, keep.lost, keep.copied) for node, keep in cluster.commands_of(Keep)}
    cluster.agents.deaf = set()
    cluster.restart()
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING


def test_a_word_that_never_comes_ends_it():
    cluster = running()
    cluster.agents.deaf = {Halt}
    cluster.kill("a", 2)
    cluster.run()
    cluster.clock(61)
    cluster.run()
    assert cluster.job("a").state is JobState.FAILED
    assert "no word of rank 0, 1, 2 within 60 s" in cluster.job("a").reason


@pytest.mark.parametrize("why", ["its own error", "recover: false", "not under the SDK", "a single worker"])
def test_what_is_not_recovered_fails_as_ever(why):
    cluster = Cluster("m1:2 m2:2")
    program = cluster.agents.programs["a"]
    program.uses_sdk = why != "not under the SDK"
    cluster.submit("a", 1 if why == "a single worker" else 3, recover=why != "recover: false")
    cluster.run()
    cluster.kill("a", 0, code=1 if why == "its own error" else -9)
    cluster.run()
    assert cluster.job("a").state is JobState.FAILED
    assert not cluster.commands_of(Halt)


def test_a_job_that_is_cancelled_meanwhile_ends():
    cluster = running()
    cluster.agents.deaf = {Halt}
    cluster.kill("a", 2)
    cluster.run()
    cluster.cancel("a")
    cluster.run()
    assert (cluster.job("a").state, cluster.agents.workers) == (JobState.CANCELLED, {})


def test_a_lost_node_is_survived_where_another_has_a_replica():
    cluster = running(nodes="m1:2 m2:2 m3:1")
    lost = [rank for rank, slot in enumerate(cluster.job("a").placement) if slot.node == "m2"]
    cluster.agents.buddies = {("a", rank): "m1" for rank in lost}
    cluster.lose("m2")
    cluster.run()
    job = cluster.job("a")
    assert (job.state, len(cluster.agents.training("a"))) == (JobState.RUNNING, 3)
    assert "m2" not in cluster.where("a")


def with_fewer(**spec: object) -> Cluster:
    """Three ranks on the two devices of m1, since m2 was lost."""
    cluster = running(nodes="m1:2 m2:1", **spec)
    cluster.agents.buddies = {("a", rank): "m1" for rank, slot in enumerate(cluster.job("a").placement) if slot.node == "m2"}
    cluster.lose("m2")
    cluster.run()
    return cluster


def held(cluster: Cluster) -> tuple[JobState, int, int]:
    """And how many devices it has, and must have."""
    job = cluster.job("a")
    return job.state, len(set(job.placement)), job.devices_min


def test_one_with_fewer_devices_that_goes_on_from_a_checkpoint_may_still_have_fewer():
    cluster = with_fewer(checkpoint=CheckpointSpec(folder="/ckpt", every_s=10.0, shared=True))
    assert held(cluster) == (JobState.RUNNING, 2, 1)
    cluster.observe(CheckpointAsked(time_s=cluster.now_s, job="a"))
    cluster.run()
    cluster.train("a", 20)
    cluster.lose("m1")
    cluster.join("m1", 2)
    cluster.run()
    assert "goes on from its checkpoint" in cluster.job("a").reason
    assert held(cluster) == (JobState.RUNNING, 2, 1)


def test_one_with_fewer_devices_that_was_suspended_may_still_have_fewer_until_it_has_all():
    cluster = with_fewer()
    for devices, least in ((2, 1), (3, 3)):
        cluster.pause("a")
        cluster.run()
        if devices == 3:
            cluster.join("m2", 1)
        cluster.resume("a")
        cluster.run()
        assert held(cluster) == (JobState.RUNNING, devices, least)


def test_a_lost_node_without_a_replica_is_waited_for_and_then_the_job_fails():
    cluster = running()
    cluster.lose("m2")
    cluster.run()
    lost = "node m2 was lost (no answer for 3 s), and rank 2 with it"
    assert cluster.job("a").reason == (
        f"{lost}; waits for m2 to come back, since nothing is left of rank 2 for a step that others hold"
    )
    cluster.clock(CoreConfig().gone_s + 1)
    cluster.run()
    assert cluster.job("a").state is JobState.FAILED
    assert cluster.job("a").reason == (
        f"{lost}, and could not go on: nothing is left of rank 2 for a step that others hold, and m2 did not come back within 600 s"
    )


def test_a_lost_node_without_a_replica_is_not_waited_for_so_long_where_there_is_a_checkpoint():
    cluster = running(checkpoint=CheckpointSpec())
    cluster.observe(CheckpointAsked(time_s=cluster.now_s, job="a"))
    cluster.run()
    cluster.lose("m2")
    cluster.join("m3", 2)
    cluster.run()
    assert "waits for m2 to come back" in cluster.job("a").reason
    cluster.clock(CoreConfig().away_s + 1)
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING
    assert cluster.where("a") == "m1:0 m1:1 m3:0"


@pytest.mark.parametrize("nodes", [("m2", "m3"), ("m1", "m2", "m3")])
def test_nodes_that_were_out_of_sight_bring_back_what_their_ranks_hold(nodes):
    cluster = running(nodes="m1:1 m2:1 m3:1")
    step = cluster.agents.programs["a"].step
    for node in nodes:
        cluster.hide(node)
    cluster.run()
    assert f"waits for {' and '.join(nodes)} to come back" in cluster.job("a").reason
    for node in nodes:
        cluster.join(node, 1)
    cluster.run()
    assert (cluster.job("a").state, cluster.agents.programs["a"].step) == (JobState.RUNNING, step)
    assert len(cluster.agents.training("a")) == 3


def test_ranks_that_were_halted_for_want_of_a_word_go_on_where_they_stand():
    cluster = running()
    cluster.observe(LeaseRanOut(time_s=cluster.now_s, node="m2"))
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING
    assert cluster.job("a").generation > 1
    assert {keep.lost for _, keep in cluster.commands_of(Keep)} == {()}


def test_one_that_is_lost_at_the_same_step_again_and_again_is_not_brought_back_for_ever():
    cluster = running()
    for _ in range(5):
        cluster.kill("a", 1)
        cluster.run()
    cluster.train("a", 1)
    cluster.run()  # a step was made: counted anew
    for _ in range(LOSSES_MAX + 1):
        assert cluster.job("a").state is JobState.RUNNING
        cluster.kill("a", 1)
        cluster.run()
    job = cluster.job("a")
    assert job.state is JobState.FAILED
    assert job.reason.endswith("; that was so 11 times at step 11, and no step was made in between")


def test_a_gang_that_ends_itself_whole_at_the_same_step_goes_back_to_its_checkpoint_ten_times():
    cluster = running(checkpoint=CheckpointSpec())
    cluster.observe(CheckpointAsked(time_s=cluster.now_s, job="a"))
    cluster.run()
    (saved,) = cluster.job("a").saved
    for _ in range(LOSSES_MAX + 1):
        assert cluster.job("a").state is JobState.RUNNING
        cluster.train("a", 20 - cluster.agents.programs["a"].step)
        cluster.hear()
        for rank in range(3):
            cluster.kill("a", rank)
        cluster.agents.left.clear()
        cluster.run()
    job = cluster.job("a")
    assert job.state is JobState.FAILED
    assert job.saved == (saved,)
    assert f"that was so {LOSSES_MAX + 1} times at step " in job.reason


def test_a_job_that_loses_a_rank_in_its_first_steps_starts_again_a_few_times():
    cluster = Cluster("m1:3")
    cluster.submit("a", 2)
    for _ in range(3):
        cluster.decide(), cluster.send(), cluster.hear(), cluster.send()
        cluster.agents.reports = [event for event in cluster.agents.reports if not isinstance(event, RankReady)]
        cluster.hear()
        assert cluster.job("a").state is JobState.RUNNING
        cluster.train("a", 1)
        cluster.hear()
        cluster.kill("a", 0)
        cluster.hear(), cluster.send(), cluster.hear()
        assert "it starts again" in cluster.job("a").reason
        cluster.agents.programs["a"].step = 0
    cluster.run()
    cluster.train("a", 10)
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING


def test_a_job_of_which_nothing_is_left_is_tried_again_as_its_spec_says():
    cluster = running(retries=1)
    cluster.agents.deaf = {Halt}
    for retried in (0, 1):
        for rank in range(3):
            cluster.kill("a", rank)
        cluster.agents.programs["a"].step = 0
        cluster.run()
        for rank, slot in enumerate(cluster.job("a").placement):
            cluster.observe(RankHalted(
                time_s=1, job="a", generation=cluster.job("a").generation, node=slot.node, rank=rank, step=-1, holds=(),
                privates=(),
            ))  # fmt: skip
        cluster.run()
        if not retried:
            assert (cluster.job("a").state, cluster.job("a").retried) == (JobState.RUNNING, 1)
    assert cluster.job("a").state is JobState.FAILED


def test_a_move_that_has_just_failed_does_not_delay_the_return():
    cluster = running()
    cluster.state.records["a"].change(failed_moves=3, not_before_s=1000.0)
    cluster.kill("a", 1)
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING


def test_a_leaver_that_is_lost_while_its_twin_rehearses_is_not_waited_for():
    cluster = running(nodes="m1:2 m2:1 m3:1")
    step = cluster.agents.programs["a"].step
    cluster.agents.deaf = {Prepare}
    cluster.migrate("a", "m1:0 m1:1 m3:0")
    cluster.run()
    assert cluster.job("a").switch.phase is Phase.STANDBY
    cluster.agents.deaf = set()
    cluster.kill("a", 2)
    cluster.run()
    assert cluster.commands_of(Keep)
    cluster.observe(RankExited(
        time_s=1, job="a", generation=2, node="m3", rank=2, role="twin", code=-15, reason="not needed: the switch was given up"
    ))  # fmt: skip
    cluster.run()
    assert (cluster.job("a").state, cluster.agents.programs["a"].step) == (JobState.RUNNING, step)
