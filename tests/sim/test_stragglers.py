"""Devices that are slow for a time: whom they slow down, and what the very same core makes of it."""

from __future__ import annotations

from restow.messages import RankSlow
from restow.policies.base import Policy
from restow.policies.fifo import Fifo
from restow.policies.restow import Restow
from restow.sim.machines import machines
from restow.sim.rows import Row
from restow.sim.simulation import SimConfig
from restow.sim.stragglers import StragglerConfig
from restow.sim.world import Recorded
from tests.sim.test_simulation import LONG, Checked, ends

SMALL = Row(id="small", submitted_s=0, workers=1, duration_s=50)
NEVER_S = 1e12  # what becomes slow does so because a test says so


def slowed(
    rows: list[Row], cluster: str, policy: Policy, *, times: float = 3.0, lasts_s: float = 30.0, device: int = 0
) -> Checked:  # fmt: skip
    """A run in which a device of the first machine becomes slow after 30 s."""
    config = SimConfig(stragglers=StragglerConfig(times=times, every_s=NEVER_S, lasts_s=lasts_s))
    simulation = Checked(rows, machines(cluster), Recorded(), policy, config)
    simulation.clock.at(30.0, lambda: simulation.stragglers.slow_down(("gpu-0", device)))
    return simulation


def test_a_gang_is_as_slow_as_its_slowest_rank_as_long_as_that_lasts():
    """In 30 s it makes 10 steps; who is not on that device is as fast as ever."""
    outcome = slowed([LONG, SMALL], "1x3", Fifo()).run()
    assert ends(outcome) == {"long": 30 + 30 + 60, "small": 50}
    assert (outcome.stragglers, outcome.failures) == (1, 0)


def test_a_rank_that_is_slow_for_long_is_named_and_moved_to_a_free_device():
    simulation = slowed([LONG], "1x3", Restow(), lasts_s=1000.0, device=1)
    outcome = simulation.run()
    named = [event for event in simulation.history if isinstance(event, RankSlow)]
    assert [(event.rank, event.own_s, event.others_s, event.time_s) for event in named] == [(1, 3.0, 1.0, 61.0)]
    assert outcome.jobs[0].moves == 1
    assert ends(outcome)["long"] < 30 + 50 + 70  # some 15 steps were slow


def test_who_is_not_twice_as_slow_is_not_named_and_slow_ranks_stay_where_nothing_is_free():
    mild = slowed([LONG], "1x3", Restow(), times=1.9, lasts_s=1000.0)
    assert ends(mild.run()) == {"long": 30 + 1.9 * 70}
    assert not [event for event in mild.history if isinstance(event, RankSlow)]
    assert ends(slowed([LONG], "1x2", Restow(), lasts_s=1000.0).run()) == {"long": 30 + 3 * 70}


def test_of_several_slow_devices_each_counts_until_it_is_as_fast_as_before():
    simulation = slowed([LONG], "1x2", Fifo())
    simulation.clock.at(45.0, lambda: simulation.stragglers.slow_down(("gpu-0", 1)))
    assert ends(simulation.run()) == {"long": 30 + 45 + 55}  # from 30 s to 75 s it makes 15 steps
