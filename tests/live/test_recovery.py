"""Ranks that are killed, for real: the job goes on by itself, and every rank prints what it would have printed undisturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.live.cluster import Cluster, LiveJob

WHERE = "a:0 a:1 b:0"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster({"a": 3, "b": 2}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> list[list[str]]:
    job = cluster.submit(WHERE, at_hold=False)
    assert cluster.await_end(job)["state"] == "done"
    return cluster.output(job)


@pytest.fixture
def submit(cluster: Cluster) -> Iterator[Callable[..., LiveJob]]:
    jobs: list[LiveJob] = []

    def submit(**about: object) -> LiveJob:
        jobs.append(cluster.submit(WHERE, recover=True, **about))
        return jobs[-1]

    yield submit
    for job in jobs:
        if cluster.client.show(job.id)["ended_s"] is None:
            cluster.client.cancel(job.id)
            cluster.await_end(job)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_killed_rank_costs_nothing(cluster, submit, undisturbed, rank):
    job = submit()
    cluster.kill(cluster.pid(job, rank, 1))
    cluster.release(job)
    cluster.await_event(job, "RankSwitched", 3)
    assert cluster.await_end(job)["state"] == "done"
    printed = cluster.output(job)
    again = printed[rank].pop(printed[rank].index(undisturbed[rank][20]))  # the killed process had printed this one
    assert again == undisturbed[rank][20]
    assert printed == undisturbed
