"""Jobs that get fewer devices and more again while they train, for real: the same numbers on any number of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live.cluster import HOLDS, Cluster

WHERE = "a:0 a:1 b:0 b:1"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster({"a": 2, "b": 2}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> list[list[str]]:
    job = cluster.submit(WHERE, at_hold=False)
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    return cluster.output(job)


@pytest.mark.parametrize("number", [pytest.param(3, marks=pytest.mark.slow), 2, pytest.param(1, marks=pytest.mark.slow)])
def test_four_ranks_train_the_same_on_fewer_devices_and_again_on_all(cluster, undisturbed, number):
    job = cluster.submit(WHERE, devices=(1, 4))
    cluster.client.scale(job.id, number)
    cluster.await_told(job, "Decide", generation=2)
    cluster.release(job)
    cluster.await_event(job, "RankSwitched", 4, generation=2)
    view = cluster.client.show(job.id)
    assert len(set(view["placement"])) == number
    # a script that waits inside its loop keeps its device: the others of this device come to the hold only when it goes on
    cluster.await_true(lambda: cluster.client.show(job.id)["step"] == HOLDS[1], "never at its second hold", job)
    cluster.client.scale(job.id, 4)
    cluster.await_told(job, "Decide", generation=3)
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    assert cluster.has_event(job, "RankSwitched", generation=3), cluster.story(job)
    assert cluster.output(job) == undisturbed


def test_a_job_may_start_on_one_device(cluster, undisturbed):
    job = cluster.submit("b:1 b:1 b:1 b:1", devices=(1, 4), at_hold=False)
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    assert cluster.output(job) == undisturbed
