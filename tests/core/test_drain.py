"""Machines that are to be empty, or to get nothing new."""

from __future__ import annotations

from restow.job import JobState
from restow.messages import NodeCordoned, NodeDrained, Stop
from tests.core.obedient import Cluster, Program


def training(nodes: str, workers: int = 2) -> Cluster:
    cluster = Cluster(nodes)
    cluster.submit("a", workers)
    cluster.run()
    cluster.train("a", 20)
    cluster.run()
    return cluster


def drain(cluster: Cluster, node: str, by_s: float = 0.0, on: bool = True) -> None:
    cluster.observe(NodeDrained(time_s=cluster.now_s, node=node, is_draining=on, by_s=by_s))


def test_what_has_room_elsewhere_moves_live():
    cluster = training("m1:2 m2:2")
    home = cluster.job("a").placement[0].node
    drain(cluster, home)
    cluster.run()
    job = cluster.job("a")
    assert (job.state, job.moves) == (JobState.RUNNING, 1)
    assert home not in cluster.where("a")
    assert not cluster.commands_of(Stop)


def test_what_has_none_is_suspended_and_comes_back_when_there_is_or_the_node_is_in_use_again():
    cluster = training("m1:2 m2:1")
    assert cluster.where("a") == "m1:0 m1:1"
    step = cluster.agents.programs["a"].step
    drain(cluster, "m1")
    cluster.run()
    job = cluster.job("a")
    assert (job.state, job.paused) == (JobState.PENDING, False)
    assert job.kept.step >= step
    cluster.join("m3", 2)
    cluster.run()
    assert (cluster.job("a").state, cluster.where("a")) == (JobState.RUNNING, "m3:0 m3:1")
    drain(cluster, "m3")
    cluster.run()
    assert cluster.job("a").state is JobState.PENDING
    drain(cluster, "m1", on=False)
    cluster.run()
    assert cluster.where("a") == "m1:0 m1:1"


def test_until_the_deadline_it_waits_for_room():
    cluster = training("m1:2 m2:1")
    drain(cluster, "m1", by_s=100.0)
    cluster.run()
    assert cluster.job("a").state is JobState.RUNNING
    assert not cluster.job("a").switch
    cluster.clock(101)
    cluster.run()
    assert cluster.job("a").kept


def test_a_job_without_the_sdk_is_started_again_elsewhere():
    cluster = Cluster("m1:1 m2:1")
    cluster.submit("a", program=Program(uses_sdk=False))
    cluster.run()
    cluster.clock(31)
    cluster.run()
    drain(cluster, "m1")
    cluster.run()
    assert (cluster.job("a").state, cluster.where("a"), cluster.job("a").moves) == (JobState.RUNNING, "m2:0", 0)


def test_only_the_ranks_on_the_node_move():
    cluster = Cluster("m1:2 m2:1 m3:1")
    cluster.submit("a", 3)
    cluster.place(a="m1:0 m1:1 m2:0")
    cluster.train("a", 20)
    cluster.run()
    drain(cluster, "m2")
    cluster.run()
    assert cluster.where("a") == "m1:0 m1:1 m3:0"


def test_nothing_new_is_started_on_a_cordoned_node_and_what_is_there_stays():
    cluster = training("m1:2 m2:2")
    home = cluster.job("a").placement[0].node
    cluster.observe(NodeCordoned(time_s=cluster.now_s, node=home, is_cordoned=True))
    other = {"m1": "m2", "m2": "m1"}[home]
    cluster.observe(NodeCordoned(time_s=cluster.now_s, node=other, is_cordoned=True))
    cluster.submit("b")
    cluster.run()
    assert (cluster.job("a").state, cluster.job("b").state) == (JobState.RUNNING, JobState.PENDING)
    cluster.observe(NodeCordoned(time_s=cluster.now_s, node=other, is_cordoned=False))
    cluster.run()
    assert other in cluster.where("b")


def test_a_drain_takes_back_an_earlier_wish_to_be_on_that_node():
    cluster = Cluster("m1:2 m2:2 m3:2")
    cluster.submit("a", 3)
    cluster.place(a="m1:0 m1:1 m2:0")
    cluster.train("a", 20)
    cluster.run()
    cluster.migrate("a", "m3:0 m3:1 m2:0")
    cluster.run()
    assert cluster.where("a") == "m3:0 m3:1 m2:0"
    drain(cluster, "m3")
    cluster.run()
    job = cluster.job("a")
    assert "m3" not in cluster.where("a")
    assert (job.pinned, job.moves) == ((), 2)


def test_what_a_drain_means_for_a_scattered_job_without_room_is_said_and_not_why_it_stays_scattered():
    cluster = Cluster("m1:1 m2:1 m3:1")
    cluster.submit("a", 3)
    cluster.run()
    cluster.train("a", 20)
    cluster.run()
    drain(cluster, "m2", by_s=cluster.now_s + 100)
    reason = cluster.policy.plan(cluster.state.snapshot(cluster.now_s)).reasons["a"]
    assert reason == "m2 is drained; no other machine has room, suspended in 100 s if so"
