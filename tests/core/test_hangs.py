"""Jobs that stand still, slow ranks, and jobs that err: who is named, and what is done."""

from __future__ import annotations

import pytest

from restow.core.hangs import causes_of
from restow.job import JobState
from restow.messages import Kill, RankHung
from tests.core.obedient import Cluster, Program
from tests.core.test_suspending import running


def hung(rank: int, *, given: int = 100, waits: bool = True, job: str = "a", at: str = "train.py:7 in main") -> RankHung:
    return RankHung(
        time_s=0.0, job=job, generation=1, node="m1", rank=rank, step=10, silent_s=70.0, at=at, waits=waits, given=given,
        stack=(at,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "causes"),
    [
        ([hung(0), hung(1, given=50), hung(2)], (1,)),
        ([hung(0), hung(1, waits=False), hung(2)], (1,)),
        ([hung(0), hung(1), hung(2, given=-1)], (2,)),
        ([hung(0), hung(1), hung(2)], ()),
        ([hung(0, given=50), hung(1, given=50, waits=False), hung(2)], (0, 1)),
    ],
)
def test_who_is_the_cause(words, causes):
    assert causes_of(words) == causes


def stand_still(cluster: Cluster) -> None:
    for rank in range(3):
        event = hung(rank, given=50 if rank == 1 else 100, at="train.py:41 in evaluate" if rank == 1 else "train.py:7 in main")
        cluster.observe(event)
    cluster.run()


def test_it_is_named_with_its_line():
    cluster = running()
    stand_still(cluster)
    assert cluster.job("a").reason == "stands still for 70 s at step 10: rank 1 on m1 is at train.py:41 in evaluate"
    assert not cluster.commands_of(Kill)
    cluster.train("a", 20)
    cluster.run()
    assert cluster.job("a").reason == "goes on by itself"


def test_those_that_say_nothing_are_not_waited_for():
    cluster = running()
    cluster.observe(hung(0))
    cluster.run()
    assert "stands still" not in cluster.job("a").reason
    cluster.clock(20.0)
    cluster.run()
    assert cluster.job("a").reason.endswith("all ranks wait for each other")


def test_the_cause_is_replaced_where_the_spec_says_so():
    cluster = running(on_hang="replace")
    stand_still(cluster)
    (node, kill), *_ = cluster.commands_of(Kill)
    assert (node, kill.rank) == (cluster.job("a").placement[1].node, 1)
    assert (cluster.job("a").state, cluster.job("a").generation) == (JobState.RUNNING, 3)


@pytest.mark.parametrize("on_slow", ["report", "move"])
def test_a_slow_rank_is_named_and_moved_where_the_spec_says_so(on_slow):
    cluster = Cluster("m1:3")
    program = Program(steps_total=10_000, step_s=0.3, exposed_s=0.2, wire_bytes=1000)
    cluster.submit("a", workers=2, program=program, on_slow=on_slow)
    cluster.run()
    cluster.train("a", 40)
    cluster.agents.slow = {("a", 1): 0.29}
    cluster.train("a", 10)
    cluster.run()
    assert not cluster.job("a").slow
    cluster.clock(40.0)
    cluster.run()
    cluster.train("a", 10)
    cluster.run()
    if on_slow == "report":
        assert "rank 1 on m1:1 computes 2.9 times as long as the others" in cluster.job("a").reason
        assert cluster.where("a") == "m1:0 m1:1"
    else:
        assert cluster.where("a") == "m1:0 m1:2"


def test_of_ranks_that_take_turns_on_a_slow_device_one_goes_to_the_only_free_one():
    cluster = Cluster("m1:3")
    program = Program(steps_total=10_000, step_s=0.3, exposed_s=0.2, wire_bytes=1000)
    cluster.submit("a", workers=4, devices=(2, 2), program=program, on_slow="move")
    cluster.run()
    cluster.train("a", 40)
    assert cluster.where("a") == "m1:0 m1:0 m1:1 m1:1"
    cluster.agents.slow = {("a", 2): 0.29, ("a", 3): 0.29}
    cluster.train("a", 10)
    cluster.run()
    cluster.clock(40.0)
    cluster.run()
    cluster.train("a", 10)
    cluster.run()
    assert sorted(cluster.where("a").split()) == ["m1:0", "m1:0", "m1:1", "m1:2"]


def test_an_error_of_its_own_is_tried_again_as_often_as_the_spec_says():
    cluster = Cluster("m1:2")
    cluster.submit("a", workers=2, retries=1)
    cluster.run()
    cluster.kill("a", 1, code=1, reason="ValueError: x (train.py:41)")
    cluster.run()
    assert (cluster.job("a").state, cluster.job("a").retried) == (JobState.RUNNING, 1)
    cluster.kill("a", 1, code=1, reason="ValueError: x (train.py:41)")
    cluster.run()
    assert cluster.job("a").state is JobState.FAILED
    assert cluster.job("a").reason == "rank 1 on m1 exited with code 1: ValueError: x (train.py:41)"
