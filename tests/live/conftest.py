"""What most tests of faults begin with: two nodes on this machine, and what a job of three ranks prints when nothing happens to it.
It outlives what the tests do to it, so all have the same; modules with other nodes have fixtures of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live.cluster import WHERE, Cluster


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    with Cluster({"a": 3, "b": 2}) as cluster:
        yield cluster


@pytest.fixture(scope="package")
def undisturbed(cluster: Cluster) -> list[list[str]]:
    job = cluster.submit(WHERE, at_hold=False)
    assert cluster.await_end(job)["state"] == "done"
    return cluster.output(job)
