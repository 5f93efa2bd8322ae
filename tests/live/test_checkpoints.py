"""Checkpoints of jobs that train, for real: made beside the training, and gone on from when nothing else is left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from restow import checkpoint
from tests.live.cluster import HOLDS, WHERE, Cluster, LiveJob


def saved(cluster: Cluster) -> tuple[LiveJob, int]:
    """A job that stands at its second hold and has made a checkpoint on the way."""
    job = cluster.submit(WHERE, recover=True)
    cluster.client.checkpoint(job.id)
    cluster.await_event(job, "CheckpointProposed")
    cluster.await_told(job, "Snapshot")
    cluster.release(job)
    (written,) = cluster.await_event(job, "CheckpointWritten")
    cluster.await_hold(job, HOLDS[1])
    return job, int(written["step"])


def test_a_job_that_loses_all_its_ranks_and_what_they_left_goes_on_from_its_checkpoint(cluster, undisturbed):
    job, step = saved(cluster)
    assert HOLDS[0] < step < HOLDS[1]
    for path in [*cluster.shm.glob(f"*/{job.id}.*.slots"), *cluster.shm.glob(f"*/{job.id}.*.replica")]:
        path.unlink()
    for rank in range(3):
        cluster.kill(cluster.pid(job, rank, 1))
    cluster.await_event(job, "RankSwitched", 3)
    assert cluster.await_end(job)["state"] == "done"
    for mine, theirs in zip(cluster.output(job), undisturbed, strict=True):
        assert mine[: HOLDS[1] - 1] == theirs[: HOLDS[1] - 1]
        assert mine[-(len(theirs) - step) :] == theirs[step:]  # what came after the checkpoint, once more


def test_a_restart_of_everything_loses_nothing_that_is_in_it(cluster, undisturbed):
    job, _ = saved(cluster)
    for node in cluster.nodes:
        cluster.kill(cluster.agent_pid(node))
        for process in cluster.processes(job):
            if process["node"] == node:
                cluster.kill(process["pid"])
        cluster.kill(cluster.nursery_pid(node))
    for path in cluster.shm.glob(f"*/{job.id}.*"):  # as after a reboot
        path.unlink()
    cluster.kill_controller()
    assert cluster.await_end(job)["state"] == "done"
    assert [lines[-1] for lines in cluster.output(job)] == [lines[-1] for lines in undisturbed]


def test_another_job_goes_on_from_it(cluster, undisturbed):
    job, step = saved(cluster)
    cluster.client.cancel(job.id)
    cluster.await_end(job)
    view = cluster.client.restore(job.id)
    assert view["kept"]["step"] == step
    other = LiveJob(view["id"], job.folder, 3)
    assert cluster.await_end(other)["state"] == "done"
    assert [lines[-1] for lines in cluster.output(other)] == [lines[-1] for lines in undisturbed]


@pytest.mark.slow
def test_a_damaged_one_is_passed_over_for_the_one_before(cluster, undisturbed):
    job, first = saved(cluster)
    told = (cluster.folder / "told").read_text().count(f"{job.id} 1 Snapshot ")
    cluster.client.checkpoint(job.id)
    cluster.await_event(job, "CheckpointProposed", 2)
    path = cluster.folder / "told"
    cluster.await_true(lambda: path.read_text().count(f"{job.id} 1 Snapshot ") == told + 2, "the ranks were never told", job)
    cluster.release_all(job)
    written = cluster.await_event(job, "CheckpointWritten", 2)[-1]
    assert cluster.await_end(job)["state"] == "done"
    os.truncate(next(Path(written["path"]).glob("*.distcp")), 100)
    view = cluster.client.restore(job.id)
    other = LiveJob(view["id"], job.folder, 3)
    (failed,) = cluster.await_event(other, "SwitchFailed")
    assert "it is damaged" in failed["reason"]
    kept = cluster.await_true(lambda: cluster.client.show(other.id)["kept"], "it is not to go on", other)
    assert kept["step"] == first
    cluster.client.cancel(other.id)


def test_a_signal_asks_for_one(cluster):
    job = cluster.submit(WHERE, recover=True)
    os.kill(cluster.pid(job, 1, 1), signal.SIGUSR1)
    cluster.await_event(job, "CheckpointProposed")
    cluster.await_told(job, "Snapshot")
    cluster.release(job)
    (written,) = cluster.await_event(job, "CheckpointWritten")
    assert checkpoint.verify(written["path"]).step == written["step"]
    assert cluster.await_end(job)["state"] == "done"
