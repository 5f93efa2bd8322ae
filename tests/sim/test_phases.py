"""Jobs that change while they train: how fast they are, what they say of themselves, and Shockwave's rules for batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from restow.errors import TraceError
from restow.policies.fifo import Fifo
from restow.policies.las import Las
from restow.sim.delays import Delays
from restow.sim.machines import machines
from restow.sim.phases import Phase
from restow.sim.rows import Row
from restow.sim.shockwave import ShockwaveWorld
from restow.sim.simulation import SimConfig, Simulation
from restow.sim.world import Recorded
from tests.sim.test_simulation import Checked


class Growing(Recorded):
    """A step is a second; after 100 steps it is four, and half as many as it had left are left."""

    def phases(self, row: Row) -> Sequence[Phase]:
        work = self.work(row)
        if row.plan != "grows":
            return (Phase(row=row, steps=work, steps_total=work),)
        slow = replace(row, model="slow")
        rest = (work - 100) / 2
        return (Phase(row=row, steps=100, steps_total=work), Phase(row=slow, steps=rest, steps_total=100 + rest))

    def step_s(self, row, placement, nodes, beside=()):
        return 4.0 if row.model == "slow" else 1.0


def grows(id: str = "g", submitted_s: float = 0.0) -> Row:
    return Row(id=id, submitted_s=submitted_s, workers=1, duration_s=300, plan="grows")


def test_a_job_is_slower_from_the_step_on_at_which_it_changes():
    outcome = Checked([grows()], machines("1x1"), Growing(), Fifo()).run()
    assert outcome.jobs[0].ended_s == pytest.approx(100 + 100 * 4)
    assert outcome.jobs[0].alone_s == pytest.approx(500)


def test_nobody_knows_of_a_change_before_it():
    simulation = Simulation([grows()], machines("1x1"), Growing(), Fifo())
    simulation.run_until(50)
    job = simulation.state.records["g"].job
    assert (job.steps_wanted, job.profile.step_s, simulation.forecast.alone_s(job)) == (300, 1.0, 1.0)
    before = simulation.forecast.alike(job)
    simulation.run_until(100)
    job = simulation.state.records["g"].job
    assert (job.steps_wanted, job.profile.step_s, simulation.forecast.alone_s(job)) == (200, 4.0, 4.0)
    assert simulation.forecast.alike(job) != before


def test_a_job_that_is_suspended_at_any_time_makes_all_its_steps_in_each_phase():
    for other_s in (99.0, 99.5, 100.0, 101.0, 250.0):
        rows = [grows(), Row(id="o", submitted_s=other_s, workers=1, duration_s=40)]
        outcome = Checked(rows, machines("1x1"), Growing(), Las(levels_s=()), SimConfig(delays=Delays(), look_s=10.0)).run()
        assert outcome.makespan_s == pytest.approx(540, abs=8)  # the gang trains on until the step at which it was to stop
        assert any(job.suspensions for job in outcome.jobs)


SPEEDS = {("LM (batch size 20)", 1): 8.0, ("LM (batch size 40)", 1): 6.0, ("LM (batch size 80)", 1): 4.0}


def shockwave(folder: Path, speeds: dict[tuple[str, int], float] = SPEEDS) -> ShockwaveWorld:
    path = folder / "speeds.json"
    path.write_text(json.dumps({"v100": {str(key): {"null": speed} for key, speed in speeds.items()}}))
    return ShockwaveWorld(path)


def lm(plan: str, epochs: float, batch: int = 20) -> Row:
    return Row(id="lm", submitted_s=0, workers=1, steps=epochs * -(-59_675 // batch), model=f"LM (batch size {batch})", plan=plan)


def batches(world: ShockwaveWorld, row: Row) -> list[tuple[str, float]]:
    return [(phase.row.model, phase.steps) for phase in world.phases(row)]


def test_a_static_job_and_one_that_has_the_largest_batch_never_change(tmp_path):
    world = shockwave(tmp_path)
    assert batches(world, lm("static", 50)) == [("LM (batch size 20)", 50 * 2984)]
    assert batches(world, lm("gns", 50, batch=80)) == [("LM (batch size 80)", 50 * 746)]


def test_with_gns_the_batch_doubles_at_the_epochs_of_the_table_and_the_epochs_stay_as_many(tmp_path):
    phases = shockwave(tmp_path).phases(lm("gns", 50.5))
    assert [(phase.row.model, phase.steps) for phase in phases] == [
        ("LM (batch size 20)", 11 * 2984), ("LM (batch size 40)", 30 * 1492), ("LM (batch size 80)", 9.5 * 746),
    ]  # fmt: skip
    assert [phase.steps_total for phase in phases] == [
        50.5 * 2984, 11 * 2984 + 39.5 * 1492, 11 * 2984 + 30 * 1492 + 9.5 * 746,
    ]  # fmt: skip


def test_with_accordion_the_largest_batch_is_taken_outside_of_the_critical_epochs(tmp_path):
    world = shockwave(tmp_path)
    assert batches(world, lm("accordion", 12)) == [("LM (batch size 20)", 10 * 2984), ("LM (batch size 80)", 2 * 746)]
    assert batches(world, lm("accordion", 10)) == [("LM (batch size 20)", 10 * 2984)]
    small, large = ("ResNet-50 (batch size 64)", 1), ("ResNet-50 (batch size 128)", 1)
    row = Row(id="r", submitted_s=0, workers=1, steps=45 * 1563, model=small[0], plan="accordion")
    assert batches(shockwave(tmp_path, {small: 3.0, large: 1.6}), row) == [
        (small[0], 10 * 1563), (large[0], 20 * 782), (small[0], 10 * 1563), (large[0], 5 * 782),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (lm("grows", 50), "its plan is 'grows'; it is static, accordion or gns"),
        (lm("gns", 500_000), "more than 100000 is a mistake"),
        (replace(lm("gns", 50), model="BERT (batch size 20)"), "is not in speeds.json"),
        (replace(lm("gns", 50), workers=2), "is not in speeds.json"),
    ],
)
def test_what_is_not_known_is_told_in_one_line(tmp_path, row, message):
    with pytest.raises(TraceError, match=message) as caught:
        shockwave(tmp_path).phases(row)
    assert "\n" not in str(caught.value)


def test_a_model_of_the_table_that_shockwave_does_not_know_is_told(tmp_path):
    world = shockwave(tmp_path, {("BERT (batch size 8)", 1): 1.0})
    with pytest.raises(TraceError, match="its model is 'BERT"):
        world.phases(Row(id="b", submitted_s=0, workers=1, steps=5, model="BERT (batch size 8)", plan="gns"))
