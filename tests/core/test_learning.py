"""What links carry, learned from the state that crosses them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from restow.job import Phase
from restow.messages import Decide, RankSwitched
from tests.core.obedient import Cluster
from tests.core.test_switch import stopped_in


def switched(*, wire_bytes: int = 100_000_000, fill_s: float = 5.0, rank: int = 2, node: str = "m1") -> RankSwitched:
    return RankSwitched(
        time_s=0.0, job="a", generation=2, node=node, rank=rank, step=10, pause_s=fill_s, wire_bytes=wire_bytes,
        phases=(("private", 0.1), ("fill", fill_s)),
    )  # fmt: skip


def rate(cluster: Cluster) -> float:
    return cluster.state.snapshot(0.0).link("m1", "m2").bytes_per_s


def test_the_first_transfer_is_believed_where_nothing_was_declared():
    cluster = stopped_in(Phase.COMMIT)
    cluster.state.links.clear()
    cluster.observe(switched())
    assert rate(cluster) == 20e6


def test_what_was_declared_or_learned_before_counts_half_and_the_same_words_twice_count_once():
    cluster = stopped_in(Phase.COMMIT)
    assert rate(cluster) == 25e6
    cluster.observe(switched())
    cluster.observe(switched())
    assert rate(cluster) == 22.5e6


@pytest.mark.parametrize(
    "event", [switched(wire_bytes=12_600), switched(fill_s=0.0), switched(rank=0), switched(rank=1)], ids=["few", "quick", "0", "1"]
)
def test_what_says_nothing_of_the_link_changes_nothing(event):
    cluster = stopped_in(Phase.COMMIT)
    cluster.observe(event)
    assert rate(cluster) == 25e6


@pytest.mark.parametrize(("private_bytes", "expected"), [(15_000, 22.5e6), (50_000_000, 25e6)])
def test_of_a_gang_that_moves_as_a_whole_the_one_that_gets_the_state_tells(private_bytes, expected):
    cluster = Cluster("m1:3 m2:3", 25e6)
    cluster.submit("a", workers=3)
    cluster.place(a="m2:0 m2:1 m2:2")
    cluster.train("a", 10)
    cluster.run(decide=False)
    record = cluster.state.records["a"]
    record.change(profile=replace(record.job.profile, private_bytes=private_bytes))
    cluster.migrate("a", "m1:0 m1:1 m1:2")
    cluster.agents.deaf = {Decide}
    cluster.run()
    assert record.phase is Phase.COMMIT
    cluster.observe(switched(rank=1))
    cluster.observe(switched(rank=0, wire_bytes=15_000))
    assert rate(cluster) == expected
