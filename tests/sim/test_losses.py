"""Machines that fail and come back in virtual time: what the very same core makes of it, and that a seed says all of it."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from restow.errors import Refused
from restow.messages import NodeJoined, NodeLost
from restow.own_policies import find_policy
from restow.policies.base import Policy
from restow.policies.fifo import Fifo
from restow.policies.restow import Restow
from restow.sim.delays import Delays
from restow.sim.losses import LossConfig
from restow.sim.machines import machines
from restow.sim.outcome import Outcome
from restow.sim.recorder import Recorder, Went
from restow.sim.rows import Row
from restow.sim.simulation import SimConfig
from restow.sim.stragglers import StragglerConfig
from restow.sim.world import Recorded
from tests.sim.test_simulation import LONG, Checked, ends, random_rows

NEVER_S = 1e12  # what fails does so because a test says so


def lossy(
    rows: list[Row], cluster: str, policy: Policy, fails: list[tuple[float, str]], *, recorder: Recorder | None = None,
    delays: Delays | None = None, **losses: Any,
) -> Outcome:  # fmt: skip
    """`fails`: which machine fails when."""
    config = SimConfig(losses=LossConfig(mtbf_s=NEVER_S, **losses), delays=delays or Delays())
    simulation = Checked(rows, machines(cluster), Recorded(), policy, config, recorder)
    for time_s, node in fails:
        simulation.clock.at(time_s, lambda node=node: simulation.losses.fail(node))
    return simulation.run()


def test_a_gang_that_loses_a_rank_goes_on_from_the_others_and_loses_no_step():
    outcome = lossy([LONG], "3x1", Fifo(), [(50.0, "gpu-0")], delays=Delays(resume_s=7.0))
    assert ends(outcome) == {"long": 100 + 1 + 7}  # a second until it is noticed
    assert (outcome.failures, outcome.lost_steps, outcome.lost_device_s) == (1, 0, 0.0)


def test_with_no_machine_to_spare_its_ranks_take_turns_where_the_policy_wants_that():
    """Two ranks on one device: the other half takes twice as long."""
    assert ends(lossy([LONG], "2x1", Restow(), [(50.0, "gpu-0")], repair_s=1e6)) == {"long": 50 + 1 + 2 * 50}
    assert ends(lossy([LONG], "2x1", Fifo(), [(50.0, "gpu-0")], repair_s=300.0)) == {"long": 50 + 300 + 50}


def test_a_gang_of_which_nothing_is_left_waits_for_its_machine_and_begins_anew():
    outcome = lossy([LONG], "2x2", Fifo(), [(50.0, "gpu-0")], repair_s=300.0)
    assert ends(outcome) == {"long": 50 + 300 + 100}
    assert (outcome.lost_steps, outcome.lost_device_s) == (50, 100.0)


def test_one_with_a_checkpoint_goes_on_elsewhere_and_makes_only_the_steps_since_again():
    outcome = lossy([LONG], "2x2", Fifo(), [(50.0, "gpu-0")], repair_s=1e6, checkpoint_s=20.0)
    assert 0 < outcome.lost_steps < 25
    assert 50 + 60 + 50 < ends(outcome)["long"] < 50 + 60 + 100  # a minute is waited for the machine, which has a later state


def test_a_suspended_jobs_state_outlives_its_machine():
    rows = [LONG, Row(id="short", submitted_s=10, workers=2, duration_s=20)]
    outcome = lossy(rows, "1x2", find_policy("srtf"), [(20.0, "gpu-0")], repair_s=100.0)
    assert outcome.lost_steps == 7  # of the short one, which ran from 13 s on
    assert ends(outcome) == {"short": 120 + 20, "long": 120 + 20 + 87}


def test_a_job_that_would_never_end_is_told_in_one_line():
    config = SimConfig(losses=LossConfig(mtbf_s=60.0, repair_s=0.0))
    rows = [Row(id="endless", submitted_s=0, workers=1, duration_s=1e5)]
    with pytest.raises(Refused, match="job endless never comes to its end: rank 0 on gpu-0 was ended"):
        Checked(rows, machines("1x1"), Recorded(), Fifo(), config).run()


@pytest.mark.parametrize("name", ["fifo", "srtf", "las", "restow", "gandiva", "edf"])
@pytest.mark.parametrize("checkpoint_s", [0.0, 30.0])
def test_every_job_ends_whatever_the_policy_and_machines_fail_at_the_same_times(name, checkpoint_s):
    """The core's invariants are held after each event."""
    losses = LossConfig(mtbf_s=400.0, repair_s=60.0, checkpoint_s=checkpoint_s)
    config = SimConfig(losses=losses, look_s=20.0, delays=Delays(start_s=2.0, resume_s=3.0, move_s=1.0), seed=4)
    simulation = Checked(random_rows(3, jobs=20), machines("4x2"), Recorded(), find_policy(name), config)
    outcome = simulation.run()
    assert len(outcome.jobs) == 20
    assert outcome.failures > 5
    lost = [(event.node, event.time_s) for event in simulation.history if isinstance(event, NodeLost)]
    back = [event for event in simulation.history if isinstance(event, NodeJoined)]
    assert len(back) > len(lost)  # as many as were lost, and those that were there from the beginning
    for node, time_s in lost[:3]:
        chances = random.Random(f"failures 4 {node}")
        first_s = chances.expovariate(1.0 / 400.0)
        assert time_s == pytest.approx(first_s + 1.0) or time_s > first_s + 60.0


def test_what_is_recorded_tells_losses_from_suspensions():
    recorder = Recorder()
    lossy([LONG], "3x1", Fifo(), [(50.0, "gpu-0")], recorder=recorder)
    first, second = recorder.stays
    assert (first.went, second.went) == (Went.LOST, Went.ENDED)
    assert first.went_why == "node gpu-0 was lost (no answer for 1 s), and rank 0 with it; goes on from step 50"


def digest(seed: int) -> str:
    """Of all events of a run with losses, checkpoints and stragglers."""
    config = SimConfig(
        losses=LossConfig(mtbf_s=500.0, repair_s=80.0, checkpoint_s=40.0), delays=Delays(resume_s=3.0), look_s=30.0, seed=seed,
        stragglers=StragglerConfig(times=3.0, every_s=600.0, lasts_s=120.0),
    )  # fmt: skip
    simulation = Checked(random_rows(7), machines("4x2"), Recorded(), Restow(), config)
    simulation.run()
    return hashlib.sha256("\n".join(map(str, simulation.history)).encode()).hexdigest()


def test_the_same_seed_gives_the_same_events_in_every_process_and_another_seed_gives_others():
    words = "from tests.sim.test_losses import digest; print(digest(1))"
    found = {
        subprocess.run(
            [sys.executable, "-c", words], cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True, text=True, check=True,
        ).stdout.strip()
        for hash_seed in ("0", "1", "77")
    }  # fmt: skip
    assert found == {digest(1)}
    assert digest(2) not in found
