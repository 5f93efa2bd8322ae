"""What is kept of a run: where each job was and why, how full the cluster was, and what was cut."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from restow.cluster import Snapshot
from restow.placement import Schedule, devices_held, parse_placement
from restow.policies.base import Policy
from restow.policies.las import Las
from restow.policies.restow import Restow
from restow.policies.srtf import Srtf
from restow.sim import history as bounds
from restow.sim.delays import Delays
from restow.sim.history import History, history
from restow.sim.machines import Machines, machines
from restow.sim.recorder import Came, Recorder, Stay, Went
from restow.sim.rows import Row
from restow.sim.simulation import SimConfig, Simulation
from restow.sim.world import Recorded

LONG = Row(id="long", submitted_s=0, workers=2, duration_s=100)
SHORT = Row(id="short", submitted_s=10, workers=2, duration_s=20)


def recorded(rows: list[Row], cluster: str, policy: Policy, **config: Any) -> list[Stay]:
    recorder = Recorder()
    Simulation(rows, machines(cluster), Recorded(), policy, SimConfig(**config), recorder).run()
    return recorder.stays


def stay(job: str, where: str, from_s: float, to_s: float, **fields: Any) -> Stay:
    known: dict[str, Any] = {"came": Came.STARTED, "came_why": "", "went": Went.ENDED, "went_why": ""}
    return Stay(job=job, placement=parse_placement(where), from_s=from_s, to_s=to_s, **{**known, **fields})


def seen(stays: list[Stay], cluster: Machines, from_s: float = 0.0) -> History:
    return history(stays, cluster, from_s)


def test_who_steps_aside_is_told_with_the_reason_of_the_policy():
    stays = recorded([LONG, SHORT], "1x2", Srtf(), delays=Delays(resume_s=3.0))
    told = [(s.job, s.from_s, s.to_s, s.came, s.went, s.went_why) for s in stays]
    assert told == [
        ("long", 0, 13, Came.STARTED, Went.SUSPENDED, "waits for 2 devices, 0 are left by those before it"),
        ("short", 13, 33, Came.STARTED, Went.ENDED, ""),
        ("long", 33, 123, Came.RESUMED, Went.ENDED, ""),
    ]
    assert stays[2].came_why == "starts, since it is its turn"


class Together:
    """Brings a gang together at its time; for a while it gets half of its devices."""

    def decide(self, snapshot: Snapshot) -> Schedule:
        now_s = snapshot.now_s
        where = "gpu-0:0 gpu-1:0" if now_s < 20 else "gpu-1:1 gpu-1:0" if now_s < 60 else "gpu-1:1@0.5 gpu-1:0@0.5"
        schedule = Schedule()
        for job in snapshot.jobs:
            schedule.put(job.id, parse_placement(where), f"at {now_s:.0f} s")
        return schedule

    plan = decide


def test_moves_and_shares_are_told_with_where_and_why():
    found = seen(recorded([LONG], "2x2", Together(), look_s=10.0, delays=Delays(move_s=0.0)), machines("2x2"))
    told = [(c.job, c.what, [str(slot) for slot in c.now], [str(slot) for slot in c.then], c.why) for c in found.changes]
    assert told == [
        ("long", "moved", ["gpu-0:0", "gpu-1:0"], ["gpu-1:1", "gpu-1:0"], "at 20 s"),
        ("long", "reshared", ["gpu-1:1", "gpu-1:0"], ["gpu-1:1@0.5", "gpu-1:0@0.5"], "at 60 s"),
    ]


def test_a_run_that_is_recorded_is_the_same_run():
    config = SimConfig(look_s=20.0, delays=Delays(resume_s=2.0))
    rows = [replace(LONG, id=f"long-{n}", submitted_s=7.0 * n) for n in range(5)]
    plain = Simulation(rows, machines("2x2"), Recorded(), Srtf(), config).run()
    watched = Simulation(rows, machines("2x2"), Recorded(), Srtf(), config, Recorder()).run()
    assert (plain.jobs, plain.events) == (watched.jobs, watched.events)


@pytest.mark.parametrize("policy", [Las(levels_s=(50.0, 400.0)), Restow()], ids=str)
def test_what_is_recorded_is_what_the_core_has_counted(policy):
    """For random jobs: device seconds, and how often each was moved and suspended."""
    rng = random.Random(5)
    rows = [
        Row(id=f"job-{n}", submitted_s=rng.uniform(0, 400), workers=rng.choice([1, 1, 2, 3, 4]), duration_s=rng.uniform(20, 300))
        for n in range(25)
    ]  # fmt: skip
    recorder = Recorder()
    config = SimConfig(look_s=20.0, delays=Delays(resume_s=2.0))
    outcome = Simulation(rows, machines("3x4"), Recorded(), policy, config, recorder).run()
    changes = Counter((change.job, change.what) for change in seen(recorder.stays, machines("3x4")).changes)
    for job in outcome.jobs:
        stays = [stay for stay in recorder.stays if stay.job == job.id]
        held_s = sum(devices_held(stay.placement) * (stay.to_s - stay.from_s) for stay in stays)
        assert held_s == pytest.approx(job.service_s)
        assert (changes[job.id, "moved"], changes[job.id, "suspended"]) == (job.moves, job.suspensions)


def test_fullness_is_the_mean_of_each_part_of_the_time():
    """Four devices on two machines for 240 s, a part a second. From 120 s on one is held on each, for the last second of the first
    half also a half of another."""
    stays = [stay("a", "gpu-0:0", 0, 240), stay("b", "gpu-1:1", 120, 240), stay("c", "gpu-1:0@0.5", 119.5, 120)]
    full = seen(stays, machines("2x2")).fullness
    assert len(full) == 240
    assert (full[0].held, full[0].together) == (0.25, pytest.approx(2 / 3))
    assert full[119].held == pytest.approx(0.25 + 0.5 * 0.125)
    assert full[119].together == pytest.approx((2 / 2) / (3 / 2 + 2 / 2))  # two together for half of it; then none of two
    assert (full[239].held, full[239].together) == (0.5, 0.0)


def test_where_all_is_held_nothing_is_together():
    assert {part.together for part in seen([stay("a", "gpu-0:0", 0, 9)], machines("1x1")).fullness} == {None}


def test_who_shares_a_device_has_a_part_of_its_height_and_a_gang_is_one_bar():
    stays = [
        stay("gang", "gpu-0:0 gpu-0:1", 0, 5), stay("left", "gpu-0:0@0.5", 5, 20), stay("right", "gpu-0:0@0.5", 6, 9),
        stay("next", "gpu-0:0@0.5", 9, 12),
    ]  # fmt: skip
    found = seen(stays, machines("1x2"))
    assert [(bar.job, bar.row, bar.rows, bar.offset, bar.share) for bar in found.bars] == [
        ("gang", 0, 2, 0.0, 1.0), ("left", 0, 1, 0.0, 0.5), ("right", 0, 1, 0.5, 0.5), ("next", 0, 1, 0.5, 0.5),
    ]  # fmt: skip


def test_what_is_too_much_is_cut_and_counted(monkeypatch):
    monkeypatch.setattr(bounds, "BARS_MAX", 3)
    monkeypatch.setattr(bounds, "CHANGES_MAX", 2)
    monkeypatch.setattr(bounds, "DEVICES_MAX", 5)
    stays = [stay(f"job-{n}", "gpu-0:0", 10 * n, 10 * n + 9, went=Went.SUSPENDED) for n in range(6)]
    found = seen(stays, machines("4x2"))
    assert found.rows == (("gpu-0", 0), ("gpu-0", 1), ("gpu-1", 0), ("gpu-1", 1))
    assert found.devices == 8
    assert (len(found.bars), found.bars_to_s, found.to_s) == (3, 30, 59)
    assert ([change.job for change in found.changes], found.changes_all) == (["job-0", "job-1"], 6)


def test_of_one_huge_machine_the_first_devices_are_drawn():
    found = seen([stay("a", "gpu-0:500", 0, 5)], machines("1x1000"))
    assert len(found.rows) == 64
    assert found.bars == ()
