"""Gangs of any size, jobs that become faster as they go on, and Pollux's jobs that adapt their batches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from restow.cluster import Snapshot
from restow.errors import TraceError
from restow.placement import Placement, Schedule, parse_placement
from restow.policies.fifo import Fifo
from restow.sim.adaptive import AdaptivePolluxWorld
from restow.sim.delays import Delays
from restow.sim.machines import machines
from restow.sim.phases import Phase, whole_s
from restow.sim.pollux import PolluxWorld
from restow.sim.rows import Row
from restow.sim.simulation import SimConfig
from restow.sim.traces import read
from restow.sim.world import Recorded
from tests.sim.test_simulation import SHARED, Checked, ends, needs_data

A = Row(id="a", submitted_s=0, workers=1, elastic=(1, 4), duration_s=100)
B = Row(id="b", submitted_s=0, workers=1, elastic=(1, 4), duration_s=100)


class Quicker(Recorded):
    """Steps of 1 s until step 40, then of half as many seconds, by the number of devices."""

    def phases(self, row):
        return [Phase(row=replace(row, epoch=epoch), steps=steps, steps_total=100.0) for epoch, steps in enumerate((40.0, 60.0))]

    def alike(self, row):
        return row.epoch

    def step_s(self, row, placement, nodes, beside=()):
        return (1.0, 0.5)[row.epoch] / len(placement)


class Planned:
    """A schedule from each of these moments on."""

    def __init__(self, plan: dict[float, dict[str, str]]) -> None:
        self._plan = plan

    def decide(self, snapshot: Snapshot) -> Schedule:
        schedule = Schedule()
        wanted = self._plan[max(at_s for at_s in self._plan if at_s <= snapshot.now_s)]
        for job in snapshot.jobs:
            if job.id in wanted:
                schedule.put(job.id, parse_placement(wanted[job.id]))
        return schedule

    plan = decide


def run(rows: list[Row], cluster: str, world: Recorded, plan: dict[float, dict[str, str]]) -> Checked:
    config = SimConfig(look_s=1.0, delays=Delays(start_s=3.0, resume_s=5.0))
    simulation = Checked(rows, machines(cluster), world, Planned(plan), config)
    simulation.outcome = simulation.run()
    return simulation


def test_a_job_becomes_faster_at_the_step_at_which_it_does():
    [job] = Checked([A], machines("1x1"), Quicker(), Fifo()).run().jobs
    assert job.ended_s == pytest.approx(40 + 30)
    assert job.alone_s == pytest.approx(40 + 30)


def test_what_is_believed_of_a_job_is_what_holds_where_it_has_come_to():
    simulation = Checked([A], machines("1x2"), Quicker(), Fifo())
    there = parse_placement("gpu-0:0")
    beliefs = []
    for moment_s in (10.0, 41.0):
        simulation.run_until(moment_s)
        beliefs.append(simulation.forecast.step_s(simulation.state.records["a"].job, there))
    assert beliefs == [1.0, 0.5]


def test_a_gang_that_gets_more_devices_stands_still_for_the_change_and_loses_no_step():
    """The step at which it stops is three ahead."""
    simulation = run([A], "1x4", Recorded(), {0: {"a": "gpu-0:0"}, 50: {"a": "gpu-0:0 gpu-0:1"}})
    assert ends(simulation.outcome) == {"a": 3 + 100 + 5}
    job = simulation.state.records["a"].job
    assert (job.workers, job.suspensions, job.steps_total) == (2, 1, 100)


def test_gangs_that_change_their_sizes_may_take_each_others_devices():
    """Each is suspended for it, and so waits for nobody; of one size they would wait for each other for ever."""
    plan = {0.0: {"a": "gpu-0:0", "b": "gpu-0:1 gpu-0:2"}, 50.0: {"a": "gpu-0:1 gpu-0:2", "b": "gpu-0:0"}}
    simulation = run([A, B], "1x3", Recorded(), plan)
    assert ends(simulation.outcome) == {"a": 108, "b": 108}
    assert {job.id: job.suspensions for job in simulation.outcome.jobs} == {"a": 1, "b": 1}


def test_how_many_devices_a_gang_may_have_is_checked():
    with pytest.raises(TraceError, match=r"its gang may have 4 to 2 devices; write the smaller number first"):
        Row(id="x", submitted_s=0, workers=1, duration_s=5, elastic=(4, 2))


@needs_data
def test_the_batch_of_most_goodput_is_found_and_a_gang_of_one_is_as_in_the_rigid_world():
    """BERT on one device: of the batches that were validated none is faster than the best one, and one is as fast."""
    folder = SHARED / "pollux/simulator/traces"
    adaptive, rigid = AdaptivePolluxWorld(folder), PolluxWorld(folder)
    nodes = {node.name: node for node in machines("16x4:T4").nodes}
    there = parse_placement("t4-0:0")
    row = Row(id="x", submitted_s=0, workers=1, model="bert")
    best_s = whole_s(adaptive, row, there, nodes)
    fixed_s = [rigid.work(one) * rigid.step_s(one, there, nodes)
               for batch in (12, 24, 48, 96, 192, 384) for one in [replace(row, batch=batch)]]  # fmt: skip
    assert best_s <= min(fixed_s) * (1 + 1e-9)
    assert best_s == pytest.approx(min(fixed_s), rel=0.02)


@needs_data
def test_large_gangs_help_late_and_four_pairs_are_faster_than_two_fours():
    """Speed-ups from the measured tables: BERT on eight devices; DeepSpeech2 on sixteen, in its first epoch and its last."""
    world = AdaptivePolluxWorld(SHARED / "pollux/simulator/traces")
    nodes = {node.name: node for node in machines("16x4:T4").nodes}

    def on(counts: list[int]) -> Placement:
        return parse_placement(" ".join(f"t4-{node}:{at}" for node, count in enumerate(counts) for at in range(count)))

    bert = Row(id="x", submitted_s=0, workers=1, model="bert")
    assert world.step_s(bert, on([2, 2, 2, 2]), nodes) < 0.85 * world.step_s(bert, on([4, 4]), nodes)
    first = Row(id="y", submitted_s=0, workers=1, model="deepspeech2")
    epochs = world.phases(first)
    first, last = epochs[0].row, epochs[-1].row
    speedups = [world.step_s(row, on([1]), nodes) / world.step_s(row, on([4, 4, 4, 4]), nodes) for row in (first, last)]
    assert speedups[0] < 1.5
    assert speedups[1] > 10
    assert last.epoch == 79
    assert sum(epoch.steps for epoch in epochs) == pytest.approx(world.work(first))
    assert world.step_s(bert, on([1]), nodes, [(first, on([1]))]) == float("inf")


@needs_data
def test_the_believed_speed_of_each_epoch_is_told_apart():
    """What policies remember by `alike` must not outlive an epoch."""
    world = AdaptivePolluxWorld(SHARED / "pollux/simulator/traces")
    epochs = world.phases(read(SHARED / "pollux/simulator/workloads/workload-6.csv").rows[0])
    assert len({world.alike(epoch.row) for epoch in epochs}) == len(epochs) > 1
