"""Jobs that change their number of workers while they train, for real: every step is made once, on the same samples."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live.cluster import HOLDS, STEPS, Cluster, LiveJob

WHERE = "a:0 a:1 b:0 b:1"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster({"a": 2, "b": 2}) as cluster:
        yield cluster


def submit(cluster: Cluster, **about: object) -> LiveJob:
    return cluster.submit(WHERE, workers_min=1, flags=("--plain",), **about)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(cluster: Cluster) -> dict[int, tuple[list[int], float]]:
    job = submit(cluster, at_hold=False)
    assert cluster.await_end(job)["state"] == "done"
    return steps_of(cluster, job)


def steps_of(cluster: Cluster, job: LiveJob) -> dict[int, tuple[list[int], float]]:
    """Step → samples of all ranks, and their mean loss. No rank makes a step twice."""
    found: dict[int, list[tuple[list[int], float]]] = {}
    for lines in cluster.output(job):
        made = [line.split() for line in lines if line[:1].isdigit()]
        assert len({words[0] for words in made}) == len(made)
        for step, loss, *samples in made:
            found.setdefault(int(step), []).append(([int(sample) for sample in samples], float.fromhex(loss)))
    return {
        step: (
            sorted(sample for samples, _ in ranks for sample in samples),
            sum(len(samples) * loss for samples, loss in ranks) / sum(len(samples) for samples, _ in ranks),
        )
        for step, ranks in found.items()
    }


def resize(cluster: Cluster, job: LiveJob, workers: int, *, from_hold: int) -> None:
    generation = cluster.client.show(job.id)["generation"] + 1
    cluster.client.scale(job.id, workers)
    cluster.await_told(job, "Decide", generation)
    (job.folder / str(from_hold)).touch()
    cluster.await_true(lambda: cluster.client.show(job.id)["state"] == "running" and len(placement(cluster, job)) == workers,
                       f"never with {workers} workers", job)  # fmt: skip


def placement(cluster: Cluster, job: LiveJob) -> list[str]:
    return list(cluster.client.show(job.id)["placement"])


def assert_the_same(cluster: Cluster, job: LiveJob, whole: dict[int, tuple[list[int], float]]) -> None:
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    made = steps_of(cluster, job)
    assert sorted(made) == list(range(STEPS))
    for step, (samples, loss) in sorted(whole.items()):
        assert made[step][0] == samples
        assert made[step][1] == pytest.approx(loss, rel=1e-3)  # the same sums, in another order


@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_fewer_workers_and_all_again(cluster, whole, workers):
    job = submit(cluster)
    resize(cluster, job, workers, from_hold=HOLDS[0])
    cluster.await_true(lambda: cluster.client.show(job.id)["step"] == HOLDS[1], "never at its second hold", job)
    resize(cluster, job, 4, from_hold=HOLDS[1])
    assert_the_same(cluster, job, whole)
    [fewer, all_again] = [event for event in cluster.events(job) if event["type"] == "MoveMeasured"]
    assert (len(fewer["now"]), len(fewer["then"]), len(all_again["then"])) == (4, workers, 4)
    assert f"from {workers} to 4 workers, as was asked" in all_again["reason"]
    assert all_again["downtime_s"] > 0 and all_again["lost_steps"] == 0


def test_the_controller_may_be_killed_meanwhile(cluster, whole):
    job = submit(cluster)
    with cluster.held("Connect"):
        cluster.client.scale(job.id, 2)
        cluster.await_event(job, "StoreOpened", 2)
        cluster.kill_controller()
    cluster.await_event(job, "StepAccepted")
    cluster.release_all(job)
    assert_the_same(cluster, job, whole)
    assert cluster.has_event(job, "RankSwitched")


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_begins_costs_nothing(cluster, whole):
    job = submit(cluster)
    cluster.client.scale(job.id, 2)
    cluster.await_event(job, "StepAccepted")
    with cluster.held("Connect"):
        cluster.release(job)
        [parked, *_] = cluster.await_event(job, "TwinParked", 2)
        cluster.kill(next(p["pid"] for p in cluster.processes(job) if p["rank"] == parked["rank"] and p["generation"] > 2))
    assert_the_same(cluster, job, whole)


@pytest.mark.slow
def test_a_script_that_adds_up_gradients_goes_on_with_as_many_as_before(cluster):
    flags = ("--plain", "--accumulate", "15")  # the last update before the hold is that of step 14
    alone = cluster.submit(WHERE, workers_min=1, at_hold=False, flags=flags)
    assert cluster.await_end(alone)["state"] == "done"
    job = cluster.submit(WHERE, workers_min=1, flags=flags)
    cluster.client.scale(job.id, 2)
    cluster.await_event(job, "StepAccepted")
    cluster.release(job)
    cluster.await_true(lambda: "adds up gradients" in str(cluster.all_events()[-40:]), "it was not said", job)
    assert_the_same(cluster, job, steps_of(cluster, alone))
