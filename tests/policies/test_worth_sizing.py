"""Gangs of any size: each device goes where it brings most, and a change has to pay for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from restow.cluster import Snapshot
from restow.placement import Placement, Schedule, is_scattered
from restow.policies.worth.policy import Worth
from restow.sim.delays import Delays
from restow.sim.machines import machines
from restow.sim.outcome import Outcome
from restow.sim.rows import Row
from restow.sim.simulation import SimConfig
from restow.sim.world import Nodes
from tests.sim.test_simulation import Checked


@dataclass
class Scaling:
    """A gang of k workers is k^power times as fast as one of one, and slower by `spread` on several machines."""

    power: dict[str, float]  # model →
    spread: float = 1.0

    def work(self, row: Row) -> float:
        return row.duration_s

    def step_s(self, row: Row, placement: Placement, nodes: Nodes, beside: Sequence[tuple[Row, Placement]] = ()) -> float:
        speed = len(placement) ** self.power.get(row.model, 0.7)
        return float("inf") if beside else 1.0 / (speed * (self.spread if is_scattered(placement) else 1.0))

    def alike(self, row: Row) -> object:
        return row.model

    def place(self, placement: Placement, nodes: Nodes) -> object:
        return len(placement), is_scattered(placement)


@dataclass
class Told:
    """Worth, and the sizes that it gave: (seconds, job → workers) each time that they were others."""

    sizes: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    worth: Worth = field(default_factory=Worth)

    def decide(self, snapshot: Snapshot) -> Schedule:
        schedule = self.worth.decide(snapshot)
        sizes = {id: len(placement) for id, placement in sorted(schedule.placements.items())}
        if not self.sizes or self.sizes[-1][1] != sizes:
            self.sizes.append((snapshot.now_s, sizes))
        return schedule

    plan = decide


def elastic(id: str, submitted_s: float, duration_s: float, model: str = "") -> Row:
    return Row(id=id, submitted_s=submitted_s, workers=1, elastic=(1, 64), duration_s=duration_s, model=model or id)


def run(rows: list[Row], cluster: str, world: Scaling, **config: float) -> tuple[Outcome, list[tuple[float, dict[str, int]]]]:
    policy = Told()
    sim_config = SimConfig(delays=Delays(start_s=30.0, move_s=30.0, resume_s=30.0), round_s=60.0, **config)  # type: ignore[arg-type]
    return Checked(rows, machines(cluster), world, policy, sim_config).run(), policy.sizes


def ends(outcome: Outcome) -> dict[str, float]:
    return {job.id: job.ended_s for job in outcome.jobs}


def test_a_job_alone_has_all_devices_that_make_it_faster():
    outcome, sizes = run([elastic("a", 0, 8000)], "2x4", Scaling({"a": 1.0}))
    assert sizes[0] == (0.0, {"a": 8})
    assert ends(outcome)["a"] == pytest.approx(30 + 1000)


def test_a_job_that_gains_nothing_has_one():
    _, sizes = run([elastic("a", 0, 1000)], "2x4", Scaling({"a": 0.0}))
    assert sizes == [(0.0, {"a": 1}), (pytest.approx(1080), {})]


def test_who_gains_more_from_devices_has_more():
    _, sizes = run([elastic("good", 0, 5000), elastic("poor", 0, 5000)], "2x4", Scaling({"good": 0.9, "poor": 0.3}))
    assert sizes[0][1]["good"] > sizes[0][1]["poor"] >= 1


def test_a_long_job_makes_room_for_a_short_one_and_grows_again():
    outcome, sizes = run([elastic("long", 0, 50_000), elastic("short", 100, 1500)], "2x4", Scaling({}))
    assert [size.get("long") for _, size in sizes[:3]] == [8, sizes[1][1]["long"], 8]
    assert sizes[1][1]["long"] < sizes[1][1]["short"]
    assert ends(outcome)["short"] < 1000
    assert {job.id: job.suspensions for job in outcome.jobs} == {"long": 2, "short": 0}


def test_with_nothing_new_nothing_changes():
    rows = [elastic(name, 0, duration_s) for name, duration_s in (("a", 20_000), ("b", 9000), ("c", 8000))]
    outcome, sizes = run(rows, "4x4", Scaling({}, spread=0.9))
    first_end_s = min(job.ended_s for job in outcome.jobs)
    assert [at for at, _ in sizes if at < first_end_s] == [0.0]


def test_a_job_that_is_nearly_done_does_not_grow_into_devices_that_become_free():
    """Of b 25 seconds are left when a has gone: to stand still for 30 would not pay."""
    outcome, _ = run([elastic("a", 0, 1000), elastic("b", 0, 1060)], "1x2", Scaling({"a": 0.9, "b": 0.9}))
    assert {job.id: job.suspensions for job in outcome.jobs} == {"a": 0, "b": 0}


def test_a_gang_is_kept_together_where_spreading_costs_much():
    _, sizes = run([elastic("a", 0, 8000)], "2x4", Scaling({"a": 0.5}, spread=0.4))
    assert sizes[0] == (0.0, {"a": 4})


def test_a_job_of_one_size_gets_in_where_the_others_have_much_more():
    rows = [elastic("long", 0, 50_000), Row(id="rigid", submitted_s=100, workers=4, duration_s=600, model="rigid")]
    outcome, sizes = run(rows, "2x4", Scaling({}))
    assert sizes[1] == (120.0, {"long": 4, "rigid": 4})
    assert ends(outcome)["rigid"] < 1000


def test_a_model_that_one_device_cannot_hold_has_as_many_as_it_takes():
    class Large(Scaling):
        def step_s(self, row, placement, nodes, beside=()):
            fits = row.model != "large" or len(placement) >= 4
            return super().step_s(row, placement, nodes, beside) if fits else float("inf")

    rows = [elastic("small", 0, 3000), replace(elastic("large", 0, 600), workers=4)]
    outcome, sizes = run(rows, "2x3", Large({}))
    assert sizes[0][1]["large"] >= 4
    assert max(ends(outcome).values()) < 3000


def test_gangs_have_only_sizes_that_they_may_have():
    class Dividing(Checked):
        def _submit(self, row: Row) -> None:
            super()._submit(row)
            submitted = self.agents.reports.pop()
            spec = replace(submitted.spec, workers=6, workers_min=2, adapts_batch=False)
            self.agents.reports.append(replace(submitted, spec=spec))

    policy = Told()
    Dividing([elastic("a", 0, 500)], machines("1x5"), Scaling({"a": 1.0}), policy, SimConfig(round_s=60.0)).run()
    assert policy.sizes[0] == (0.0, {"a": 3})  # 2, 3 and 6 divide six, and five devices are there
