"""Muri: how long a period is, which jobs share, and that everybody gets there."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import pytest

from restow.cluster import Device, Node, Snapshot
from restow.errors import SetupError
from restow.job import Job, JobSpec, Profile, ShareSpec
from restow.placement import parse_placement
from restow.policies.muri.grouping import Group, Member, grouped, heaviest
from restow.policies.muri.interleaving import ALONE, OVERHEADS, Stages, efficiency, period_s, rotation_s
from restow.policies.muri.policy import Muri, stages_of
from restow.sim.delays import Delays
from restow.sim.machines import machines
from restow.sim.muri import Interleaved
from restow.sim.outcome import Outcome
from restow.sim.rows import Row
from restow.sim.simulation import SimConfig
from tests.sim.test_simulation import Checked

READS: Stages = (0.9, 0.05, 0.05)  # waits for its data nearly all the time
COMPUTES: Stages = (0.05, 0.9, 0.05)

# ------------------------------------------------------------ how long a period is


def test_four_jobs_that_need_everything_as_long_waste_nothing():
    even: Stages = (2.0, 1.0, 1.0)  # data takes two of four parts
    assert rotation_s([even] * 4) == 4.0
    assert period_s([even] * 4) == pytest.approx(4.0 * OVERHEADS[4])
    assert efficiency([even] * 4) == pytest.approx(1 / OVERHEADS[4])


def test_two_jobs_that_need_different_things_are_hardly_slower_than_one():
    assert period_s([READS, COMPUTES]) == pytest.approx(1.0 * OVERHEADS[2])  # as long as each alone
    assert period_s([COMPUTES, COMPUTES]) > 1.7


def played(order: Sequence[Stages], rounds: int = 200) -> float:
    """Part by part: when each of them ends, and how long a period takes in the long run."""
    ends = [0.0]
    for part in range(4 * rounds):
        sends, computes, reads = (order[(part + later) % 4] for later in (1, 2, 3))
        begun_s = ends[-2] if part else 0.0
        ends.append(max(ends[-1] + sends[2], ends[-1] + computes[1], begun_s + reads[0] if part else 0.0))
    return (ends[-1] - ends[4 * rounds // 2]) / (rounds // 2)


def test_a_period_is_as_long_as_if_it_is_played_part_by_part():
    rng = random.Random(1)
    for _ in range(100):
        order: list[Stages] = [(rng.random() * 3, rng.random(), rng.random()) for _ in range(4)]
        for number in range(rng.randrange(3)):
            order[number] = (0.0, 0.0, 0.0)
        assert rotation_s(order) == pytest.approx(played(order))


def test_the_order_in_which_they_are_named_does_not_matter():
    group = [READS, COMPUTES, (0.4, 0.3, 0.3)]
    assert len({period_s(order) for order in permutations(group)}) == 1


# ------------------------------------------------------------ who shares


def member(id: str, stages: Stages | None, workers: int = 1) -> Member:
    return Member(id, workers, stages, ALONE * sum(stages or (1.0,)))


def ids(groups: Sequence[Group]) -> list[list[str]]:
    return [sorted(each.id for each in group) for group in groups]


def always(group: Group) -> bool:
    return True


def test_jobs_that_need_different_things_share():
    ordered = [member("a", READS), member("b", READS), member("c", COMPUTES), member("d", COMPUTES)]
    found = ids(grouped(ordered, 2, always))
    assert len(found) == 2
    assert all(len({"a", "b"} & set(group)) == 1 for group in found)


def test_nobody_shares_while_there_are_devices_for_all():
    ordered = [member("a", READS), member("b", COMPUTES)]
    assert ids(grouped(ordered, 2, always)) == [["a"], ["b"]]


def test_as_many_share_as_have_to():
    ordered = [member(id, READS if id < "c" else COMPUTES) for id in "abcde"]
    assert sorted(map(len, grouped(ordered, 4, always))) == [1, 1, 1, 2]


def test_jobs_that_would_be_done_sooner_one_after_the_other_do_not_share():
    alike: Stages = (0.0, 1.0, 0.0)
    assert ids(grouped([member("a", alike), member("b", alike)], 1, always)) == [["a"]]


def test_a_job_of_which_nothing_is_known_has_its_devices_to_itself():
    assert ids(grouped([member("a", None), member("b", COMPUTES)], 1, always)) == [["a"]]


def test_who_cannot_run_together_does_not_share():
    ordered = [member("a", READS), member("b", COMPUTES), member("c", READS)]
    found = ids(grouped(ordered, 2, lambda group: {each.id for each in group} != {"a", "b"}))
    assert ["a"] in found
    assert ["b", "c"] in found


def test_groups_are_of_one_size_and_fit_together():
    rng = random.Random(2)
    for _ in range(50):
        ordered = [member(f"j{n}", (rng.random(), rng.random(), rng.random()), rng.choice((1, 2, 4, 8))) for n in range(40)]
        found = grouped(ordered, 16, always)
        assert all(len({each.workers for each in group}) == 1 and len(group) <= 4 for group in found)
        assert sum(group[0].workers for group in found) <= 16
        placed = [each.id for group in found for each in group]
        assert len(placed) == len(set(placed))


def test_the_heaviest_matching_is_not_the_greedy_one():
    assert heaviest({(0, 1): 5, (1, 2): 6, (2, 3): 5}) == [(0, 1), (2, 3)]


def test_without_networkx_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(SetupError, match="networkx is missing; pip install networkx"):
        heaviest({(0, 1): 1})


# ------------------------------------------------------------ in a cluster


def row(id: str, submitted_s: float, steps: float, stages: Stages, workers: int = 1) -> Row:
    return Row(
        id=id, submitted_s=submitted_s, workers=workers, steps=steps, duration_s=steps * sum(stages), stages_s=stages, model=id
    )


def run(rows: list[Row], cluster: str, policy: Muri, **config: object) -> Outcome:
    return Checked(rows, machines(cluster), Interleaved(), policy, SimConfig(delays=Delays(move_s=5.0), **config)).run()  # type: ignore[arg-type]


def ended(outcome: Outcome) -> dict[str, float]:
    return {job.id: job.ended_s for job in outcome.jobs}


def test_two_on_a_device_make_a_step_each_in_every_period():
    outcome = run([row("a", 0, 1000, READS), row("b", 0, 1000, COMPUTES)], "1x1", Muri())
    period_s_both = OVERHEADS[2]
    assert ended(outcome) == {"a": pytest.approx(1000 * period_s_both), "b": pytest.approx(1000 * period_s_both)}
    assert outcome.changes == 0


def test_when_devices_become_free_a_group_is_parted():
    rows = [row("a", 0, 1000, READS), row("b", 0, 1000, COMPUTES), row("c", 0, 100, COMPUTES)]
    outcome = run(rows, "1x2", Muri())
    assert ended(outcome)["a"] < 1000 * OVERHEADS[2]
    assert ended(outcome)["b"] < 1000 * OVERHEADS[2]


def test_what_is_shorter_goes_first_where_lengths_are_known_and_what_had_less_where_they_are_not():
    alike: Stages = (0.0, 1.0, 0.0)
    rows = [row("long", 0, 1000, alike), row("short", 500, 600, alike)]
    assert ended(run(rows, "1x1", Muri(knows_lengths=True)))["long"] < 1100  # has less left than the other when that one comes
    unknown = ended(run(rows, "1x1", Muri(knows_lengths=False), knows_total=False))
    assert unknown["short"] < 1200
    assert unknown["long"] > 1500


def test_all_jobs_of_random_traces_end_whatever_has_to_move():
    rng = random.Random(3)
    for knows_lengths in (True, False):
        rows = [
            row(f"j{n}", rng.random() * 3000, rng.randrange(50, 800), (rng.random(), rng.random(), rng.random()),
                rng.choice((1, 1, 2, 4)))
            for n in range(30)
        ]  # fmt: skip
        rows = [replace(each, start_s=rng.random() * 20) for each in rows]
        outcome = run(rows, "2x4", Muri(knows_lengths=knows_lengths))
        assert len(outcome.jobs) == 30
        assert max(outcome.jobs, key=lambda job: job.ended_s).ended_s < 20_000


def test_with_nothing_new_nothing_moves():
    rng = random.Random(4)
    rows = [row(f"j{n}", 0, 10_000, (rng.random(), rng.random(), rng.random()), rng.choice((1, 2))) for n in range(12)]
    policy = Muri(knows_lengths=False)
    simulation = Checked(rows, machines("1x4"), Interleaved(), policy, SimConfig(delays=Delays(start_s=5.0)))
    simulation.run_until(100.0)
    now = replace(simulation.state.snapshot(1000.0), forecast=simulation.forecast)
    intended = {each.id: each.intended for each in now.jobs if each.intended}
    assert 4 <= len(intended) < 12  # some share, some wait
    assert policy.decide(now).placements == intended


def snapshot(*jobs: Job) -> Snapshot:
    node = Node(name="a", address="a", devices=(Device(index=0),))
    return Snapshot(now_s=10.0, nodes=(node,), jobs=jobs)


def job(id: str, profile: Profile, share: ShareSpec | None = None) -> Job:
    return Job(id=id, spec=JobSpec(command=("x",), steps=100, share=share or ShareSpec()), profile=profile)


READER = Profile(step_s=1.0, data_s=0.9, exposed_s=0.05, alone_step_s=1.0)
COMPUTER = Profile(step_s=1.0, data_s=0.05, exposed_s=0.05, alone_step_s=1.0)


def test_without_a_forecast_the_stages_are_what_was_measured_of_the_job():
    reader = job("a", READER)
    assert stages_of(snapshot(reader), reader) == pytest.approx((0.9, 0.05, 0.05))
    assert stages_of(snapshot(reader), job("new", Profile())) is None
    schedule = Muri().decide(snapshot(reader, job("b", COMPUTER)))
    assert {id: [slot.share for slot in there] for id, there in schedule.placements.items()} == {"a": [0.5], "b": [0.5]}
    assert schedule.sharing["a"].partners == ("b",)
    assert schedule.sharing["a"].mode == "interleave"


def test_jobs_that_do_not_fit_a_device_together_do_not_share_it():
    node = Node(name="a", address="a", devices=(Device(index=0, memory_bytes=100),))
    large = [replace(job(id, replace(each, memory_bytes=80, valley_bytes=60))) for id, each in (("a", READER), ("b", COMPUTER))]
    placed = [replace(each, intended=parse_placement("a:0@0.5")) for each in large]
    schedule = Muri().decide(Snapshot(now_s=10.0, nodes=(node,), jobs=tuple(placed)))
    assert len(schedule.placements) == 1


def test_what_was_not_known_of_a_job_is_looked_at_when_it_is():
    policy, new = Muri(), job("b", Profile())
    assert len(policy.decide(snapshot(job("a", READER), new)).placements) == 1
    assert len(policy.decide(snapshot(job("a", READER), replace(new, profile=COMPUTER))).placements) == 2


def test_who_may_not_share_does_not():
    alone = job("b", COMPUTER, ShareSpec(allow=False))
    schedule = Muri().decide(snapshot(job("a", READER), alone))
    assert {id: [slot.share for slot in there] for id, there in schedule.placements.items()} == {"a": [1.0]}
