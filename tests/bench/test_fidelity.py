"""The bench that lives one workload twice: its parts, on literal values; no live minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import fidelity
from bench.replay import live
from bench.replay.calibration import STEPS, WARM_STEPS, measured
from bench.replay.deeds import Deeds, deeds_of
from bench.replay.simulated import Measured, delays, simulate
from bench.replay.workload import DEVICES, KINDS, WORKLOAD, Kind
from restow.cluster import Device, Node
from restow.codec import to_json
from restow.frozen import FrozenCluster
from restow.job import JobSpec, Profile
from restow.messages import (
    Event,
    JobSubmitted,
    MovePredicted,
    NodeJoined,
    RankConnected,
    RankExited,
    RankReady,
    RankStarted,
    RankSwitched,
    ScheduleAdopted,
    StepAccepted,
    StepProposed,
    StoreOpened,
    SwitchFailed,
    TwinParked,
)
from restow.placement import Move, parse_placement
from restow.sim.machines import Machines

ROOT = Path(__file__).resolve().parents[2]
LINK_BYTES_PER_S = 25e6


def made_up(kind: Kind) -> Measured:
    """As if measured: computing and loading as asked for, a ring over the link."""
    load_s, step_s = kind.stall_ms / 1e3, (kind.device_ms + kind.stall_ms) / 1e3
    together = Profile(step_s=step_s, data_s=load_s)
    places = [(parse_placement(" ".join(f"m1:{device}" for device in range(kind.workers))), together)]
    if kind.workers > 1:
        exposed_s = 2 * (kind.workers - 1) / kind.workers * kind.payload_mb * 1e6 / LINK_BYTES_PER_S
        here = " ".join(f"m1:{device}" for device in range(kind.workers - 1))
        apart = Profile(step_s=step_s + exposed_s, exposed_s=exposed_s, wire_bytes=int(kind.payload_mb * 1e6))
        places.append((parse_placement(f"{here} m2:0"), apart))
    return Measured(places=tuple(places), start_s=1.0, end_s=0.2, standby_s=2.0 * (kind.workers > 1))


def test_the_workload_holds_what_the_comparison_is_about():
    """At least eight jobs, a gang brought together while it trains, and jobs that share: in the simulator, with any plausible
    measurement."""
    nodes = tuple(
        Node(name=name, address=name, devices=tuple(Device(index=index) for index in range(count)))
        for name, count in DEVICES.items()
    )
    found = simulate(WORKLOAD, KINDS, {name: made_up(kind) for name, kind in KINDS.items()}, Machines(nodes=nodes))
    assert len(found) == len(WORKLOAD) >= 8
    assert sum(deeds.consolidations for deeds in found.values()) >= 1
    assert len(fidelity.pairs_of(found)) >= 1
    assert {KINDS[arrival.kind].workers for arrival in WORKLOAD} == {1, 2, 3}


def events_of_a_move() -> list[Event]:
    """One job of two workers, moved from two machines to one, and done after 60 s."""
    spec, apart, together = JobSpec(command=("x",), workers=2), parse_placement("m1:0 m2:0"), parse_placement("m1:0 m1:1")
    devices = (Device(index=0), Device(index=1))
    told: dict[str, Any] = {"job": "g-1", "generation": 1}
    then: dict[str, Any] = {"job": "g-1", "generation": 2}
    return [
        *(NodeJoined(time_s=0, node=name, address=name, devices=devices) for name in ("m1", "m2")),
        JobSubmitted(time_s=100, job="g-1", spec=spec),
        ScheduleAdopted(time_s=101, placements=(("g-1", apart),), reasons=(("g-1", "starts scattered"),)),
        StoreOpened(time_s=101, node="m1", host="m1", port=1, **told),
        *(RankStarted(time_s=102, node=slot.node, rank=rank, pid=1, **told) for rank, slot in enumerate(apart)),
        *(
            RankReady(
                time_s=103, node=slot.node, rank=rank, signature="s", state_bytes=9, private_bytes=1, movable=True, why_not="",
                **told,
            )
            for rank, slot in enumerate(apart)
        ),
        MovePredicted(time_s=120, move=Move(
            job="g-1", now=apart, then=together, reason="", step_now_s=1, step_then_s=1, downtime_s=0, wire_bytes=0, saves_s=0)),
        ScheduleAdopted(time_s=120, placements=(("g-1", together),), reasons=(("g-1", "moves together"),)),
        StoreOpened(time_s=120, node="m1", host="m1", port=2, **then),
        TwinParked(time_s=122, node="m1", rank=1, signature="s", rehearsal_step_s=0.1, **then),
        RankConnected(time_s=123, node="m1", rank=0, role="rank", **then),
        RankConnected(time_s=123.5, node="m1", rank=1, role="twin", **then),
        RankConnected(time_s=123, node="m2", rank=1, role="rank", **then),
        StepProposed(time_s=123.5, node="", step=50, **then),
        StepAccepted(time_s=123.6, node="m1", step=50, **then),
        StepAccepted(time_s=123.6, node="m2", step=50, **then),
        *(RankSwitched(time_s=125, node="m1", rank=rank, step=50, pause_s=0.1, wire_bytes=0, **then) for rank in (0, 1)),
        RankExited(time_s=125.2, node="m2", rank=1, role="leaver", code=0, **told),
        *(RankExited(time_s=160, node="m1", rank=rank, role="rank", code=0, **then) for rank in (0, 1)),
    ]  # fmt: skip


def test_what_was_done_to_a_job_is_read_from_the_events_of_its_run():
    found = deeds_of(events_of_a_move(), ["g-1", "never"])
    assert found == {"g-1": Deeds(
        jct_s=60.0, waited_s=1.0, moves=(("m1:0 m2:0", "m1:0 m1:1", "moves together"),), partners=())}  # fmt: skip
    assert found["g-1"].consolidations == 1


def test_a_live_run_is_read_back_from_what_was_journalled_and_jobs_are_called_as_in_the_workload():
    devices = (Device(index=0), Device(index=1))
    nodes = tuple(Node(name=name, address=name, devices=devices) for name in ("m1", "m2"))
    known = FrozenCluster(now_s=90.0, nodes=nodes, links=(), jobs=())
    wires = [{"number": number, **to_json(event)} for number, event in enumerate(events_of_a_move()[2:], start=5)]
    wires = json.loads(json.dumps(wires))
    assert {name: deeds.jct_s for name, deeds in live.deeds(known, {"g-1": "g"}, wires).items()} == {"g": 60.0}
    failed = SwitchFailed(time_s=9, job="g-1", generation=2, node="m1", rank=1, reason="no twin parked")
    assert live.failures([*wires, to_json(failed)]) == ["g-1: no twin parked"]


def test_a_job_that_failed_has_done_nothing_to_be_compared():
    events = events_of_a_move()[:-2]
    exits = [RankExited(time_s=160, job="g-1", generation=2, node="m1", rank=rank, role="rank", code=1) for rank in (0, 1)]
    assert deeds_of([*events, *exits], ["g-1"]) == {}


def test_a_kind_is_what_its_steps_took_in_each_place_and_what_its_start_its_end_and_its_standby_took():
    """0.5 s a step from 104 s on, 0.2 s from step 50, which ended at 129 s; the job's clock is 100 s behind."""
    ends = {step: 4.0 + 0.5 * step for step in range(1, 51)} | {50 + step: 29.0 + 0.2 * step for step in range(1, 61)}
    marks = [{"rank": rank, "step": step, "end_s": end_s + rank * 0.01} for step, end_s in ends.items() for rank in (0, 1)]
    profile = {"step_s": 0.6, "exposed_s": 0.1, "by_size": []}
    views = [{"placement": ["m1:0", "m2:0"], "profile": profile}, {"placement": ["m1:0", "m1:1"], "profile": profile}]
    end = {"submitted_s": 102.0, "ended_s": 142.0}
    found = measured(end, views, marks, events_of_a_move(), clock_s=100.0)
    (first, apart), (_, together) = found.places
    assert (first, apart.step_s, apart.exposed_s) == (parse_placement("m1:0 m2:0"), pytest.approx(0.5), 0.1)
    assert together.step_s == pytest.approx(0.2)
    assert found.start_s == pytest.approx(104.5 - 102.0 - 0.5)
    assert found.end_s == pytest.approx(142.0 - 141.01)
    assert found.standby_s == pytest.approx(3.5)
    assert WARM_STEPS + STEPS < 50
    assert Measured.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_delays_are_means_over_the_kinds_and_standby_over_those_that_were_moved():
    still = Measured(places=((parse_placement("m1:0"), Profile(step_s=1)),), start_s=1.0, end_s=0.1, standby_s=0.0)
    moved = Measured(places=((parse_placement("m1:0"), Profile(step_s=1)),), start_s=2.0, end_s=0.3, standby_s=3.0)
    found = delays({"still": still, "moved": moved})
    assert (found.start_s, found.end_s, found.standby_s) == pytest.approx((1.5, 0.2, 3.0))


def test_the_error_is_the_mean_of_what_each_job_is_off_whichever_way():
    def deeds(jct_s: float, **more: Any) -> Deeds:
        return Deeds(**{"jct_s": jct_s, "waited_s": 0.0, "moves": (), "partners": (), **more})

    names = [arrival.name for arrival in WORKLOAD]
    lived = {name: deeds(100.0) for name in names}
    simulated = lived | {names[0]: deeds(110.0, partners=(names[1],)), names[1]: deeds(90.0, partners=(names[0],))}
    figures = {**fidelity.compared(lived, simulated), "failures": ["c-1: no twin"]}
    assert figures["mean_abs_error"] == pytest.approx(0.2 / len(names))
    assert (figures["pairs"], figures["same_pairs"], figures["same_moves"]) == ({"live": 0, "simulated": 1}, False, True)
    lines = fidelity.table(lived, simulated, figures)
    assert "no pair that shared its devices was seen live" in lines[-1]
    assert "live, and not known to the simulator: c-1: no twin" in lines
    assert any(f"shared with {names[1]}" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("{}", "holds no calibration and cluster and ids and events"),
        ('{"calibration": {"x": 1}, "cluster": 1, "ids": 1, "events": 1}', "is of another workload: its jobs are of the kinds x"),
    ],
)
def test_a_file_of_no_earlier_run_is_told_in_one_line(tmp_path, text, said):
    earlier = tmp_path / "earlier.json"
    if text is not None:
        earlier.write_text(text)
    asked = [sys.executable, "bench/fidelity.py", "--json", str(tmp_path / "new.json"), "--live", str(earlier)]
    answer = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 2
    assert said in answer.stderr.splitlines()[-1]
