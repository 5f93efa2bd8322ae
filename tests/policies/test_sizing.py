"""Jobs that may have fewer devices than ranks: how many they get, and when that changes."""

from __future__ import annotations

import pytest

from restow.job import JobState
from restow.messages import ScaleAsked
from restow.placement import devices_of, folded, parse_placement
from restow.policies.restow import Restow
from tests.core.obedient import Cluster, scattered


def cluster_of(nodes: str) -> Cluster:
    return Cluster(nodes, policy=Restow())


def scale(cluster: Cluster, job: str, devices: int) -> None:
    cluster.observe(ScaleAsked(time_s=cluster.now_s, job=job, devices=devices))


def number(cluster: Cluster, job: str) -> int:
    return len(devices_of(cluster.job(job).placement))


def text(placement: object) -> str:
    return " ".join(map(str, placement))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("workers", "devices", "now", "then"),
    [
        (4, "m:0 m:1", "", "m:0 m:0 m:1 m:1"),
        (5, "m:0 m:1", "", "m:0 m:0 m:0 m:1 m:1"),
        (4, "m:0", "m:0 m:1 m:2 m:3", "m:0 m:0 m:0 m:0"),
        (4, "m:1 m:2", "m:0 m:1 m:2 m:3", "m:1 m:1 m:2 m:2"),
        (4, "m:0 m:1 n:0 n:1", "m:0 m:0 m:1 m:1", "m:0 n:0 m:1 n:1"),
        (3, "m:0 m:1", "m:1 m:1 m:1", "m:1 m:1 m:0"),
    ],
)
def test_ranks_are_spread_evenly_and_as_few_as_possible_move(workers, devices, now, then):
    assert text(folded(workers, parse_placement(devices), parse_placement(now))) == then


def test_it_starts_on_as_many_devices_as_there_are():
    cluster = cluster_of("m1:2")
    cluster.submit("a", workers=4, devices=(1, 4))
    cluster.submit("b", workers=4)
    cluster.run()
    assert cluster.where("a") == "m1:0 m1:0 m1:1 m1:1"
    assert cluster.job("a").reason == "starts on m1, 4 ranks on 2 devices"
    assert cluster.job("b").state is JobState.PENDING


def running(nodes: str, workers: int = 4, devices: tuple[int, int] = (1, 4)) -> Cluster:
    cluster = cluster_of(nodes)
    cluster.submit("a", workers=workers, program=scattered(step_s=0.3, exposed_s=0.05), devices=devices)
    cluster.run()
    cluster.train("a", 30)
    cluster.run()
    return cluster


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_a_person_scales_it_down_and_up_again(wanted):
    cluster = running("m1:2 m2:2")
    assert number(cluster, "a") == 4
    scale(cluster, "a", wanted)
    cluster.run()
    assert number(cluster, "a") == wanted
    assert "as was asked" in cluster.job("a").reason
    cluster.clock(1000.0)
    cluster.train("a", 30)
    cluster.run()
    assert number(cluster, "a") == wanted  # it stays so
    scale(cluster, "a", 4)
    cluster.run()
    assert number(cluster, "a") == 4


def test_what_a_person_asks_for_waits_for_devices():
    cluster = running("m1:3", devices=(1, 4))
    assert number(cluster, "a") == 3
    scale(cluster, "a", 4)
    cluster.run()
    assert number(cluster, "a") == 3
    assert "no others are free" in cluster.policy.decide(cluster.state.snapshot(cluster.now_s)).reasons["a"]
    cluster.join("m2", 1)
    cluster.run()
    assert number(cluster, "a") == 4


def test_it_grows_when_devices_become_free_and_nobody_waits():
    cluster = cluster_of("m1:4")
    cluster.submit("b", workers=2)
    program = scattered(step_s=0.3, exposed_s=0.05, waited_s=0.125, steps_total=100_000)
    cluster.submit("long", workers=4, program=program, devices=(2, 4))
    cluster.run()
    assert number(cluster, "long") == 2
    cluster.train("long", 60)
    cluster.end("b")
    cluster.run()
    cluster.clock(100.0)
    cluster.train("long", 60)
    cluster.run()
    assert number(cluster, "long") == 4
    assert "which are free" in cluster.job("long").reason


def test_it_shrinks_to_let_a_waiting_job_in():
    cluster = running("m1:4", devices=(2, 4))
    cluster.submit("b", workers=2)
    cluster.run()
    assert (number(cluster, "a"), cluster.job("b").state) == (2, JobState.RUNNING)
    assert cluster.job("a").reason.startswith("goes from 4 to 2 devices to let b in")


def test_one_that_lost_a_device_goes_on_with_what_is_left():
    cluster = running("m1:2 m2:1", workers=3, devices=(0, 0))
    cluster.agents.buddies = {("a", 2): "m1"}
    cluster.lose("m2")
    cluster.run()
    assert (cluster.job("a").state, number(cluster, "a")) == (JobState.RUNNING, 2)
    assert "3 ranks on 2 devices" in cluster.job("a").reason
    cluster.join("m2", 1)
    cluster.train("a", 60)
    cluster.clock(1000.0)
    cluster.run()
    cluster.train("a", 60)
    cluster.run()
    assert number(cluster, "a") == 3


def test_jobs_whose_ranks_take_turns_share_with_nobody():
    cluster = running("m1:2", devices=(2, 4))
    cluster.submit("b", workers=2)
    cluster.run()
    assert cluster.job("b").state is JobState.PENDING
    assert "a has fewer devices than ranks, which take turns already" in cluster.job("b").reason
