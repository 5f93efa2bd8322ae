"""Each device goes to whom it is worth most: small clusters with made-up speeds, then whole traces."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from restow.placement import Placement, is_scattered
from restow.policies.worth.config import WorthConfig
from restow.policies.worth.policy import Worth
from restow.policies.worth.urgency import Urgency
from restow.sim.delays import Delays
from restow.sim.machines import machines
from restow.sim.outcome import Outcome
from restow.sim.rows import Row
from restow.sim.simulation import SimConfig, Simulation
from restow.sim.world import Nodes, kind_of
from tests.sim.test_simulation import Checked


@dataclass
class Speeds:
    """`kinds`: (model, kind) → speed, 1 if not there; `pairs`: (model, partner) → the part that is left of it beside the partner,
    0 if not there; a gang that is spread is slower by `spread`."""

    kinds: dict[tuple[str, str], float] = field(default_factory=dict)
    pairs: dict[tuple[str, str], float] = field(default_factory=dict)
    spread: float = 1.0

    def work(self, row: Row) -> float:
        return row.duration_s

    def step_s(self, row: Row, placement: Placement, nodes: Nodes, beside: Sequence[tuple[Row, Placement]] = ()) -> float:
        speed = self.kinds.get((row.model, kind_of(placement, nodes)), 1.0) * (self.spread if is_scattered(placement) else 1.0)
        for other, _ in beside:
            speed *= self.pairs.get((row.model, other.model), 0.0)
        return 1.0 / speed if speed > 0 else float("inf")

    def alike(self, row: Row) -> object:
        return row.model, row.workers

    def place(self, placement: Placement, nodes: Nodes) -> object:
        return is_scattered(placement)


def row(id: str, submitted_s: float, workers: int, duration_s: float, model: str = "") -> Row:
    return Row(id=id, submitted_s=submitted_s, workers=workers, duration_s=duration_s, model=model or id)


def run(rows: list[Row], cluster: str, world: Speeds, policy: Worth | None = None, **config: object) -> tuple[Outcome, Simulation]:
    sim_config = SimConfig(delays=Delays(move_s=5.0, resume_s=5.0), **config)  # type: ignore[arg-type]
    simulation = Checked(rows, machines(cluster), world, policy or Worth(), sim_config)
    return simulation.run(), simulation


def starts(outcome: Outcome) -> dict[str, float]:
    return {job.id: job.started_s for job in outcome.jobs}


def test_a_job_is_started_on_the_kind_that_suits_it_best():
    world = Speeds(kinds={("a", "K"): 0.25, ("b", "K"): 0.9})
    outcome, _ = run([row("a", 0, 1, 1000), row("b", 0, 1, 900)], "1x1:V,1x1:K", world)
    ended = {job.id: job.ended_s for job in outcome.jobs}
    assert ended["a"] <= 1025  # b is shorter and so comes first, but it loses little on the other: they change places
    assert ended["b"] == pytest.approx(1000, rel=0.03)


def test_a_short_job_takes_the_device_of_a_long_one_which_goes_on_afterwards():
    outcome, _ = run([row("long", 0, 1, 10_000), row("short", 100, 1, 200)], "1x1", Speeds())
    assert starts(outcome) == {"long": 0, "short": 103}  # the step at which the long one stops is three ahead
    assert {job.id: job.suspensions for job in outcome.jobs} == {"long": 1, "short": 0}
    assert outcome.makespan_s == pytest.approx(10_205)


def test_a_job_that_is_not_much_shorter_waits():
    outcome, _ = run([row("long", 0, 1, 10_000), row("other", 100, 1, 6000)], "1x1", Speeds())
    assert starts(outcome)["other"] == 10_000
    assert outcome.changes == 0


def test_where_both_get_on_well_they_share_and_nobody_is_suspended():
    world = Speeds(pairs={("long", "short"): 0.8, ("short", "long"): 0.7})
    outcome, _ = run([row("long", 0, 1, 10_000), row("short", 100, 1, 200)], "1x1", world)
    assert starts(outcome) == {"long": 0, "short": 100}
    assert outcome.changes == 0
    ended = {job.id: job.ended_s for job in outcome.jobs}
    assert ended["short"] == pytest.approx(100 + 200 / 0.7)
    assert ended["long"] == pytest.approx(10_000 + 0.2 * 200 / 0.7)


def test_gangs_of_other_sizes_and_jobs_that_may_not_share_are_left_alone():
    world = Speeds(pairs={("long", "pair"): 0.9, ("pair", "long"): 0.9})
    outcome, _ = run([row("long", 0, 1, 1000), row("pair", 10, 2, 900)], "1x2", world)
    assert starts(outcome)["pair"] == 1000


def test_a_gang_that_loses_much_by_it_is_not_spread_and_one_that_does_not_is():
    rows = [row("one", 0, 1, 500), row("two", 0, 1, 500), row("gang", 1, 2, 600)]
    outcome, _ = run(rows, "2x2", Speeds(spread=0.4))
    assert starts(outcome)["gang"] == 1  # one and two lie on one machine
    slow, _ = run([row("one", 0, 1, 500), row("two", 0, 2, 500), row("gang", 1, 2, 600)], "1x3,1x1", Speeds(spread=0.4))
    assert starts(slow)["gang"] == 500
    quick, _ = run([row("one", 0, 1, 500), row("two", 0, 2, 500), row("gang", 1, 2, 600)], "2x2,1x1", Speeds(spread=0.95))
    assert starts(quick)["gang"] == 1


def test_a_job_moves_to_a_faster_device_that_becomes_free_when_enough_is_left_of_it():
    world = Speeds(kinds={("slow", "K"): 0.5, ("first", "K"): 0.1})
    outcome, _ = run([row("first", 0, 1, 400), row("slow", 1, 1, 2000)], "1x1:V,1x1:K", world)
    assert {job.id: job.moves for job in outcome.jobs} == {"first": 0, "slow": 1}
    assert {job.id: job.ended_s for job in outcome.jobs}["slow"] == pytest.approx(400 + 5 + 2000 - 399 * 0.5, rel=0.002)


def test_two_that_are_each_on_the_others_better_kind_change_places():
    """a came first and took V, which it does not need; b gains four times as much from it. Where b, whose end is farther away, is
    more urgent, too, it does not wait for the change, but takes V at once."""
    calm = Worth(WorthConfig(urgency=Urgency(most=0.0)))
    world = Speeds(kinds={("a", "V"): 1.0, ("a", "K"): 0.9, ("b", "K"): 0.2})
    rows = [row("a", 0, 1, 20_000), row("b", 1, 1, 20_000)]
    for policy, changes in ((calm, {"a": 1, "b": 1}), (Worth(), {"a": 1, "b": 0})):
        outcome, _ = run(rows, "1x1:V,1x1:K", world, policy)
        assert {job.id: job.suspensions + job.moves for job in outcome.jobs} == changes
        assert max(job.ended_s for job in outcome.jobs) < 23_000


def test_of_a_job_that_does_not_say_how_long_it_is_as_much_is_left_as_it_has_had():
    rows = [row("old", 0, 1, 30_000), row("new", 20_000, 1, 300)]
    outcome, _ = run(rows, "1x1", Speeds(), knows_total=False)
    assert starts(outcome)["new"] == 20_003  # two hours are its benefit of the doubt, against more than five
    young, _ = run([row("old", 0, 1, 30_000), row("new", 3000, 1, 300)], "1x1", Speeds(), knows_total=False)
    assert starts(young)["new"] == 30_000


def test_without_a_forecast_nothing_is_touched():
    from tests.core.obedient import Cluster

    cluster = Cluster("m1:2", 25e6, Worth())
    cluster.submit("a", 1)
    cluster.decide()
    assert cluster.job("a").intended == ()
    assert "nothing is known of how fast jobs are" in cluster.job("a").reason


def random_world(seed: int) -> tuple[list[Row], Speeds]:
    rng = random.Random(seed)
    models = "abcdef"
    kinds = {(model, kind): rng.uniform(0.1, 1.0) for model in models for kind in ("K", "P")}
    pairs = {(one, other): rng.choice((0.0, rng.uniform(0.3, 1.0))) for one in models for other in models}
    rows = [
        row(f"j{n}", rng.uniform(0, 3000), rng.choice((1, 1, 2, 4)), 20 + rng.expovariate(1 / 600), rng.choice(models))
        for n in range(60)
    ]
    return rows, Speeds(kinds, pairs, spread=rng.uniform(0.3, 1.0))


@pytest.mark.parametrize("knows_total", [True, False])
def test_every_job_ends_nothing_moves_when_nothing_is_new_and_the_same_run_gives_the_same_events(knows_total):
    for seed in range(2):
        rows, world = random_world(seed)
        histories = []
        for _ in range(2):
            outcome, simulation = run(rows, "2x4:V,1x4:K,2x2:P", world, knows_total=knows_total)
            histories.append(simulation.history)  # type: ignore[attr-defined]
            assert outcome.changes <= 4 * len(rows)
        assert histories[0] == histories[1]
