"""Jobs that leave their devices with their state kept, and come back; and what can go wrong on both ways."""

from __future__ import annotations

import pytest

from restow.job import CheckpointSpec, JobState, Phase
from restow.messages import (
    CheckpointAsked,
    Connect,
    Decide,
    Discard,
    Halt,
    NodeJoined,
    OpenVault,
    Prepare,
    RankKept,
    Stop,
    SwitchFailed,
    VaultNotOnDisk,
)
from tests.core.obedient import Cluster


def running(nodes: str = "m1:2 m2:2", workers: int = 3, **spec: object) -> Cluster:
    cluster = Cluster(nodes)
    cluster.submit("a", workers, **spec)
    cluster.run()
    cluster.train("a", 10)
    cluster.run()
    return cluster


def suspended(**about: object) -> Cluster:
    cluster = running(**about)
    cluster.pause("a")
    cluster.run()
    return cluster


def test_a_paused_job_gives_its_devices_back_and_keeps_its_state_where_it_was():
    cluster = running()
    where = cluster.job("a").placement
    cluster.pause("a")
    cluster.run()
    job = cluster.job("a")
    assert (job.state, job.placement, job.paused) == (JobState.PENDING, (), True)
    assert job.kept.placement == where
    assert job.kept.step == job.steps_done > 10
    assert not cluster.agents.workers
    assert not cluster.commands_of(Stop)  # nobody was killed
    cluster.run()
    assert cluster.job("a").state is JobState.PENDING  # it stays so


def test_a_resumed_job_goes_on_from_its_step_and_its_vaults_are_emptied():
    cluster = suspended()
    kept = cluster.job("a").kept
    cluster.resume("a")
    cluster.run()
    job = cluster.job("a")
    assert (job.state, job.kept, job.paused) == (JobState.RUNNING, None, False)
    assert cluster.agents.programs["a"].step == kept.step
    assert {node for node, _ in cluster.commands_of(OpenVault)} == {"m1", "m2"}
    assert {node for node, _ in cluster.commands_of(Discard)} == {"m1", "m2"}
    assert not cluster.agents.vaults
    assert len(cluster.agents.training("a")) == 3


def test_it_comes_back_on_other_nodes_while_its_own_are_taken():
    cluster = suspended(nodes="m1:2 m2:2 m3:3", workers=2)
    assert {slot.node for slot in cluster.job("a").kept.placement} == {"m1"}
    cluster.submit("b", 2)
    cluster.place(b="m1:0 m1:1")
    cluster.resume("a")
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING
    assert "m1" not in cluster.where("a")


def test_a_controller_that_comes_back_finds_it_suspended_or_half_way_back():
    cluster = suspended()
    cluster.restart()
    assert cluster.job("a").kept
    cluster.resume("a")
    cluster.agents.deaf = {Connect}
    cluster.run()
    assert cluster.job("a").state is JobState.STARTING
    cluster.agents.deaf = set()
    cluster.restart()
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING


def test_a_lost_node_with_its_state_is_waited_for():
    cluster = suspended()
    cluster.lose("m2")
    cluster.resume("a")
    cluster.run()
    assert cluster.job("a").state is JobState.PENDING
    assert "lies on m2, which is lost" in cluster.job("a").reason
    cluster.join("m2", 2)
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING


@pytest.mark.parametrize("trouble", ["empty vault", "other script", "killed twin"])
def test_a_way_back_that_fails_leaves_the_state_and_is_tried_again_later(trouble):
    cluster = suspended()
    kept = cluster.job("a").kept
    vaults = set(cluster.agents.vaults)
    if trouble == "empty vault":
        cluster.agents.vaults = set()
    cluster.agents.wrong_twins = trouble == "other script"
    cluster.resume("a")
    if trouble == "killed twin":
        cluster.agents.deaf = {Connect}
        cluster.run()
        cluster.kill("a", 1, "twin")
    cluster.run()
    job = cluster.job("a")
    assert (job.state, job.kept) == (JobState.PENDING, kept)
    assert f"could not go on from step {kept.step}" in job.reason
    assert not cluster.agents.workers
    cluster.agents.vaults, cluster.agents.wrong_twins, cluster.agents.deaf = vaults, False, set()
    cluster.run()
    assert cluster.job("a").state is JobState.PENDING  # not at once
    cluster.clock(31)
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING


def test_a_rank_that_dies_before_the_state_is_kept_fails_a_job_that_does_not_recover():
    cluster = running(recover=False)
    cluster.agents.deaf = {Decide}
    cluster.pause("a")
    cluster.run()
    cluster.kill("a", 1)
    cluster.run()
    assert cluster.job("a").state is JobState.FAILED


def test_resuming_before_it_is_suspended_lets_it_train_on():
    cluster = running()
    cluster.agents.deaf = {Connect}
    cluster.pause("a")
    cluster.run()
    cluster.agents.deaf = set()
    cluster.resume("a")
    cluster.run()
    job = cluster.job("a")
    assert (job.state, job.switch, job.kept) == (JobState.RUNNING, None, None)
    assert len(cluster.agents.training("a")) == 3


def test_a_cancelled_suspended_job_is_forgotten_on_the_nodes_with_its_state():
    cluster = suspended()
    cluster.cancel("a")
    cluster.run()
    assert cluster.job("a").state is JobState.CANCELLED
    assert cluster.job("a").kept is None
    told = {node for node, command in cluster.told if type(command).__name__ == "Forget"}
    assert told == {"m1", "m2"}


def test_a_paused_job_that_never_started_stays_where_it_is_until_resumed():
    cluster = Cluster("m1:1")
    cluster.submit("a")
    cluster.pause("a")
    cluster.run()
    assert cluster.job("a").state is JobState.PENDING
    cluster.resume("a")
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING
    assert not cluster.commands_of(Prepare)


def test_a_node_that_joins_again_does_not_start_a_paused_job():
    cluster = suspended()
    cluster.observe(NodeJoined(time_s=cluster.now_s, node="m1", address="10.0.0.1", devices=cluster.state.nodes["m1"].devices))
    cluster.run()
    assert cluster.job("a").state is JobState.PENDING


@pytest.mark.parametrize("is_node", [True, False])
def test_a_rank_that_is_lost_before_the_states_are_kept_costs_nothing(is_node):
    cluster = running(nodes="m1:1 m2:1 m3:1 m4:1")
    step = cluster.agents.programs["a"].step
    cluster.agents.deaf = {Decide}
    cluster.pause("a")
    cluster.run()
    assert cluster.job("a").switch.phase is Phase.COMMIT
    cluster.agents.deaf = set()
    if is_node:
        cluster.agents.buddies = {("a", 1): "m3"}
        cluster.lose("m2")
    else:
        cluster.kill("a", 1)
    cluster.run()
    job = cluster.job("a")
    assert (job.state, job.kept.step, job.kept.is_rescued) == (JobState.PENDING, step, True)
    assert not cluster.commands_of(Stop)
    cluster.resume("a")
    cluster.run()
    assert (cluster.job("a").state, cluster.agents.programs["a"].step) == (JobState.RUNNING, step)


def test_a_rank_that_is_lost_after_the_states_were_kept_and_before_anybody_said_so_costs_nothing():
    cluster = running()
    cluster.agents.deaf = {Decide, Halt}
    cluster.pause("a")
    cluster.run()
    switch = cluster.job("a").switch
    cluster.kill("a", 1)
    cluster.run()
    assert cluster.job("a").state is JobState.STOPPING
    cluster.agents.vaults |= {(node, "a", switch.generation) for node in ("m1", "m2")}
    cluster.observe(RankKept(
        time_s=1, job="a", generation=switch.generation, node="m1", rank=0, step=switch.step, bytes=1
    ))  # fmt: skip
    for key in list(cluster.agents.workers):
        cluster.agents.exit(key, 0)
    cluster.agents.deaf = set()
    cluster.run()
    job = cluster.job("a")
    assert (job.state, job.kept.generation, job.kept.step) == (JobState.PENDING, switch.generation, switch.step)
    cluster.resume("a")
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING


def test_where_a_state_is_not_on_disk_is_known_while_it_is_kept():
    cluster = suspended()
    generation = cluster.job("a").kept.generation
    for old in (generation - 1, generation, generation):
        cluster.observe(VaultNotOnDisk(time_s=1, job="a", generation=old, node="m2", reason="No space left on device"))
    assert cluster.job("a").kept.in_memory == ("m2",)


def test_a_checkpoint_that_is_damaged_is_left_for_the_one_before_at_once_and_without_one_it_says_what_helps():
    cluster = running(checkpoint=CheckpointSpec())
    for _ in range(2):
        cluster.observe(CheckpointAsked(time_s=cluster.now_s, job="a"))
        cluster.run()
        cluster.train("a", 10)
        cluster.run()
    older, newest = cluster.job("a").saved
    cluster.agents.deaf = {Halt, Prepare}
    for rank in range(3):
        cluster.kill("a", rank)
    cluster.run()
    cluster.clock(61)
    cluster.run()
    assert cluster.job("a").kept.step == newest.step
    instead = f"goes on from its checkpoint of step {older.step} instead"
    for expected in (instead, "there is no older checkpoint: bring that one back"):
        generation = cluster.job("a").generation
        cluster.observe(SwitchFailed(time_s=1, job="a", generation=generation, node="m1", rank=-1, reason="it is damaged"))
        assert expected in cluster.job("a").reason
        cluster.run()
        cluster.clock(100)  # twins that never came
        cluster.run()
