"""`kill -9` at every stage of a switch: a lost twin, agent, nursery or controller costs no step, a lost staying rank ends the job
with a reason. Every line that every rank printed is compared with the run that nobody disturbed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from restow.lab import Lab, availability
from tests.live.cluster import HOLDS, Cluster, LiveJob

NOW, THEN = "a:0 a:1 b:0", "a:0 a:1 a:2"  # rank 2 leaves b; its twin is on a, with both staying ranks
LEAVER = 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster({"a": 4, "b": 1}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> list[list[str]]:
    """What each rank prints when nobody moves it."""
    job = cluster.submit(THEN, at_hold=False)
    assert cluster.await_end(job)["state"] == "done"
    return cluster.output(job)


@pytest.fixture
def submit(cluster: Cluster) -> Iterator[Callable[..., LiveJob]]:
    """Start a job; it is cancelled afterwards if the test could not bring it to its end."""
    jobs: list[LiveJob] = []

    def submit(placement: str = NOW, **about: str) -> LiveJob:
        jobs.append(cluster.submit(placement, **about))
        return jobs[-1]

    yield submit
    for job in jobs:
        if cluster.client.show(job.id)["ended_s"] is None:
            cluster.client.cancel(job.id)
            cluster.await_end(job)


# ---------------------------------------------------------------- the stages of a switch

@contextlib.contextmanager
def store_opened(cluster: Cluster, job: LiveJob) -> Iterator[None]:
    with cluster.held("Prepare"):
        cluster.migrate(job, THEN)
        cluster.await_event(job, "StoreOpened", generation=2)
        yield


@contextlib.contextmanager
def twin_started(cluster: Cluster, job: LiveJob) -> Iterator[None]:
    cluster.migrate(job, THEN)
    cluster.await_event(job, "RankStarted", generation=2)
    yield


@contextlib.contextmanager
def twin_parked(cluster: Cluster, job: LiveJob) -> Iterator[None]:
    with cluster.held("Connect"):
        cluster.migrate(job, THEN)
        cluster.await_event(job, "TwinParked")
        yield


@contextlib.contextmanager
def connected(cluster: Cluster, job: LiveJob) -> Iterator[None]:
    """With a shadow: the twin holds the state and follows."""
    with cluster.held("Propose"):
        cluster.migrate(job, THEN)
        cluster.await_event(job, "StepProposed")
        yield


@contextlib.contextmanager
def committed(cluster: Cluster, job: LiveJob) -> Iterator[None]:
    """The controller has decided; nobody knows yet."""
    with cluster.held("Decide"):
        cluster.migrate(job, THEN)
        cluster.await_event(job, "StepAccepted", count=2)
        yield


@contextlib.contextmanager
def decided(cluster: Cluster, job: LiveJob) -> Iterator[None]:
    """The decision is in the store; the switch step is some steps ahead."""
    cluster.migrate(job, THEN)
    cluster.await_told(job, "Decide")
    yield


@contextlib.contextmanager
def at_the_switch_step(cluster: Cluster, job: LiveJob) -> Iterator[None]:
    """All ranks wait for the decision."""
    with committed(cluster, job):
        cluster.release(job)
        cluster.await_switch_step(job)
        yield


@contextlib.contextmanager
def in_the_middle(cluster: Cluster, job: LiveJob) -> Iterator[None]:
    """Decided, and staying ranks and twin wait for the leaver, which is slow."""
    leaver = cluster.pid(job, LEAVER, born=1)
    with at_the_switch_step(cluster, job):
        os.kill(leaver, signal.SIGSTOP)
    try:
        cluster.await_told(job, "Decide")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # the job may have ended
            os.kill(leaver, signal.SIGCONT)


@contextlib.contextmanager
def switched(cluster: Cluster, job: LiveJob) -> Iterator[None]:
    """Training in the new generation, held there."""
    cluster.migrate(job, THEN)
    cluster.await_told(job, "Decide")
    cluster.release(job)
    cluster.await_event(job, "RankSwitched", count=3)
    yield


Stage = Callable[[Cluster, LiveJob], contextlib.AbstractContextManager[None]]
STAGES: list[Stage] = [
    store_opened, twin_started, twin_parked, connected, committed, decided, at_the_switch_step, in_the_middle, switched,
]  # fmt: skip
FILLS = ("replica", "shadow")


def walk(*usual: tuple[Stage, str], but: tuple[Stage, ...] = ()) -> list[object]:
    """Every stage with every fill; all but the usual ones are slow."""
    return [
        pytest.param(stage, fill, id=f"{stage.__name__}-{fill}", marks=[] if (stage, fill) in usual else [pytest.mark.slow])
        for stage in STAGES
        for fill in FILLS
        if stage not in but
    ]


def assert_nothing_is_lost(cluster: Cluster, job: LiveJob, undisturbed: list[list[str]]) -> None:
    view = cluster.await_end(job)
    assert view["state"] == "done", cluster.story(job)
    for printed, expected in zip(cluster.output(job), undisturbed, strict=True):
        assert printed == expected, [pair for pair in zip(printed, expected, strict=False) if pair[0] != pair[1]][:3]


# ---------------------------------------------------------------- who is killed

@pytest.mark.parametrize(
    ("stage", "fill"),
    walk(
        (connected, "shadow"), (in_the_middle, "replica"),
        but=(store_opened, switched),
    ),
)  # fmt: skip
def test_a_killed_twin_costs_no_step(cluster: Cluster, submit, undisturbed, stage: Stage, fill: str):
    job = submit(fill=fill)
    with stage(cluster, job):
        cluster.kill(cluster.pid(job, LEAVER, born=2))
        cluster.await_event(job, "RankExited", role="twin")
    assert_nothing_is_lost(cluster, job, undisturbed)
    assert not cluster.has_event(job, "RankSwitched")


@pytest.mark.parametrize(
    ("stage", "fill"),
    walk((twin_parked, "replica"), (in_the_middle, "replica"), but=(store_opened, twin_started, committed, decided, switched)),
)
def test_a_killed_leaver_costs_no_step(cluster: Cluster, submit, undisturbed, stage: Stage, fill: str):
    """Its twin is the rank from then on, in the middle of a step where that is so. (Not in the step in which the switch began:
    what nobody else has is kept from the next save point on.) It may have printed its line of the step that it was lost in; its
    twin, which runs that step again, then does so too."""
    job = submit(fill=fill)
    with stage(cluster, job):
        if stage in (twin_parked, connected):
            cluster.release(job)
            cluster.await_hold(job, HOLDS[1])
        cluster.kill(cluster.pid(job, LEAVER, born=1))
        cluster.await_event(job, "RankExited", rank=LEAVER, generation=1)
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    printed = cluster.output(job)
    printed[LEAVER] = [line for line, before in zip(printed[LEAVER], ["", *printed[LEAVER]], strict=False) if line != before]
    assert printed == undisturbed
    assert cluster.has_event(job, "RankSwitched")


@pytest.mark.parametrize(
    ("stage", "fill"), walk((in_the_middle, "shadow"))
)
def test_a_killed_staying_rank_ends_the_job_and_is_named(cluster: Cluster, submit, undisturbed, stage: Stage, fill: str):
    job = submit(fill=fill)
    with stage(cluster, job):
        cluster.kill(cluster.pid(job, 0, born=1))
        cluster.await_event(job, "RankExited", rank=0)
    view = cluster.await_end(job)
    assert (view["state"], view["reason"]) == ("failed", "rank 0 on a was ended by signal 9: killed by SIGKILL")
    for printed, expected in zip(cluster.output(job), undisturbed, strict=True):
        steps = [line for line in printed if line[:1].isdigit()]  # without its last words
        assert steps == expected[: len(steps)]


@pytest.mark.parametrize(("stage", "fill"), walk((in_the_middle, "replica")))
def test_a_killed_agent_of_the_destination_costs_no_step(cluster: Cluster, submit, undisturbed, stage: Stage, fill: str):
    job = submit(fill=fill)
    with stage(cluster, job):
        cluster.kill(cluster.agent_pid("a"))
    assert_nothing_is_lost(cluster, job, undisturbed)


@pytest.mark.parametrize(("stage", "fill"), walk((committed, "replica")))
def test_a_killed_agent_of_the_source_costs_no_step(cluster: Cluster, submit, undisturbed, stage: Stage, fill: str):
    job = submit(fill=fill)
    with stage(cluster, job):
        cluster.kill(cluster.agent_pid("b"))
    assert_nothing_is_lost(cluster, job, undisturbed)


@pytest.mark.parametrize(("stage", "fill"), walk((twin_started, "replica")))
def test_a_killed_nursery_costs_no_step(cluster: Cluster, submit, undisturbed, stage: Stage, fill: str):
    job = submit(fill=fill)
    with stage(cluster, job):
        cluster.kill(cluster.nursery_pid("a"))
    assert_nothing_is_lost(cluster, job, undisturbed)


@pytest.mark.parametrize(("stage", "fill"), walk((twin_started, "shadow"), (committed, "replica"), (in_the_middle, "replica")))
def test_a_killed_controller_costs_no_step(cluster: Cluster, submit, undisturbed, stage: Stage, fill: str):
    job = submit(fill=fill)
    with stage(cluster, job):
        cluster.kill_controller()
    assert_nothing_is_lost(cluster, job, undisturbed)


# ---------------------------------------------------------------- no room


def fill_up(shm: Path, left_bytes: int) -> Path:
    """Leave so much room in this shared memory."""
    file = shm / "filler"
    with file.open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, shutil.disk_usage(shm).free - left_bytes)
    return file


@pytest.mark.parametrize(
    ("left_bytes", "what"), [(0, "shared memory page"), (64 << 10, "no room for a shadow")], ids=["page", "shadow"]
)
def test_full_shared_memory_costs_the_move_and_no_step(cluster: Cluster, submit, undisturbed, left_bytes: int, what: str):
    if not cluster.is_bounded:
        pytest.skip("NOT TESTED: tmpfs cannot be mounted here")
    job = submit(fill="shadow")
    filler = fill_up(cluster.shm / "a", left_bytes)
    try:
        cluster.migrate(job, THEN)
        cluster.await_true(lambda: "failed" in cluster.client.show(job.id)["reason"], "the move did not fail", job)
        assert what in cluster.client.show(job.id)["reason"]
        assert "No space left on device" in cluster.client.show(job.id)["reason"]
    finally:
        filler.unlink()
    assert_nothing_is_lost(cluster, job, undisturbed)


# ---------------------------------------------------------------- a cut link

WIDE = 512  # 3 MB of state: 2.5 s at 10 Mbit/s
MIDDLE_BYTES = 600_000


@pytest.mark.lab
@pytest.mark.skipif(availability()[0] == "none", reason=f"NOT TESTED: no lab here: {availability()[1]}")
@pytest.mark.slow
@pytest.mark.parametrize("heals", [True, False])
def test_a_link_cut_in_the_middle_of_a_transfer_costs_no_step(heals: bool):
    """Rank 2 goes where nobody has its state; while it crosses, the cable is out: for a while, and the move is made; for good,
    and the old gang, all of it on this side, goes on."""
    with Lab(nodes=2, devices=3, rate_bits_per_s=None) as lab, Cluster({"m1": 3, "m2": 3}, lab) as cluster:
        alone = cluster.submit("m1:0 m1:1 m1:2", width=WIDE, at_hold=False)
        assert cluster.await_end(alone)["state"] == "done"
        job = cluster.submit("m1:0 m1:1 m1:2", fill="copy", width=WIDE)
        lab.set_link("m1", "m2", rate_bits_per_s=10e6)
        cluster.migrate(job, "m1:0 m1:1 m2:0")
        cluster.await_told(job, "Decide")
        before, _ = lab.counters("m2")
        cluster.release(job)
        cluster.await_true(lambda: lab.counters("m2")[0] > before + MIDDLE_BYTES, "the state never crosses", job)
        lab.cut("m2")
        if heals:
            threading.Event().wait(1.0)  # the cable is out for this long: packets are lost and sent again
            assert not cluster.has_event(job, "RankSwitched")
            lab.heal("m2")
            lab.set_link("m1", "m2", rate_bits_per_s=None)
        else:
            cluster.await_event(job, "RankRolledBack", count=3)
        assert_nothing_is_lost(cluster, job, cluster.output(alone))
        assert cluster.has_event(job, "RankSwitched") == heals
