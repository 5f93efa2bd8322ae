"""A live cluster under a policy that is wrong in every way: nothing moves, it is said, and the cluster goes on."""

from __future__ import annotations

from typing import Any

import pytest

from restow.cluster import Snapshot
from restow.controller.deciding import Deciding
from restow.messages import PolicyFailed
from restow.placement import Schedule, Slot
from restow.policies.fifo import Fifo
from tests.controller.world import World, play, spec, until
from tests.core.obedient import Cluster, Program


class Wrong:
    """As Fifo until `turns_bad` is set; then it does that."""

    def __init__(self) -> None:
        self.turns_bad: Any = None
        self.asked = 0

    def decide(self, snapshot: Snapshot) -> Any:
        self.asked += 1
        return self.turns_bad(snapshot) if self.turns_bad else Fifo().decide(snapshot)


def raises(snapshot: Snapshot) -> Any:
    raise ValueError("no idea")


def answers_nonsense(snapshot: Snapshot) -> Any:
    return [job.id for job in snapshot.jobs]


def leaves(snapshot: Snapshot) -> Any:
    raise SystemExit(3)


def gives_a_device_twice(snapshot: Snapshot) -> Any:
    schedule = Schedule()
    for job in snapshot.jobs:
        schedule.put(job.id, (Slot("m1", 0),) * job.workers)
    return schedule


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (raises, "ValueError: no idea"), (answers_nonsense, "it answered with a list"), (leaves, "SystemExit: 3"),
        (gives_a_device_twice, "it breaks a rule"),
    ],
)  # fmt: skip
def test_whatever_is_wrong_with_a_policy_running_jobs_stay_and_it_is_said(tmp_path, bad, words):
    policy = Wrong()
    world = World(tmp_path, policy, m1=2)

    async def story():
        async with world.controller() as requests:
            first = (await requests.submit(spec(1)))["id"]
            await world.reach(first, "running")
            policy.turns_bad = bad
            second = (await requests.submit(spec(1)))["id"]
            await until(lambda: words in world.now.state.jobs[second].reason, world.now)
            assert "everything stays" not in world.now.state.jobs[first].reason
            assert world.now.state.jobs[first].intended == (Slot("m1", 0),)
            assert world.now.state.jobs[second].intended == ()
            failed = [event for _, event in world.now.journal.events() if isinstance(event, PolicyFailed)]
            assert [words in event.reason for event in failed] == [True]
            policy.turns_bad = None
            await world.reach(second, "running")
            assert world.now.deciding.failure == ""

    play(story)


def test_a_policy_that_fails_again_and_again_is_asked_less_and_less_often():
    policy = Wrong()
    policy.turns_bad = raises
    deciding, asked = Deciding(policy), []
    cluster = Cluster("m1:2", 25e6, Fifo())
    for now_s in range(200):
        before = policy.asked
        deciding.decide(cluster.state.snapshot(float(now_s)))
        if policy.asked > before:
            asked.append(now_s)
    assert asked == [0, 1, 4, 11, 26, 57, 117, 177]


def test_a_live_policy_is_told_what_was_measured_of_the_jobs():
    seen: dict[str, float] = {}

    class Asks:
        def decide(self, snapshot: Snapshot) -> Schedule:
            assert snapshot.forecast is not None
            seen.update({job.id: snapshot.forecast.alone_s(job) for job in snapshot.jobs})
            return Fifo().decide(snapshot)

    cluster = Cluster("m1:2", 25e6, Fifo())
    cluster.submit("a", 1, Program(step_s=0.25))
    cluster.run()
    cluster.train("a", 20)
    cluster.run()
    Deciding(Asks()).decide(cluster.state.snapshot(cluster.now_s))
    assert seen == {"a": pytest.approx(0.25)}
