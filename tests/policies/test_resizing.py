"""Jobs that may have more or fewer workers: how many they get, when that changes, and what happens if it fails."""

from __future__ import annotations

import pytest

from restow.errors import SpecError
from restow.job import JobSpec, JobState, sizes_of
from restow.messages import Launch, NodeDrained, Prepare, ScaleAsked
from restow.placement import devices_of
from restow.policies.restow import Restow
from tests.core.obedient import Cluster, scattered


def running(nodes: str, workers: int = 4, workers_min: int = 1, **about: object) -> Cluster:
    cluster = Cluster(nodes, policy=Restow())
    program = scattered(step_s=0.3, exposed_s=0.05, steps_total=100_000)
    cluster.submit("a", workers=workers, workers_min=workers_min, program=program, **about)
    cluster.run()
    cluster.train("a", 30)
    cluster.run()
    return cluster


def scale(cluster: Cluster, workers: int) -> None:
    cluster.observe(ScaleAsked(time_s=cluster.now_s, job="a", devices=0, workers=workers))
    cluster.run()


def size(cluster: Cluster, job: str = "a") -> tuple[JobState, int]:
    found = cluster.job(job)
    assert len(found.placement) == found.workers
    assert set(cluster.agents.training(job)) == set(range(found.workers))
    return found.state, found.workers


@pytest.mark.parametrize(("least", "most", "sizes"), [(2, 8, (8, 4, 2)), (1, 6, (6, 3, 2, 1)), (0, 4, (4,)), (5, 7, (7,))])
def test_sizes_divide_the_greatest(least, most, sizes):
    assert sizes_of(JobSpec(command=("x",), workers=most, workers_min=least)) == sizes


@pytest.mark.parametrize(("about", "words"), [
    ({"workers": 2, "workers_min": 4}, "workers is 4..2"),
    ({"workers": 4, "workers_min": 2, "devices": (1, 4)}, "leave one out"),
])  # fmt: skip
def test_wrong_ranges_are_told(about, words):
    with pytest.raises(SpecError, match=words):
        JobSpec(command=("x",), **about)


@pytest.mark.parametrize(("nodes", "expected"), [("m1:4", 4), ("m1:3", 2), ("m1:8", 4), ("m1:1 m2:1", 2)])
def test_it_starts_with_as_many_as_there_are_devices(nodes, expected):
    cluster = running(nodes, workers_min=2)
    assert size(cluster) == (JobState.RUNNING, expected)
    assert next(len(command.placement) for _, command in cluster.commands_of(Launch)) == expected


def test_with_too_few_devices_it_waits():
    cluster = Cluster("m1:1", policy=Restow())
    cluster.submit("a", workers=4, workers_min=2)
    cluster.run()
    assert (cluster.job("a").state, cluster.job("a").reason) == (JobState.PENDING, "needs 2 slots, the cluster has 1")


@pytest.mark.parametrize("to", [1, 2])
def test_a_person_may_ask_for_fewer_and_for_all_again(to):
    cluster = running("m1:2 m2:2")
    step = cluster.agents.programs["a"].step
    scale(cluster, to)
    assert size(cluster) == (JobState.RUNNING, to)
    assert cluster.job("a").steps_done >= step and not cluster.agents.vaults
    cluster.train("a", 20)
    cluster.run()
    cluster.clock(1000.0)
    cluster.run()
    assert size(cluster)[1] == to  # until it is taken back
    scale(cluster, 4)
    assert size(cluster) == (JobState.RUNNING, 4)
    assert cluster.job("a").reason.startswith(f"goes from {to} to 4 workers, as was asked: 0.3 ")


def test_what_is_asked_waits_for_devices():
    cluster = running("m1:2", workers_min=2)
    scale(cluster, 4)
    assert size(cluster)[1] == 2
    assert "no others are free" in cluster.policy.decide(cluster.state.snapshot(cluster.now_s)).reasons["a"]
    cluster.join("m2", 2)
    cluster.run()
    assert size(cluster)[1] == 4


def test_it_makes_room_for_one_that_waits_and_takes_it_back():
    cluster = running("m1:4", workers_min=2)
    cluster.clock(1000.0)
    cluster.submit("b", workers=2)
    cluster.run()
    assert (size(cluster), size(cluster, "b")) == ((JobState.RUNNING, 2), (JobState.RUNNING, 2))
    assert "goes from 4 to 2 workers to let b in" in cluster.job("a").reason
    cluster.end("b")
    cluster.agents.programs["a"].step_s = 0.5
    cluster.run()
    for _ in range(3):
        cluster.clock(1000.0)
        cluster.train("a", 30)
        cluster.run()
    assert size(cluster) == (JobState.RUNNING, 4)
    assert "which are free" in cluster.job("a").reason


def test_where_others_cannot_be_built_it_goes_on_as_before():
    cluster = running("m1:4")
    cluster.agents.wrong_twins = True
    cluster.observe(ScaleAsked(time_s=cluster.now_s, job="a", devices=0, workers=2))
    cluster.run(until=lambda: "built something else" in cluster.job("a").reason)
    assert "could not go on with 2 workers" in cluster.job("a").reason and "with 4 as before" in cluster.job("a").reason
    cluster.agents.wrong_twins = False
    cluster.run()
    assert size(cluster) == (JobState.RUNNING, 4)


def test_after_a_loss_it_keeps_its_workers_and_they_take_turns():
    cluster = running("m1:2 m2:2", workers_min=4)
    cluster.agents.buddies = {("a", rank): "m1" for rank in range(4)}
    cluster.lose("m2")
    cluster.run()
    assert size(cluster) == (JobState.RUNNING, 4)
    assert len(devices_of(cluster.job("a").placement)) == 2


def test_a_drained_machine_leaves_it_with_fewer():
    cluster = running("m1:2 m2:2")
    cluster.observe(NodeDrained(time_s=cluster.now_s, node="m2", is_draining=True, by_s=cluster.now_s))
    cluster.run()
    assert size(cluster) == (JobState.RUNNING, 2)
    assert {slot.node for slot in cluster.job("a").placement} == {"m1"}


def test_the_controller_may_be_killed_at_any_event_of_it():
    whole = running("m1:4")
    scale(whole, 2)
    count = len(whole.journal)
    for at in range(count - 25, count):
        cluster = running("m1:4")
        cluster.observe(ScaleAsked(time_s=cluster.now_s, job="a", devices=0, workers=2))
        cluster.run(until=lambda cluster=cluster, at=at: len(cluster.journal) >= at)
        cluster.restart()
        cluster.run()
        assert size(cluster) == (JobState.RUNNING, 2)
    assert {len(command.placement) for _, command in whole.commands_of(Prepare)} == {2}
