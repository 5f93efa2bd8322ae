"""Waiting jobs of a higher priority and running ones of a lower: who steps aside, and comes back."""

from __future__ import annotations

from restow.job import JobState
from restow.messages import ScheduleAdopted
from restow.policies.restow import Restow
from tests.core.obedient import Cluster, Program

OWN = {"allow": False}


def cluster_with(*jobs: tuple[str, int, int], nodes: str = "m1:2 m2:2") -> Cluster:
    """(id, workers, priority) of each running job."""
    cluster = Cluster(nodes, policy=Restow())
    for id, workers, priority in jobs:
        cluster.submit(id, workers, Program(), priority=priority)
        cluster.run()
        cluster.train(id, 10)
        cluster.run()
        cluster.clock(1.0)
    return cluster


def test_the_least_important_steps_aside_and_comes_back_with_its_progress():
    cluster = cluster_with(("a", 2, 1), ("b", 2, 0))
    cluster.submit("urgent", 2, Program(), priority=5)
    cluster.run()
    assert [cluster.job(id).state for id in ("a", "b", "urgent")] == [JobState.RUNNING, JobState.PENDING, JobState.RUNNING]
    kept = cluster.job("b").kept
    assert kept is not None
    assert kept.step >= 10
    told = [why for event in cluster.journal if isinstance(event, ScheduleAdopted) for id, why in event.reasons if id == "b"]
    assert any("suspended to let urgent, which has a higher priority (5 to 0) in" in why for why in told)
    cluster.end("urgent")
    cluster.run()
    assert cluster.job("b").state is JobState.RUNNING
    assert cluster.job("b").steps_done >= 10


def test_equals_wait():
    cluster = cluster_with(("a", 4, 1))
    cluster.submit("b", 2, Program(), priority=1)
    cluster.run()
    assert cluster.job("b").state is JobState.PENDING
    assert cluster.job("a").state is JobState.RUNNING


def test_nobody_steps_aside_in_vain():
    cluster = cluster_with(("a", 1, 0), ("b", 1, 0), ("c", 2, 0))
    cluster.submit("two", 2, Program(), priority=1)
    cluster.run()
    assert cluster.job("two").state is JobState.RUNNING
    assert [cluster.job(id).state for id in ("a", "b", "c")].count(JobState.PENDING) == 1
    assert cluster.job("c").state is JobState.PENDING  # the youngest, and enough
    cluster.submit("five", 5, Program(), priority=9)
    cluster.run()
    assert [cluster.job(id).state for id in ("a", "b", "two")] == [JobState.RUNNING] * 3  # all of them would not be enough


def test_the_more_important_is_placed_first():
    cluster = Cluster("m1:1", policy=Restow())
    cluster.submit("a", 1, Program())
    cluster.submit("b", 1, Program(), priority=1)
    cluster.run()
    assert [cluster.job(id).state for id in ("a", "b")] == [JobState.PENDING, JobState.RUNNING]
