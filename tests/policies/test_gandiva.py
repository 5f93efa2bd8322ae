"""Gandiva: time slices, pairs by trial, and moves of whoever is placed worst."""

from __future__ import annotations

import pytest

from restow.policies.gandiva.policy import Gandiva
from restow.sim.delays import Delays
from restow.sim.machines import machines
from restow.sim.outcome import Outcome
from restow.sim.rows import Row
from restow.sim.simulation import SimConfig, Simulation
from tests.policies.peers import is_steady
from tests.policies.test_worth import Speeds, random_world, row
from tests.sim.test_simulation import Checked

ALONE = Speeds()
"""No two can be packed: none was measured beside another."""


def simulation(rows: list[Row], cluster: str, world: Speeds, policy: Gandiva | None = None, look_s: float = 60.0) -> Simulation:
    config = SimConfig(look_s=look_s, delays=Delays(move_s=2.0, resume_s=2.0))
    return Checked(rows, machines(cluster), world, policy or Gandiva(), config)


def run(rows: list[Row], cluster: str, world: Speeds, policy: Gandiva | None = None) -> Outcome:
    return simulation(rows, cluster, world, policy).run()


def where(found: Simulation, time_s: float) -> dict[str, str]:
    """Job → its devices at that time."""
    found.run_until(time_s)
    return {id: " ".join(map(str, job.placement)) for id, job in found.state.jobs.items() if not job.state.is_final}


def test_who_waits_is_let_in_and_both_take_turns():
    outcome = run([row("a", 0, 1, 300), row("b", 10, 1, 300)], "1x1", ALONE)
    assert outcome.jobs[1].started_s <= 123
    assert all(job.suspensions >= 3 for job in outcome.jobs)
    assert min(job.ended_s for job in outcome.jobs) > 500


def test_nobody_is_suspended_as_long_as_there_is_room():
    outcome = run([row("a", 0, 1, 300), row("b", 10, 1, 300)], "1x2", ALONE)
    assert outcome.changes == 0


def test_those_that_get_on_are_packed_and_stay_so():
    world = Speeds(pairs={("a", "b"): 0.8, ("b", "a"): 0.7})
    found = simulation([row("a", 0, 1, 300), row("b", 10, 1, 300)], "1x1", world)
    assert where(found, 20) == where(found, 250) == {"a": "gpu-0:0@0.5", "b": "gpu-0:0@0.5"}
    assert found.state.jobs["a"].sharing.partners == ("b",)
    outcome = found.run()
    assert outcome.changes == 0
    a_s = 10 + 290 / 0.8
    assert {job.id: job.ended_s for job in outcome.jobs} == pytest.approx({"a": a_s, "b": a_s + 300 - (a_s - 10) * 0.7})


def test_a_pair_of_which_the_sum_of_speeds_falls_is_undone_and_not_tried_again():
    """Tried for half a minute, until the next look; then they take turns, and so do two others like them."""
    world = Speeds(pairs={(one, other): 0.45 for one in "xy" for other in "xy"})
    rows = [row("a", 0, 1, 500, "x"), row("b", 10, 1, 500, "y"), row("c", 200, 1, 100, "x")]
    found = simulation(rows, "1x1", world)
    assert where(found, 50) == {"a": "gpu-0:0@0.5", "b": "gpu-0:0@0.5"}
    for time_s in (130, 190):
        assert sorted(where(found, time_s).values()) == ["", "gpu-0:0"]
    assert {job.id for job in found.run().jobs} == {"a", "b", "c"}


def test_where_there_is_room_again_a_pair_is_parted():
    world = Speeds(pairs={("a", "b"): 0.8, ("b", "a"): 0.7})
    rows = [row("a", 0, 1, 500), row("b", 10, 1, 500), row("c", 0, 1, 100)]
    found = simulation(rows, "1x2", world)
    assert sorted(where(found, 50).values()) == ["gpu-0:0@0.5", "gpu-0:0@0.5", "gpu-0:1"]
    assert sorted(where(found, 180).values()) == ["gpu-0:0", "gpu-0:1"]


def test_who_is_spread_moves_together_when_a_machine_becomes_free():
    found = simulation([row("a", 0, 3, 100), row("b", 0, 3, 900), row("gang", 1, 2, 500)], "2x4", Speeds(spread=0.4))
    assert len({slot.split(":")[0] for slot in where(found, 50)["gang"].split()}) == 2
    assert len({slot.split(":")[0] for slot in where(found, 150)["gang"].split()}) == 1


@pytest.mark.parametrize("knows_total", [True, False])
def test_every_job_ends_and_what_is_decided_stays_so(knows_total):
    for seed in (2,) if knows_total else (3,):
        rows, world = random_world(seed)
        rows = rows[:30]
        histories = []
        for _ in range(2):
            config = SimConfig(look_s=60.0, delays=Delays(move_s=2.0, resume_s=2.0), knows_total=knows_total)
            found = Checked(rows, machines("2x4:V,1x4:K,2x2:P"), world, Gandiva(), config)
            with is_steady(found):
                assert len(found.run().jobs) == len(rows)
            histories.append(found.history)
        assert histories[0] == histories[1]
