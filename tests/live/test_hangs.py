"""Ranks that stand still, for real: found among those that wait for them, named with their line, and replaced."""

from __future__ import annotations

import os
import signal

import pytest

from tests.live.cluster import WHERE, Cluster


@pytest.mark.parametrize("how", ["forward", pytest.param("stopped", marks=pytest.mark.slow)])
def test_the_one_that_stands_still_is_named_and_replaced(cluster, undisturbed, how):
    stops = "1:25:forward" if how == "forward" else ""
    job = cluster.submit(WHERE, recover=True, stops=stops, hang_s=3.0, on_hang="replace")
    if how == "stopped":
        os.kill(cluster.pid(job, 1, 1), signal.SIGSTOP)
    cluster.release_all(job)
    (hung,) = cluster.await_event(job, "JobHung")
    assert hung["ranks"] == [1]
    assert ("is at script_mlp.py:" if how == "forward" else "does not answer") in hung["reason"]
    assert cluster.await_end(job)["state"] == "done", cluster.story(job)
    printed = [list(dict.fromkeys(lines)) for lines in cluster.output(job)]  # it had printed already what it then did again
    assert printed == undisturbed


@pytest.mark.slow
def test_it_is_only_said_where_the_spec_wants_no_more(cluster):
    job = cluster.submit(WHERE, recover=True, stops="2:25:backward", hang_s=3.0)
    cluster.release_all(job)
    (hung,) = cluster.await_event(job, "JobHung")
    assert hung["ranks"] == [2]
    assert cluster.client.show(job.id)["reason"] == hung["reason"]
    assert not cluster.has_event(job, "RankExited")
    cluster.client.cancel(job.id)
    assert cluster.await_end(job)["state"] == "cancelled"


@pytest.mark.slow
def test_a_rank_on_a_slow_machine_is_moved_off_it(undisturbed):
    with Cluster({"a": 3, "b": 2}, slow_s=0.5) as cluster:
        job = cluster.submit(WHERE, at_hold=False, on_slow="move", migrate=True, flags=("--slow", "b:0.15"))
        cluster.release_all(job)
        (slow, *_) = cluster.await_event(job, "RankSlow")
        assert (slow["rank"], slow["own_s"] > 2 * slow["others_s"]) == (2, True)
        cluster.await_event(job, "RankSwitched", 3)
        assert cluster.await_end(job)["state"] == "done", cluster.story(job)
        assert cluster.output(job) == undisturbed
        [moved] = [event for event in cluster.events(job) if event["type"] == "MoveMeasured"]
        assert "since it computes much longer than the others" in moved["reason"]
        assert moved["then"] == [["a", 0, 1.0], ["a", 1, 1.0], ["a", 2, 1.0]]
