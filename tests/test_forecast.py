"""What is believed of the jobs of a live cluster, from what was measured of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from restow.cluster import Device, Link, Node, Snapshot
from restow.forecast import FromProfiles
from restow.job import Job, JobSpec, JobState, Profile
from restow.placement import Slot

A0, A1, B0, B1 = Slot("a", 0), Slot("a", 1), Slot("b", 0), Slot("b", 1)
NODES = tuple(
    Node(name=name, address=name, devices=tuple(Device(index=n) for n in range(2)), local_bytes_per_s=1e9) for name in "ab"
)


def job(id: str, workers: int = 2, **fields: object) -> Job:
    return Job(id=id, spec=JobSpec(command=("x",), workers=workers), **fields)  # type: ignore[arg-type]


def forecast(*jobs: Job) -> FromProfiles:
    return FromProfiles(Snapshot(now_s=0.0, nodes=NODES, jobs=jobs, links={("a", "b"): Link(bytes_per_s=25e6)}))


SPREAD = job(
    "spread", state=JobState.RUNNING, placement=(A0, B0),
    profile=Profile(step_s=0.5, exposed_s=0.4, wire_bytes=10_000_000),
)  # fmt: skip


def test_a_gang_that_is_scattered_is_believed_to_be_faster_on_one_machine_and_best_there():
    believed = forecast(SPREAD)
    assert believed.step_s(SPREAD, (A0, B0)) == pytest.approx(0.5)
    assert believed.step_s(SPREAD, (A0, A1)) == pytest.approx(0.1 + 0.01)  # 10 MB each way at 1 GB/s
    assert believed.alone_s(SPREAD) == pytest.approx(0.11)
    assert believed.place((A0, A1)) != believed.place((A0, B0))


def test_of_a_job_that_never_ran_as_much_is_believed_as_of_the_others_and_the_same_everywhere():
    fresh = job("fresh")
    believed = forecast(SPREAD, replace(SPREAD, id="other", profile=Profile(step_s=0.7)), fresh)
    assert believed.alone_s(fresh) == believed.step_s(fresh, (A0, B1)) == pytest.approx(0.6)
    assert forecast(fresh).alone_s(fresh) == 1.0


def test_a_gang_larger_than_the_cluster_runs_nowhere_and_nobody_is_believed_to_share():
    large = job("large", workers=5)
    assert math.isinf(forecast(large).alone_s(large))
    assert math.isinf(forecast(SPREAD).step_s(SPREAD, (A0, B0), [(SPREAD, (A0, B0))]))
