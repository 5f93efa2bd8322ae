"""Nodes that fall silent, for real: noticed by their pulse, survived by the jobs, and no rank of an old generation trains on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from restow.lab import Lab, availability
from restow.lease import LeaseFile
from tests.live.cluster import HOLDS, Cluster, LiveJob


@pytest.fixture
def lab() -> Iterator[Lab]:
    if availability()[0] == "none":
        pytest.skip(f"NOT TESTED: no lab here: {availability()[1]}")
    with Lab(nodes=2, devices=3, rate_bits_per_s=None) as lab:
        yield lab


@pytest.fixture
def cluster(lab: Lab) -> Iterator[Cluster]:
    with Cluster({"m1": 3, "m2": 3}, lab, controller_on="m1") as cluster:
        yield cluster


def pulse_pid(cluster: Cluster, node: str) -> int:
    return int(json.loads((cluster.folder / node / "pulse.json").read_text())["pid"])


def lost(cluster: Cluster) -> list[dict[str, Any]]:
    return [event for event in cluster.all_events() if event["type"] == "NodeLost"]


def alive(cluster: Cluster) -> set[str]:
    return {node["name"] for node in cluster.client.nodes() if node["alive"]}


def at_second_hold(cluster: Cluster, job: LiveJob) -> None:
    cluster.release(job)
    cluster.await_hold(job, HOLDS[1])


def test_a_machine_behind_a_cut_link_is_lost_and_its_ranks_never_train_again(lab: Lab, cluster: Cluster):
    alone = cluster.submit("m1:0 m1:1 m1:2", at_hold=False)
    assert cluster.await_end(alone)["state"] == "done"
    job = cluster.submit("m1:0 m1:1 m2:0", recover=True, back="m1:0 m1:1 m1:2")
    at_second_hold(cluster, job)
    old = cluster.pid(job, 2, 1)
    lab.cut("m2")
    cluster.await_event(job, "RankSwitched", 3)
    (event,) = lost(cluster)
    assert (event["node"], event["reason"].split()[0]) == ("m2", "silent")
    lab.heal("m2")
    cluster.await_true(lambda: alive(cluster) == {"m1", "m2"}, "m2 never came back", job)
    cluster.await_true(lambda: not os.path.exists(f"/proc/{old}"), "the old rank was never ended", job)
    assert cluster.await_end(job)["state"] == "done"
    assert [lines[-1] for lines in cluster.output(job)] == [lines[-1] for lines in cluster.output(alone)]


def test_a_job_that_lies_behind_the_cut_as_a_whole_trains_on_and_is_found_again(lab: Lab, cluster: Cluster):
    job = cluster.submit("m2:0 m2:1 m2:2", recover=True)
    lab.cut("m2")
    cluster.await_true(lambda: cluster.client.show(job.id)["away"] == "m2", "it never counted as away", job)
    cluster.release_all(job)
    cluster.await_true(lambda: not cluster.processes(job), "it never ended behind the cut", job)
    assert cluster.client.show(job.id)["state"] == "running"
    lab.heal("m2")
    assert cluster.await_end(job)["state"] == "done"
    assert cluster.client.show(job.id)["generation"] == 1


def test_a_machine_on_which_everything_was_killed_is_lost_although_its_kernel_answers(cluster: Cluster):
    job = cluster.submit("m1:0 m1:1 m2:0", recover=True, back="m1:0 m1:1 m1:2")
    at_second_hold(cluster, job)
    cluster.lose("m2")
    cluster.await_event(job, "RankSwitched", 3)
    (event,) = lost(cluster)
    assert event["reason"] == "nothing of restow answers there"
    cluster.release_all(job)
    cluster.await_true(lambda: cluster.client.show(job.id)["state"] == "done", "the job never ended", job)


@pytest.mark.slow
def test_a_pulse_that_is_killed_comes_back_and_costs_nothing(cluster: Cluster):
    job = cluster.submit("m1:0 m1:1 m2:0", recover=True)
    for node in ("m1", "m2"):
        before = pulse_pid(cluster, node)
        cluster.kill(before)
        cluster.await_true(lambda node=node, before=before: pulse_pid(cluster, node) != before, "no other pulse came", job)
    at_second_hold(cluster, job)
    assert cluster.await_end(job)["state"] == "done"
    assert lost(cluster) == []


@pytest.mark.slow
def test_ranks_that_were_halted_while_the_controller_stood_still_go_on(cluster: Cluster):
    """The leases of both nodes run out unheard of: what the agents then did must not leave the job hanging."""
    job = cluster.submit("m1:0 m1:1 m2:0", recover=True)
    at_second_hold(cluster, job)
    lease = LeaseFile(next(cluster.shm.glob("m2/lease")))
    os.kill(cluster.controller_pid, signal.SIGSTOP)
    cluster.await_true(lambda: lease.lapses > 0, "the lease never ran out")
    os.kill(cluster.controller_pid, signal.SIGCONT)
    cluster.await_event(job, "RankSwitched", 3)
    assert cluster.await_end(job)["state"] == "done"
    assert lost(cluster) == []


@pytest.mark.slow
def test_without_a_controller_nobody_is_held_to_a_lease(cluster: Cluster):
    job = cluster.submit("m1:0 m1:1 m2:0", recover=True)
    lease = LeaseFile(next(cluster.shm.glob("m2/lease")))
    cluster.kill(cluster.controller_pid)
    cluster.await_true(lambda: lease.until_s == 0.0, "the lease was not released")
    cluster.release(job)
    cluster.kill_controller()
    assert cluster.await_end(job)["state"] == "done"
    assert lost(cluster) == []
