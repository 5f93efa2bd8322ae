"""The state of a suspended job leaves a drained machine for real, which is then gone for good; every line that every rank prints is
compared with an undisturbed run."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator

import pytest

from restow.lab import Lab, availability
from tests.live.cluster import WHERE, Cluster, LiveJob

pytestmark = pytest.mark.slow

BACK = "b:0 c:0 c:1"
SLOW_BITS_PER_S = 100e3  # the state takes about 7 s
MIDDLE_BYTES = 20_000


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    with Cluster({"a": 2, "b": 2, "c": 2}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def expected(three: Cluster) -> list[list[str]]:
    job = three.submit(WHERE, at_hold=False)
    assert three.await_end(job)["state"] == "done"
    return three.output(job)


def suspended(cluster: Cluster, where: str, back: str = BACK) -> LiveJob:
    job = cluster.submit(where, back=back)
    cluster.client.pause(job.id)
    cluster.await_event(job, "StepAccepted")
    cluster.release(job)
    cluster.await_true(lambda: cluster.client.show(job.id)["state"] == "suspended", "never suspended", job)
    return job


def lies_on(cluster: Cluster, job: LiveJob) -> list[str]:
    return cluster.client.show(job.id)["kept"]["nodes"]


def is_gone(cluster: Cluster, job: LiveJob, node: str) -> bool:
    """There is nothing of its state on this node."""
    return not [*cluster.shm.glob(f"{node}/vaults/{job.id}/*"), *cluster.folder.glob(f"{node}/vaults/{job.id}/*")]


def goes_on(cluster: Cluster, job: LiveJob, expected: list[list[str]]) -> None:
    cluster.client.resume(job.id)
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    assert cluster.output(job) == expected
    cluster.await_true(lambda: all(is_gone(cluster, job, node) for node in cluster.nodes), "states are left", job)


@pytest.mark.parametrize(("where", "target"), [(WHERE, "b"), ("a:0 a:1 c:0", "c"), ("c:0 c:1 a:0", "c")])
def test_it_goes_on_elsewhere_when_the_drained_machine_is_gone(three, expected, where, target):
    job = suspended(three, where)
    plan = three.client.drain("a", apply=False)
    assert [(kept["job"], kept["to"]) for kept in plan["kept"]] == [(job.id, target)]
    three.client.drain("a")
    try:
        three.await_true(lambda: lies_on(three, job) == [target], "it never moved", job)
        three.await_true(lambda: is_gone(three, job, "a"), "it is still there", job)
        assert three.client.drain("a", apply=False)["kept"] == []
        three.lose("a")
        three.await_event(job, "VaultMoved", node=target)
        (three.folder / f"of-{job.id}").mkdir()
        shutil.move(three.folder / "a" / "logs", three.folder / f"of-{job.id}" / "logs")  # for the comparison
        shutil.rmtree(three.folder / "a")
        for path in (three.shm / "a").iterdir():  # a mount of its own
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        goes_on(three, job, expected)
    finally:
        (three.folder / "lost" / "a").unlink(missing_ok=True)
        three.await_true(lambda: all(node["alive"] for node in three.client.nodes()), "a never came back")
        three.client.drain("a", on=False)


@pytest.mark.parametrize("who", ["controller", "agents", "nurseries"])
def test_it_moves_whoever_is_killed_meanwhile(three, expected, who):
    job = suspended(three, WHERE)
    with three.held("TakeVault"):
        three.client.drain("a")
        three.await_event(job, "VaultOffered")
        if who == "controller":
            three.kill_controller()
        for node in ("a", "b") if who != "controller" else ():
            three.kill(three.agent_pid(node) if who == "agents" else three.nursery_pid(node))
    try:
        three.await_true(lambda: lies_on(three, job) == ["b"], "it never moved", job)
        goes_on(three, job, expected)
    finally:
        three.client.drain("a", on=False)


def test_a_job_that_comes_back_meanwhile_does_so_from_where_its_state_was(three, expected):
    job = suspended(three, WHERE)
    try:
        with three.held("TakeVault"):
            three.client.drain("a")
            three.await_event(job, "VaultOffered")
            os.kill(giver_of(three, job), signal.SIGSTOP)  # it goes no further
        three.await_told(job, "TakeVault")
        three.client.resume(job.id)
        three.await_event(job, "RankSwitched", 3)
        assert three.await_end(job)["state"] == "done", three.story(job)
        assert three.output(job) == expected
        assert not three.has_event(job, "VaultMoved")
        three.await_true(lambda: all(is_gone(three, job, node) for node in three.nodes), "states are left", job)
    finally:
        three.client.drain("a", on=False)


def giver_of(cluster: Cluster, job: LiveJob) -> int:
    children = [json.loads(path.read_text()) for path in (cluster.folder / "a" / "run").glob("*.json")]
    return next(child["pid"] for child in children if (child["label"]["job"], child["label"]["kind"]) == (job.id, "giver"))


@pytest.mark.lab
@pytest.mark.skipif(availability()[0] == "none", reason=f"NOT TESTED: no lab here: {availability()[1]}")
def test_a_link_that_is_cut_on_the_way_leaves_it_where_it_is_until_it_can_cross():
    with Lab(nodes=2, devices=1, rate_bits_per_s=None) as lab, Cluster({"m1": 1, "m2": 1}, lab, back_off_s=1.0) as cluster:
        alone = cluster.submit("m1:0", at_hold=False)
        assert cluster.await_end(alone)["state"] == "done"
        job = suspended(cluster, "m1:0", back="m2:0")
        lab.set_link("m1", "m2", rate_bits_per_s=SLOW_BITS_PER_S)
        before, _ = lab.counters("m2")
        cluster.client.drain("m1")
        cluster.await_true(lambda: lab.counters("m2")[0] > before + MIDDLE_BYTES, "the state never crosses", job)
        lab.cut("m2")
        assert "broke" in cluster.await_event(job, "VaultMoveFailed", node="m2")[0]["reason"]
        assert lies_on(cluster, job) == ["m1"]
        assert not cluster.has_event(job, "VaultMoved")
        lab.heal("m2")
        lab.set_link("m1", "m2", rate_bits_per_s=None)
        cluster.await_true(lambda: lies_on(cluster, job) == ["m2"], "it never moved", job)
        goes_on(cluster, job, cluster.output(alone))
