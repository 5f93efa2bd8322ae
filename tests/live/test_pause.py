"""Paused and resumed for real: every line that every rank prints is compared with an undisturbed run; killed on both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from restow.free_memory import free_part
from restow.sdk.process import SLEEP_FREE_PART_MIN
from tests.live.cluster import HOLDS, SHM_BYTES, WHERE, Cluster, LiveJob


@pytest.fixture
def submit(cluster: Cluster) -> Iterator[Callable[..., LiveJob]]:
    jobs: list[LiveJob] = []

    def submit(**about: object) -> LiveJob:
        jobs.append(cluster.submit(WHERE, **about))
        return jobs[-1]

    yield submit
    for job in jobs:
        if cluster.client.show(job.id)["ended_s"] is None:
            cluster.client.cancel(job.id)
            cluster.await_end(job)


def pause(cluster: Cluster, job: LiveJob) -> None:
    """It stands at a hold: the wish is under way when it goes on."""
    cluster.client.pause(job.id)
    cluster.await_event(job, "StepAccepted")
    cluster.release(job)
    cluster.await_true(lambda: cluster.client.show(job.id)["state"] == "suspended", "never suspended", job)


def asleep(cluster: Cluster, job: LiveJob) -> dict[int, int]:
    """Rank → process, of those that wait for their job to come back."""
    return {process["rank"]: process["pid"] for process in cluster.processes(job) if process["role"] == "sleeper"}


def has_no_device(cluster: Cluster) -> bool:
    """Of all jobs, there is none that has."""
    return all(not device["jobs"] for node in cluster.client.nodes() for device in node["devices"])


def await_sleep(cluster: Cluster, job: LiveJob) -> None:
    if free_part() < SLEEP_FREE_PART_MIN:
        pytest.skip(f"only {free_part():.0%} of the memory is free, where nobody sleeps, NOT TESTED")
    cluster.await_true(lambda: len(asleep(cluster, job)) == job.workers, "not asleep", job)


def test_a_paused_job_holds_no_device_and_goes_on_as_if_nothing_had_been(cluster, submit, undisturbed):
    job = submit()
    pause(cluster, job)
    await_sleep(cluster, job)
    cluster.await_true(lambda: has_no_device(cluster), "a device is held", job)
    view = cluster.client.show(job.id)
    assert HOLDS[0] < view["kept"]["step"] < HOLDS[1]
    assert view["placement"] == []
    cluster.client.resume(job.id)
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    assert cluster.output(job) == undisturbed
    assert not list(cluster.shm.glob(f"*/vaults/{job.id}/*"))
    assert not list(cluster.folder.glob(f"*/vaults/{job.id}/*"))


def test_who_was_suspended_goes_on_itself(cluster, submit, undisturbed):
    job = suspended(cluster, submit)
    await_sleep(cluster, job)
    before = asleep(cluster, job)
    with cluster.held("Connect"), cluster.pages(job) as pages:
        cluster.client.resume(job.id)
        cluster.await_event(job, "TwinParked", 3)
        assert [page.get("last_step_ns") for page in pages] == [0, 0, 0]  # else the pause would be taken for a hang
    cluster.await_event(job, "RankSwitched", 3)
    assert {process["rank"]: process["pid"] for process in cluster.processes(job)} == before
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    assert cluster.output(job) == undisturbed


def test_it_is_suspended_and_comes_back_twice(cluster, submit, undisturbed):
    job = suspended(cluster, submit)
    cluster.client.resume(job.id)
    cluster.await_event(job, "RankSwitched", 3)
    cluster.client.pause(job.id)
    cluster.await_event(job, "StepAccepted", 1, generation=4)
    (job.folder / str(HOLDS[1])).touch()
    cluster.await_true(lambda: cluster.client.show(job.id)["state"] == "suspended", "never suspended", job)
    goes_on(cluster, job, undisturbed)


@pytest.mark.parametrize("who", [(0,), (0, 1, 2)])
def test_whoever_is_killed_in_its_sleep_is_replaced(cluster, submit, undisturbed, who):
    job = suspended(cluster, submit)
    await_sleep(cluster, job)
    for rank in who:
        cluster.kill(asleep(cluster, job)[rank])
    cluster.await_true(lambda: len(asleep(cluster, job)) == job.workers - len(who), "not gone", job)
    goes_on(cluster, job, undisturbed)


def test_who_sleeps_ends_with_its_job(cluster, submit):
    job = suspended(cluster, submit)
    await_sleep(cluster, job)
    cluster.client.cancel(job.id)
    cluster.await_true(lambda: not cluster.processes(job), "processes are left", job)


def suspended(cluster: Cluster, submit: Callable[..., LiveJob], **about: object) -> LiveJob:
    job = submit(**about)
    pause(cluster, job)
    return job


def goes_on(cluster: Cluster, job: LiveJob, undisturbed: list[list[str]]) -> None:
    cluster.client.resume(job.id)
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    assert cluster.output(job) == undisturbed


@pytest.mark.parametrize("back", ["a:0 a:1 a:2", "b:1 a:2 b:0"])
def test_it_comes_back_on_other_devices_of_other_nodes(cluster, submit, undisturbed, back):
    job = suspended(cluster, submit, back=back)
    cluster.client.resume(job.id)
    cluster.await_event(job, "RankSwitched", 3)
    assert cluster.client.show(job.id)["placement"] == back.split()
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    assert cluster.output(job) == undisturbed


@pytest.mark.parametrize("who", ["controller", "agents", pytest.param("nurseries", marks=pytest.mark.slow)])
def test_it_outlives_whoever_is_killed_meanwhile(cluster, submit, undisturbed, who):
    job = suspended(cluster, submit)
    if who == "controller":
        cluster.kill_controller()
    for node in cluster.nodes if who != "controller" else ():
        cluster.kill(cluster.agent_pid(node) if who == "agents" else cluster.nursery_pid(node))
    goes_on(cluster, job, undisturbed)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_is_killed_when_the_suspending_is_agreed_upon_costs_nothing(cluster, submit, undisturbed, rank):
    job = submit(recover=True)
    cluster.client.pause(job.id)
    cluster.await_told(job, "Decide")
    cluster.kill(cluster.pid(job, rank, 1))
    cluster.release(job)
    cluster.await_true(lambda: cluster.client.show(job.id)["state"] == "suspended", "never suspended", job)
    cluster.client.resume(job.id)
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    assert [lines[-1] for lines in cluster.output(job)] == [lines[-1] for lines in undisturbed]


def test_a_state_that_nobody_heard_of_is_found(cluster, submit, undisturbed):
    """The agents are killed before the ranks leave: what they said is in the vault."""
    job = submit()
    with cluster.held("Decide"):
        cluster.client.pause(job.id)
        cluster.await_event(job, "StepAccepted", 2)
        cluster.release(job)
        cluster.await_switch_step(job)
    for node in cluster.nodes:
        cluster.kill(cluster.agent_pid(node))
    cluster.await_true(lambda: cluster.client.show(job.id)["state"] in ("suspended", "running"), "neither", job)
    if cluster.client.show(job.id)["state"] == "running":  # the ranks had waited too long for the decision, and went on
        cluster.await_true(lambda: cluster.client.show(job.id)["state"] == "suspended", "never suspended", job)
    goes_on(cluster, job, undisturbed)


def test_a_damaged_state_is_refused_and_the_whole_copy_on_disk_is_taken(cluster, submit, undisturbed):
    job = suspended(cluster, submit)
    cluster.await_true(lambda: len(list(cluster.folder.glob(f"*/vaults/{job.id}/g2"))) == 2, "never on disk", job)
    for path in cluster.shm.glob(f"*/vaults/{job.id}/g2/replica.state"):
        with path.open("r+b") as file:
            file.seek(100)
            file.write(b"other")
    goes_on(cluster, job, undisturbed)


def test_a_state_that_is_damaged_everywhere_is_named_and_left_alone(cluster, submit):
    job = suspended(cluster, submit)
    cluster.await_true(lambda: len(list(cluster.folder.glob(f"*/vaults/{job.id}/g2"))) == 2, "never on disk", job)
    for path in (*cluster.shm.glob(f"a/vaults/{job.id}/g2/rank1.state"), *cluster.folder.glob(f"a/vaults/{job.id}/g2/rank1.state")):
        path.write_bytes(path.read_bytes()[:-1])
    cluster.client.resume(job.id)
    cluster.await_event(job, "SwitchFailed", node="a")
    cluster.await_true(lambda: "it is damaged" in cluster.client.show(job.id)["reason"], "not said", job)
    view = cluster.client.show(job.id)
    assert view["state"] in ("pending", "stopping")
    assert view["kept"]


def test_without_room_in_the_vault_the_job_trains_on(cluster, submit, undisturbed):
    if not cluster.is_bounded:
        pytest.skip("shared memory cannot be bounded here: mount is not allowed")
    job = submit()
    filler = cluster.shm / "b" / "filler"
    with filler.open("wb") as file:
        try:
            file.write(bytes(SHM_BYTES))
        except OSError:
            pass  # it is full now, as wanted
    try:
        cluster.client.pause(job.id)
        cluster.await_event(job, "SwitchFailed")  # before any step: the room is taken ahead
        cluster.release(job)
        assert "No space left" in cluster.client.show(job.id)["reason"]
    finally:
        filler.unlink()
    cluster.client.resume(job.id)
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    assert cluster.output(job) == undisturbed


def test_a_rank_that_is_killed_on_the_way_back_leaves_the_state_as_it_is(cluster, submit):
    job = suspended(cluster, submit)
    kept = cluster.client.show(job.id)["kept"]
    with cluster.held("Connect"):
        cluster.client.resume(job.id)
        cluster.await_event(job, "TwinParked", 3)
        cluster.kill(cluster.pid(job, 1, 3))
        cluster.await_event(job, "RankExited", generation=3)
    cluster.await_true(lambda: cluster.client.show(job.id)["state"] == "pending", "never pending again", job)
    view = cluster.client.show(job.id)
    assert view["kept"] == kept
    assert "could not go on from step" in view["reason"]


def test_a_drained_node_is_emptied_by_moves_and_where_there_is_no_room_by_suspending(cluster, submit, undisturbed):
    job = submit()
    plan = cluster.client.drain("b", apply=False)
    assert [move["then"] for move in plan["moves"]] == [["a:0", "a:1", "a:2"]]
    try:
        cluster.client.drain("b")
        cluster.await_event(job, "StepAccepted", 2)
        cluster.release(job)
        cluster.await_event(job, "RankSwitched", 3)
        assert cluster.client.show(job.id)["placement"] == ["a:0", "a:1", "a:2"]
        cluster.client.drain("a")
        cluster.await_event(job, "StepAccepted", 1, generation=3)
        (job.folder / str(HOLDS[1])).touch()
        cluster.await_true(lambda: cluster.client.show(job.id)["kept"], "never suspended", job)
        cluster.await_true(lambda: has_no_device(cluster), "a device is held", job)
    finally:
        for node in ("a", "b"):
            cluster.client.drain(node, on=False)
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    assert cluster.output(job) == undisturbed


@pytest.mark.slow
def test_it_outlives_a_restart_of_everything(undisturbed):
    with Cluster({"a": 3, "b": 2}) as cluster:
        job = cluster.submit(WHERE)
        pause(cluster, job)
        cluster.restart()
        assert cluster.client.show(job.id)["state"] == "suspended"
        assert not list(cluster.shm.glob("*/vaults/*"))  # memory is gone, as after a reboot
        goes_on(cluster, job, undisturbed)
