"""A cluster in virtual time: the core and the policies of the live one, with agents that obey after a while."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from restow.cluster import Snapshot
from restow.core import invariants
from restow.errors import Refused, TraceError
from restow.messages import Event
from restow.placement import Placement, Schedule, parse_placement
from restow.policies.base import Policy
from restow.policies.fifo import Fifo
from restow.policies.las import Las
from restow.policies.restow import Restow
from restow.policies.srtf import Srtf
from restow.sim.delays import Delays
from restow.sim.gavel import GavelWorld
from restow.sim.machines import machines
from restow.sim.outcome import Outcome
from restow.sim.pollux import PolluxWorld
from restow.sim.rows import Row
from restow.sim.simulation import SimConfig, Simulation
from restow.sim.traces import read
from restow.sim.world import Nodes, Recorded

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the published traces (shared/data) are not beside this checkout")

LONG = Row(id="long", submitted_s=0, workers=2, duration_s=100)
SHORT = Row(id="short", submitted_s=10, workers=2, duration_s=20)
SMALL = Row(id="small", submitted_s=15, workers=1, duration_s=5)


class Checked(Simulation):
    """Holds the core's invariants after every event, and keeps them all."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.history: list[Event] = []

    def _observe(self, event: Event) -> None:
        super()._observe(event)
        self.history.append(event)
        invariants.check(self.state)


def run(rows: list[Row], cluster: str, policy: Policy, **config: Any) -> Outcome:
    return Checked(rows, machines(cluster), Recorded(), policy, SimConfig(**config)).run()


def ends(outcome: Outcome) -> dict[str, float]:
    return {job.id: round(job.ended_s, 6) for job in outcome.jobs}


def test_first_come_first_served():
    assert ends(run([LONG, SHORT, SMALL], "1x2", Fifo())) == {"long": 100, "short": 120, "small": 125}
    assert ends(run([LONG, SHORT, SMALL], "1x3", Fifo())) == {"long": 100, "short": 120, "small": 20}
    assert ends(run([LONG, SHORT, SMALL], "1x3", Fifo(backfill=False))) == {"long": 100, "short": 120, "small": 105}


def test_who_needs_longer_to_come_back_than_a_live_cluster_would_wait_comes_back():
    """Of large models a start takes minutes: 400 s here, where a core gives a gang up after 150."""
    outcome = run([LONG, SHORT], "1x2", Srtf(), delays=Delays(start_s=300.0, resume_s=400.0))
    assert ends(outcome) == {"short": 303 + 300 + 20, "long": 623 + 400 + 97}  # the long one stops after three steps
    assert {job.id: job.suspensions for job in outcome.jobs} == {"long": 1, "short": 0}


def test_the_shortest_goes_first_and_who_steps_aside_loses_the_way_back_and_nothing_else():
    """A gang is stopped at a step that is proposed to it, three ahead."""
    outcome = run([LONG, SHORT, SMALL], "1x2", Srtf(), delays=Delays(resume_s=3.0))
    assert ends(outcome) == {"long": 131, "short": 41, "small": 22}
    assert {job.id: job.suspensions for job in outcome.jobs} == {"long": 1, "short": 1, "small": 0}
    assert {job.id: job.service_s for job in outcome.jobs} == {"long": 206, "short": 46, "small": 5}
    assert outcome.avg_jct_s == pytest.approx((131 + 31 + 7) / 3)
    assert outcome.makespan_s == 131
    assert outcome.changes == 2


def test_least_service_first_counts_in_levels():
    """At 15 s the long one has had 30 device seconds, and falls behind; it is stopped three steps later."""
    outcome = run([LONG, SHORT], "1x2", Las(levels_s=(30.0,)), look_s=5.0)
    assert {job.id: job.started_s for job in outcome.jobs} == {"long": 0, "short": 18}
    assert ends(outcome)["short"] == 38  # at 35 s it has had as much, but the step at which it could stop is beyond its last


def test_the_worst_finish_time_fairness_is_that_of_who_waited_most():
    """Short wants two devices while long has them: for 100 of its 110 s four are wanted of two, then two."""
    outcome = run([LONG, SHORT], "1x2", Fifo())
    assert outcome.worst_ftf == pytest.approx(110 / (20 * (90 * 2 + 20 * 1) / 110))


def test_a_start_takes_as_long_as_it_is_said_to():
    assert ends(run([LONG], "1x2", Fifo(), delays=Delays(start_s=7.0))) == {"long": 107}


class Scattering:
    """Starts a gang on two machines, and brings it together at some time."""

    def __init__(self, job: str, together_s: float):
        self._job, self._together_s = job, together_s

    def decide(self, snapshot: Snapshot) -> Schedule:
        where = "gpu-1:1 gpu-1:0" if snapshot.now_s >= self._together_s else "gpu-0:0 gpu-1:0"
        return Schedule({job.id: parse_placement(where) for job in snapshot.jobs if job.id == self._job})

    plan = decide


class Slowly(Recorded):
    """Half as fast on more than one machine."""

    def step_s(self, row: Row, placement: Placement, nodes: Nodes, beside: Any = ()) -> float:
        return 2.0 if len({slot.node for slot in placement}) > 1 else 1.0


def test_a_gang_is_moved_in_the_middle_and_goes_on_faster():
    gang = Row(id="gang", submitted_s=1, workers=2, duration_s=100)
    config = SimConfig(look_s=10.0, delays=Delays(move_s=4.0))
    outcome = Checked([gang], machines("2x2"), Slowly(), Scattering("gang", together_s=41.0), config).run()
    assert outcome.jobs[0].moves == 1
    # from 1 s on two seconds a step; at 50 s, when 24 are done, the 27th is proposed: moved at 55 s; 4 s later one second a step
    assert outcome.jobs[0].ended_s == pytest.approx(55 + 4 + 73)


class Apart:
    """Two jobs on one device; from 20 s on the first makes way, and comes back after a minute."""

    def decide(self, snapshot: Snapshot) -> Schedule:
        schedule = Schedule()
        for job in snapshot.jobs:
            where = "gpu-0:0@0.5" if snapshot.now_s < 20 else "gpu-0:0" if snapshot.now_s >= 60 else "gpu-0:0@0.5" * (job.id == "b")
            if where:
                schedule.put(job.id, parse_placement(where))
        return schedule


def test_who_becomes_faster_before_it_is_suspended_keeps_the_steps_that_it_made():
    """At 20 s it is told to stop at its 13th step, two seconds each; from 22 s on it is alone, and has made 15 by 26 s."""
    rows = [Row(id=id, submitted_s=0, workers=1, duration_s=steps) for id, steps in (("a", 100), ("b", 11))]
    outcome = run(rows, "1x1", Apart(), look_s=10.0)
    assert ends(outcome) == {"a": 60 + 85, "b": 22}
    assert outcome.lost_steps == 0


def random_rows(seed: int, jobs: int = 40) -> list[Row]:
    rng = random.Random(seed)
    return [
        Row(id=f"j{n}", submitted_s=rng.uniform(0, 400), workers=rng.choice((1, 2, 3, 4, 6)), duration_s=1 + rng.expovariate(0.02))
        for n in range(jobs)
    ]


@pytest.mark.parametrize("policy", [Fifo(), Srtf(), Srtf(counts_devices=True), Las(levels_s=(50.0, 400.0)), Restow()], ids=str)
def test_every_job_ends_whatever_the_policy_and_the_same_run_gives_the_same_events(policy):
    for seed in range(2):
        histories = []
        for _ in range(2):
            config = SimConfig(look_s=20.0, delays=Delays(resume_s=2.0, start_s=1.0))
            simulation = Checked(random_rows(seed), machines("3x4"), Slowly(), policy, config)
            outcome = simulation.run()
            histories.append(simulation.history)
            assert all(job.started_s >= job.submitted_s and job.ended_s > job.started_s for job in outcome.jobs)
            assert not any(record.processes for record in simulation.state.records.values())
        assert histories[0] == histories[1]


def test_what_cannot_be_simulated_is_told_in_one_line():
    with pytest.raises(TraceError, match="job long wants 2 devices, the cluster has 1"):
        run([LONG], "1x1", Fifo())
    with pytest.raises(TraceError, match="holds no jobs"):
        run([], "1x1", Fifo())


class Wrong:
    def __init__(self, schedule: Schedule | None) -> None:
        self._schedule = schedule

    def decide(self, snapshot: Snapshot) -> Schedule:
        if self._schedule is None:
            raise ValueError("no idea")
        return self._schedule if snapshot.jobs else Schedule()

    plan = decide


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (None, r"at 0 s the policy raised ValueError: no idea \(.*test_simulation.py, line \d+\)"),
        (Schedule(), r"leaves 1 jobs waiting for ever, first long \(2 devices\)"),
        (Schedule({"long": parse_placement("gpu-0:0")}), "breaks a rule: the schedule gives long 1 slots"),
        (Schedule({"long": parse_placement("gpu-0:0 gpu-0:7")}), "the schedule gives long gpu-0:7, which is not there"),
        (Schedule({"nobody": parse_placement("gpu-0:0")}), "breaks a rule: the schedule places nobody"),
        (Schedule({"long": parse_placement("gpu-0:0 gpu-0:0")}), "breaks a rule: the schedule gives long 1 devices"),
    ],
)
def test_a_policy_that_is_wrong_is_told_what_it_did(schedule, message):
    with pytest.raises(Refused, match=message):
        run([LONG], "1x2", Wrong(schedule))


@needs_data
def test_the_world_is_the_one_that_was_published():
    """Five hundred jobs of Gavel's generator on 64 V100 at which nobody loses by being spread: 15.56 h on average, as its own
    simulator gave with the same policy."""
    trace = read(SHARED / "gavel/generated/gavel_gen500_seed0_lam900_multi.trace").compressed(1 / 1.6)
    world = GavelWorld(SHARED / "gavel/scheduler/simulation_throughputs.json", spreads=False)
    outcome = Simulation(trace.rows, machines("8x8:V100"), world, Fifo()).run()
    assert outcome.avg_jct_s / 3600 == pytest.approx(15.56, abs=0.005)


@needs_data
def test_tiresias_in_the_world_of_pollux_takes_what_was_published():
    """160 jobs on 16 machines of four T4, decisions each minute, 30 s for each start: 3469.7 s on average and a makespan of 21.8 h
    in the artifact. Within half a per cent: it counts whole seconds at the ends of epochs."""
    trace = read(SHARED / "pollux/simulator/workloads/workload-6.csv")
    world = PolluxWorld(SHARED / "pollux/simulator/traces")
    config = SimConfig(round_s=60.0, delays=Delays(start_s=30.0, move_s=30.0, resume_s=30.0))
    outcome = Simulation(trace.rows, machines("16x4:T4"), world, Las(levels_s=(16 * 3600.0,)), config).run()
    assert outcome.avg_jct_s == pytest.approx(3469.7, rel=0.01)
    assert outcome.makespan_s / 3600 == pytest.approx(21.8, abs=0.05)


@needs_data
def test_a_model_that_was_never_measured_is_named():
    world = GavelWorld(SHARED / "gavel/scheduler/simulation_throughputs.json")
    with pytest.raises(TraceError, match=r"job x: 'GPT-9' with 2 workers is not in simulation_throughputs\.json"):
        Simulation([Row(id="x", submitted_s=0, workers=2, steps=5, model="GPT-9")], machines("1x2:V100"), world, Fifo())
