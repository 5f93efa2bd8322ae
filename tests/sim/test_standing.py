"""A live cluster's snapshot: jobs stand where they are, with what they have left, and the same policies go on from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from restow.core import invariants
from restow.errors import TraceError
from restow.frozen import freeze, from_wire, to_wire
from restow.job import JobSpec, Kept, Profile, Sharing
from restow.messages import Event
from restow.own_policies import find_policy
from restow.placement import parse_placement
from restow.policies.base import Policy
from restow.policies.las import Las
from restow.sim.delays import Delays
from restow.sim.outcome import Ended
from restow.sim.profiled import Profiled
from restow.sim.recorder import Recorder
from restow.sim.simulation import SimConfig, Simulation
from restow.sim.standing import Standing, read_standing, standing
from tests.sim.frozen import NOW_S, SCATTERED, node, running, snapshot, waiting, written


class Checked(Simulation):
    """Holds the core's invariants after every event."""

    def _observe(self, event: Event) -> None:
        super()._observe(event)
        invariants.check(self.state)


def go_on(found: Standing, policy: str | Policy, recorder: Recorder | None = None, **config: Any) -> dict[str, Ended]:
    options = SimConfig(begins_s=found.begins_s, **config)
    chosen = find_policy(policy) if isinstance(policy, str) else policy
    run = Checked(found.trace.rows, found.machines, Profiled(found.machines), chosen, options, recorder)
    return {job.id: job for job in run.run().jobs}


def test_what_is_written_is_read_again_and_holds_nothing_of_the_environment():
    cluster = freeze(snapshot(running("a", "m1:0 m2:0@0.5", profile=SCATTERED, steps_total=9), waiting("b", 2)))
    wire = json.dumps(to_wire(cluster))
    assert from_wire(json.loads(wire)) == cluster
    assert "train.py" in wire
    assert "TOKEN" not in wire
    assert "hidden" not in wire


def test_a_running_job_goes_on_from_its_step_and_one_without_a_total_for_as_long_as_it_ran():
    """Of 400 steps of a second 100 are done at the snapshot, which is 100 s after the first submission."""
    step = Profile(step_s=1.0)
    half = running("half", "m1:0", profile=step, steps_done=100, steps_total=400)
    open_ended = running("open", "m1:1", since_s=1050.0, profile=step, steps_done=40)
    silent = running("silent", "m2:0", since_s=1020.0)
    found = standing("now.json", freeze(snapshot(half, open_ended, silent, waiting("new"))), unseen_s=30.0)
    jobs = go_on(found, "fifo")
    assert {id: job.ended_s for id, job in jobs.items()} == {"half": 400, "open": 150, "silent": 180, "new": 130}
    assert {id: job.started_s for id, job in jobs.items()} == {"half": 10, "open": 50, "silent": 20, "new": 100}
    assert {id: job.service_s for id, job in jobs.items()} == {"half": 300, "open": 50, "silent": 80, "new": 30}
    assert [note for note in found.notes if "total" in note or "never" in note] == [
        "no total, or no speed, is known of open, silent: taken to run for as long again as until now",
        "never ran: new; taken to run for 30 s",
    ]


def test_speeds_come_from_profiles_and_a_move_costs_what_is_predicted():
    """Scattered it needs 0.3 s a step, of which 0.2 s for 12.5 MB over 1 Gbit/s; together they are exchanged in 0.0125 s."""
    gang = running("gang", "m1:0 m2:0", profile=SCATTERED, steps_done=1000, steps_total=11_000)
    found = standing("now.json", freeze(snapshot(gang)))
    recorder = Recorder(found.begins_s)
    assert go_on(found, "fifo")["gang"].ended_s == pytest.approx(100 + 10_000 * 0.3)
    moved = go_on(found, "restow", recorder)["gang"]
    assert moved.moves == 1
    assert moved.ended_s == pytest.approx(100 + 10_000 * 0.1125, abs=3)
    first, second = recorder.stays
    assert (first.from_s, first.came.value, first.went.value) == (100.0, "stood", "moved")
    assert second.came_why.startswith("moves rank 1 from m2:0 to m1:1")


def test_those_who_share_as_when_it_was_taken_are_as_fast_as_then_and_faster_alone():
    """Two on the only devices with 0.5 s a step; the first is done after 10 s, the other then needs 0.3 s."""
    terms = {"d": Sharing(mode="interleave", partners=("e",)), "e": Sharing(mode="interleave", partners=("d",))}
    profile = Profile(step_s=0.5, alone_step_s=0.3)
    jobs = [
        running(id, "m1:0@0.5 m1:1@0.5", profile=profile, steps_done=100, steps_total=total, sharing=terms[id])
        for id, total in (("d", 120), ("e", 180))
    ]
    ended = go_on(standing("now.json", freeze(snapshot(*jobs, nodes=(node("m1"),)))), "restow")
    assert ended["d"].ended_s == pytest.approx(110)
    assert ended["e"].ended_s == pytest.approx(110 + 60 * 0.3)


def test_a_suspended_job_goes_on_from_its_step_and_pays_the_way_back():
    kept = Kept(generation=1, step=60, placement=parse_placement("m1:0"), replicas=("m1",))
    job = waiting("back", steps_done=60, steps_total=100, started_s=1070.0, profile=Profile(step_s=1.0), kept=kept)
    assert go_on(standing("now.json", freeze(snapshot(job))), "fifo", delays=Delays(resume_s=5.0))["back"].ended_s == 40 + 5 + 40


def test_a_job_of_which_it_is_forgotten_where_it_was_measured_is_as_fast_as_it_was():
    """It was started anew after an error: it waits, without a kept state."""
    job = waiting("again", 2, started_s=1070.0, profile=SCATTERED, steps_done=0, steps_total=100)
    assert go_on(standing("now.json", freeze(snapshot(job))), "fifo")["again"].ended_s == pytest.approx(40 + 30)


def test_who_cannot_move_is_not_moved():
    job = running("gang", "m1:0 m2:0", profile=SCATTERED, steps_done=10, steps_total=5000, movable=False, why_not="no SDK")
    assert go_on(standing("now.json", freeze(snapshot(job))), "restow")["gang"].moves == 0


def test_service_so_far_counts_for_whom_least_service_goes_first():
    """The old one has held its device for 2000 s before: more than a level of 1000 s, so the new one gets it."""
    old = running("old", "m1:0", served_s=2000.0, served_at_s=NOW_S, profile=Profile(step_s=1.0), steps_total=5000)
    found = standing("now.json", freeze(snapshot(old, waiting("new"), nodes=(node("m1", 1),))), unseen_s=50.0)
    jobs = go_on(found, Las(levels_s=(1000.0,)), look_s=10.0)
    young = running("old", "m1:0", served_s=20.0, served_at_s=NOW_S, profile=Profile(step_s=1.0), steps_total=300)
    found = standing("now.json", freeze(snapshot(young, waiting("new"), nodes=(node("m1", 1),))), unseen_s=50.0)
    assert jobs["new"].started_s < 150
    assert go_on(found, Las(levels_s=(1000.0,)), look_s=10.0)["new"].started_s == 400


def test_who_cannot_go_on_is_left_out_with_a_reason():
    jobs = [
        running("on", "m1:0", profile=Profile(step_s=1.0)), running("lost", "m2:0"), waiting("paused", paused=True),
        waiting("large", 9), waiting("cancelled", cancel_asked=True),
    ]  # fmt: skip
    found = standing("now.json", freeze(snapshot(*jobs, nodes=(node("m1"), node("m2", is_alive=False)))))
    assert [row.id for row in found.trace.rows] == ["on"]
    assert found.machines.devices == 2
    assert [note for note in found.notes if note.startswith("left out")] == [
        "left out: lost, it lies on a machine that is lost",
        "left out: paused, it is paused until somebody resumes it",
        "left out: large, it wants 9 devices, there are 2",
        "left out: cancelled, it was told to end",
    ]


def test_nothing_new_starts_on_a_machine_that_is_cordoned_and_devices_may_have_any_number():
    nodes = (node("m1", is_cordoned=True), node("m2"))
    job = running("a", "m2:1", profile=Profile(step_s=1.0), steps_total=50)
    cluster = freeze(snapshot(job, waiting("b", 1, spec=JobSpec(command=("x",), steps=3)), nodes=nodes))
    recorder = Recorder(100.0)
    go_on(standing("now.json", cluster, unseen_s=5.0), "fifo", recorder)
    assert {stay.job: str(stay.placement[0]) for stay in recorder.stays} == {"a": "m2:1", "b": "m2:0"}


def changed(wire: dict[str, Any], *path: Any, to: Any) -> str:
    at: Any = wire
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = to
    return json.dumps(wire)


def example() -> dict[str, Any]:
    return written(running("a", "m1:0", profile=Profile(step_s=1.0)), running("b", "m2:0"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"), ("[" * 200_000, "is not JSON"), ("[1]", "no snapshot of a cluster"),
        ('{"rows": []}', "no snapshot of a cluster"),
        (changed(example(), "version", to=7), "its version is 7; this restow reads version 1"),
        (changed(example(), "jobs", to=3), "'3' is not a tuple"),
        (changed(example(), "jobs", 0, "colour", to="red"), "FrozenJob has no field 'colour'"),
        (changed(example(), "jobs", 0, "placement", 0, 0, to="m9"), "job a is on m9:0, which is not there"),
        (changed(example(), "jobs", 1, "placement", 0, 0, to="m1"), "device m1:0 is given away more than once, last to job b"),
        (changed(example(), "jobs", 1, "id", to="a"), "two jobs are called a"),
        (changed(example(), "nodes", 1, "name", to="m1"), "two nodes are called m1"),
        (changed(example(), "jobs", 0, "workers", to=2), "job a has 2 workers on 1 slots"),
        (changed(example(), "jobs", 0, "state", to="done"), "job a is 'done'"),
        (changed(example(), "jobs", 0, "profile", "step_s", to=-1.0), "something measured below 0"),
        (changed(example(), "jobs", 0, "spec", "command", to=[]), "command is empty"),
        (changed(example(), "jobs", 0, "submitted_s", to=9e9), "which is not before the snapshot"),
        (changed(example(), "links", 0, "link", "bytes_per_s", to=0.0), "carries 0 bytes per second"),
        (changed(example(), "nodes", to=[]), "its cluster has no devices"),
        (changed(example(), "jobs", to=[]), "it holds no job that could go on"),
        (changed(example(), "now_s", to=float("nan")), "it holds NaN"),
        (changed(example(), "now_s", to=12.5).replace("12.5", "1e999"), "it holds 1e999"),
        (changed(example(), "now_s", to=12345).replace("12345", "9" * 400), "at most 18 digits"),
        (changed(example(), "jobs", 0, "profile", "step_s", to=1e-300), "steps is"),
        (json.dumps(written(waiting("new"))), "nothing says how long they are; give --unseen-s SECONDS"),
    ],
)
def test_a_file_that_is_wrong_or_foreign_is_one_line(tmp_path: Path, content, message):
    path = tmp_path / "now.json"
    path.write_text(content)
    with pytest.raises(TraceError) as caught:
        read_standing(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"snapshot {path}")
    assert "\n" not in str(caught.value)
