"""Ranks that are killed, for real: the job goes on by itself, and every rank prints what it would have printed undisturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.live.cluster import HOLDS, WHERE, Cluster, LiveJob


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


@pytest.mark.parametrize("rank", [0, *(pytest.param(rank, marks=pytest.mark.slow) for rank in (1, 2))])
def test_a_killed_rank_costs_nothing(cluster, submit, undisturbed, rank):
    job = submit()
    cluster.kill(cluster.pid(job, rank, 1))
    cluster.release(job)
    cluster.await_event(job, "RankSwitched", 3)
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    printed = cluster.output(job)
    again = printed[rank].pop(printed[rank].index(undisturbed[rank][20]))  # the killed process had printed this one
    assert again == undisturbed[rank][20]
    assert printed == undisturbed


@pytest.mark.parametrize(("rank", "place"), [
    (2, "forward"), (2, "end"), (0, "update"),
    *(pytest.param(2, place, marks=pytest.mark.slow) for place in ("backward", "update")),
    *(pytest.param(0, place, marks=pytest.mark.slow) for place in ("forward", "backward", "end")),
])  # fmt: skip
def test_wherever_in_a_step_it_is_killed(cluster, submit, undisturbed, rank, place):
    """In `update` the others have made the step already: they go back to what two of them copied before."""
    job = submit(stops=f"{rank}:25:{place}")
    cluster.release(job)
    cluster.await_true((job.folder / f"stop-{rank}-25-{place}").exists, "it never came there", job)
    cluster.kill(cluster.pid(job, rank, 1))
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    printed = cluster.output(job)
    if place == "end":
        printed[rank].remove(undisturbed[rank][25])  # the killed process had printed this one
    assert printed == undisturbed


def test_two_that_are_killed_at_once(cluster, submit, undisturbed):
    job = submit()
    for rank in (0, 2):
        cluster.kill(cluster.pid(job, rank, 1))
    cluster.release(job)
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    assert [lines[-1] for lines in cluster.output(job)] == [lines[-1] for lines in undisturbed]  # parameters, losses


def test_all_that_are_killed_at_once(cluster, submit, undisturbed):
    """What they have left in shared memory is enough."""
    job = submit()
    for rank in range(3):
        cluster.kill(cluster.pid(job, rank, 1))
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    assert [lines[-1] for lines in cluster.output(job)] == [lines[-1] for lines in undisturbed]


def test_again_and_again(cluster, submit, undisturbed):
    job = submit(stops="1:25:forward,2:30:backward,0:35:forward")
    cluster.release_all(job)
    for rank, step, place in ((1, 25, "forward"), (2, 30, "backward"), (0, 35, "forward")):
        cluster.await_true((job.folder / f"stop-{rank}-{step}-{place}").exists, "it never came there", job)
        [process] = [p for p in cluster.processes(job) if p["rank"] == rank]
        cluster.kill(process["pid"])
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    assert cluster.output(job) == undisturbed


@pytest.mark.parametrize("who", ["controller", "agents"])
def test_the_controller_or_the_agents_may_be_killed_with_it(cluster, submit, undisturbed, who):
    job = submit(stops="1:25:forward")
    cluster.release(job)
    cluster.await_true((job.folder / "stop-1-25-forward").exists, "it never came there", job)
    pid = cluster.pid(job, 1, 1)
    for node in cluster.nodes if who == "agents" else ():
        cluster.kill(cluster.agent_pid(node))
    cluster.kill(pid)
    if who == "controller":
        cluster.kill_controller()
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    assert cluster.output(job) == undisturbed


def test_a_machine_that_is_gone(undisturbed):
    """Rank 2 was alone there; what it alone held is also on the other node, and its devices are."""
    with Cluster({"a": 3, "b": 2}) as cluster:
        job = cluster.submit(WHERE, recover=True, back="a:0 a:1 a:2")
        cluster.release(job)
        cluster.await_hold(job, HOLDS[1])
        cluster.lose("b")
        cluster.await_event(job, "RankSwitched", 3)
        cluster.release_all(job)
        cluster.await_true(lambda: cluster.client.show(job.id)["state"] == "done", "the job never ended", job)
        assert cluster.client.show(job.id)["placement"] == []
        assert [lines[-1] for lines in cluster.output(job)] == [lines[-1] for lines in undisturbed]  # parameters, losses


@pytest.mark.slow
def test_a_machine_that_is_gone_after_its_rank_had_moved_there(undisturbed):
    """What rank 2 had left where it came from, and what is kept there for it since, are not taken for each other."""
    with Cluster({"a": 3, "b": 2}) as cluster:
        job = cluster.submit("a:0 a:1 a:2", recover=True)
        cluster.migrate(job, WHERE)
        cluster.await_event(job, "StepAccepted")
        cluster.release(job)
        cluster.await_event(job, "RankSwitched", 3)
        cluster.await_event(job, "RankExited", role="leaver")
        cluster.await_hold(job, HOLDS[1])
        cluster.lose("b")
        cluster.await_event(job, "RankSwitched", 6)
        cluster.release_all(job)
        cluster.await_true(lambda: cluster.client.show(job.id)["state"] == "done", "the job never ended", job)
        assert [lines[-1] for lines in cluster.output(job)] == [lines[-1] for lines in undisturbed]


@pytest.fixture(scope="module")
def accumulated(cluster: Cluster) -> list[list[str]]:
    job = cluster.submit(WHERE, at_hold=False, flags=("--accumulate", "5"))
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    return cluster.output(job)


@pytest.mark.parametrize("step", [23, pytest.param(24, marks=pytest.mark.slow), pytest.param(25, marks=pytest.mark.slow)])
def test_a_script_that_adds_up_gradients_loses_nothing_either(cluster, submit, accumulated, step):
    """In a step without an update, with one, and after it; and the way back rehearses until there was an update."""
    job = submit(stops=f"1:{step}:end", flags=("--accumulate", "5"))
    cluster.release(job)
    cluster.await_true((job.folder / f"stop-1-{step}-end").exists, "it never came there", job)
    cluster.kill(cluster.pid(job, 1, 1))
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    printed = cluster.output(job)
    printed[1].remove(accumulated[1][step])  # the killed process had printed this one
    assert printed == accumulated
