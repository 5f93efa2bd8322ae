"""Even parts of the devices for tenants."""

from __future__ import annotations

import random

import pytest

from restow.policies.fair import Fair
from restow.sim.machines import machines
from restow.sim.rows import Row
from restow.sim.simulation import Simulation
from restow.sim.world import Recorded
from tests.policies.peers import is_steady
from tests.sim.test_simulation import Checked


def row(id: str, submitted_s: float, workers: int, duration_s: float, tenant: str) -> Row:
    return Row(id=id, submitted_s=submitted_s, workers=workers, duration_s=duration_s, tenant=tenant)


def held(simulation: Simulation, time_s: float) -> dict[str, int]:
    """Tenant → devices at that time."""
    simulation.run_until(time_s)
    found: dict[str, int] = {}
    for job in simulation.state.jobs.values():
        found[job.spec.tenant] = found.get(job.spec.tenant, 0) + len(job.placement)
    return found


MANY = [row(f"a{n}", n, 1, 500, "ann") for n in range(8)]
FEW = [row(f"b{n}", 100 + n, 1, 200, "bob") for n in range(3)]


def test_one_tenant_may_have_all_and_gives_back_what_is_more_than_its_part():
    simulation = Checked([*MANY, *FEW], machines("1x4"), Recorded(), Fair())
    assert held(simulation, 90) == {"ann": 4}
    assert held(simulation, 200) == {"ann": 2, "bob": 2}
    assert held(simulation, 700) == {"ann": 4, "bob": 0}


def test_a_tenant_of_more_weight_has_more():
    simulation = Checked([*MANY, *FEW], machines("1x4"), Recorded(), Fair({"bob": 3.0}))
    assert held(simulation, 200) == {"ann": 1, "bob": 3}


def test_gangs_are_whole_and_who_is_next_but_does_not_fit_is_passed_by():
    """Bob has nothing yet, and his gang wants more than Ann's first job leaves."""
    rows = [row("a0", 0, 1, 100, "ann"), row("gang", 1, 4, 50, "bob"), row("a1", 2, 1, 100, "ann")]
    simulation = Checked(rows, machines("1x4"), Recorded(), Fair())
    assert held(simulation, 50) == {"ann": 2, "bob": 0}
    assert simulation.state.jobs["gang"].reason == "waits for 4 devices, 3 are left by those before it"
    assert {job.id: job.started_s for job in simulation.run().jobs}["gang"] == 102


@pytest.mark.parametrize("weights", [{}, {"t0": 2.0}])
def test_every_job_ends_and_what_is_decided_stays_so(weights):
    for seed in range(3):
        rng = random.Random(seed)
        rows = [
            row(f"j{n}", rng.uniform(0, 2000), rng.choice((1, 1, 2, 4, 8)), 10 + rng.expovariate(1 / 200), f"t{rng.randrange(4)}")
            for n in range(50)
        ]
        histories = []
        for _ in range(2):
            simulation = Checked(rows, machines("2x4"), Recorded(), Fair(weights))
            with is_steady(simulation):
                assert len(simulation.run().jobs) == 50
            histories.append(simulation.history)
        assert histories[0] == histories[1]
