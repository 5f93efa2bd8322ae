"""Parts of devices, cores and memory: where jobs go that say what they want. Small machines, then random histories."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from typing import Any

import numpy
import pytest

from restow.cluster import Device, Node, Snapshot
from restow.errors import SpecError
from restow.job import Demand
from restow.placement import Placement, Schedule, Slot
from restow.policies.base import Policy
from restow.policies.bestfit import BestFit
from restow.policies.fgd import Fgd
from restow.policies.packing.fragments import Fragments
from restow.policies.packing.ground import Left
from restow.policies.packing.wants import PARTS, Mix, Want
from restow.policies.worth.policy import Worth
from restow.sim.delays import Delays
from restow.sim.machines import Machines
from restow.sim.pods import Pods
from restow.sim.rows import Row
from restow.sim.simulation import SimConfig
from tests.sim.test_simulation import Checked


def node(name: str, devices: int, cores: float = 0.0, kind: str = "V", host_bytes: int = 0) -> Node:
    return Node(
        name=name, address=name, devices=tuple(Device(index=index, kind=kind) for index in range(devices)), cores=cores,
        host_bytes=host_bytes,
    )  # fmt: skip


def pod(id: str, submitted_s: float, share: float = 1.0, cores: float = 0.0, workers: int = 1, **more: object) -> Row:
    rest: dict[str, Any] = {"duration_s": 1e6, **more}
    return Row(id=id, submitted_s=submitted_s, workers=workers, share=share, cores=cores, **rest)


def places(rows: list[Row], nodes: list[Node], policy: Policy, until_s: float = 1000.0) -> dict[str, Placement]:
    simulation = Checked(rows, Machines(nodes=tuple(nodes)), Pods(), policy, SimConfig(delays=Delays(move_s=5.0)))
    simulation.run_until(until_s)
    return {id: record.job.placement for id, record in simulation.state.records.items()}


def on(places: dict[str, Placement]) -> dict[str, str]:
    return {id: " ".join(str(slot) for slot in placement) for id, placement in places.items()}


@pytest.mark.parametrize("policy", [Fgd, BestFit, Worth])
def test_parts_of_one_device_are_given_to_several_jobs_and_never_more_than_there_is(policy):
    rows = [pod("a", 0, 0.5), pod("b", 1, 0.3), pod("c", 2, 0.3), pod("d", 3, 0.2)]
    assert on(places(rows, [node("m", 1)], policy())) == {"a": "m:0@0.5", "b": "m:0@0.3", "c": "", "d": "m:0@0.2"}


@pytest.mark.parametrize("policy", [Fgd, BestFit, Worth])
def test_cores_and_memory_of_a_machine_are_not_given_twice(policy):
    rows = [pod("a", 0, 0.5, 6), pod("b", 1, 0.25, 6), pod("c", 2, 0.25, 2)]
    assert on(places(rows, [node("m", 1, cores=8)], policy())) == {"a": "m:0@0.5", "b": "", "c": "m:0@0.25"}
    rows = [pod("a", 0, 0.5, host_bytes=60), pod("b", 1, 0.25, host_bytes=60), pod("c", 2, 0.25, host_bytes=40)]
    assert on(places(rows, [node("m", 1, host_bytes=100)], policy())) == {"a": "m:0@0.5", "b": "", "c": "m:0@0.25"}


@pytest.mark.parametrize("policy", [Fgd, BestFit, Worth])
def test_a_gang_lies_on_one_machine_and_a_pod_on_a_kind_that_it_names(policy):
    rows = [pod("gang", 0, 1.0, 1, workers=2), pod("picky", 1, 0.5, 1, model="K|T")]
    found = places(rows, [node("a", 1), node("b", 2), node("c", 1, kind="K")], policy())
    assert {slot.node for slot in found["gang"]} == {"b"}
    assert [slot.node for slot in found["picky"]] == ["c"]
    assert places([pod("gang", 0, 1.0, 1, workers=2)], [node("a", 1), node("b", 2), node("x", 1)], policy())["gang"]


@pytest.mark.parametrize("policy", [Fgd, BestFit, Worth])
def test_who_needs_no_device_takes_cores_only(policy):
    rows = [pod("cpu", 0, 0.0, 6), pod("a", 1, 1.0, 2), pod("b", 2, 0.0, 2)]
    found = on(places(rows, [node("m", 1, cores=8)], policy()))
    assert (found["cpu"], found["a"], found["b"]) == ("m:0@0", "m:0", "")


@pytest.mark.parametrize("policy", [Fgd, Worth])
def test_what_is_left_is_left_whole_for_those_who_want_whole_devices(policy):
    """Two half devices are put on one, since half of the jobs want whole ones."""
    rows = [pod("whole", 0, 1.0, 1), pod("one", 1, 0.5, 1), pod("two", 2, 0.5, 1), pod("other", 3, 1.0, 1)]
    found = places(rows, [node("a", 3, cores=64)], policy())
    assert found["one"] == found["two"]
    assert len({slot for id in ("whole", "one", "other") for slot in found[id]}) == 3


def test_worth_keeps_cores_for_the_devices_that_are_left_where_fgd_does_not():
    """There is room for a next job on `few`, too, but not for as many as it has devices."""
    nodes = [node("few", 8, cores=20), node("many", 4, cores=40)]
    heavy: dict[type, set[str]] = {Fgd: set(), Worth: set()}
    for policy, found in heavy.items():
        for n in range(8):  # FGD draws lots between machines that are alike to it
            rows = [pod(f"light-{n}", 0, 1.0, 1), pod(f"heavy-{n}", 1, 1.0, 5)]
            found |= {slot.node for slot in places(rows, nodes, policy())[f"heavy-{n}"]}
    assert heavy == {Fgd: {"few", "many"}, Worth: {"many"}}


def test_where_there_is_no_room_one_moves_aside_and_runs_on():
    """`wide` needs cores, which only `many` has; `narrow` lies there and would do with few."""
    rows = [pod("narrow", 0, 1.0, 1), pod("first", 1, 1.0, 9), pod("wide", 50, 1.0, 8)]
    nodes = [node("many", 2, cores=20), node("few", 1, cores=4)]

    class Corner:
        """The first two are put on `many`, whatever policies think."""

        def __init__(self) -> None:
            self.worth = Worth()

        def decide(self, snapshot: Snapshot) -> Schedule:
            if snapshot.now_s < 50:
                schedule = Schedule()
                for job in snapshot.jobs:
                    schedule.put(job.id, (Slot("many", {"first": 0, "narrow": 1}[job.id]),))
                return schedule
            return self.worth.decide(snapshot)

        plan = decide

    simulation = Checked(rows, Machines(nodes=tuple(nodes)), Pods(), Corner(), SimConfig(delays=Delays(move_s=5.0)))
    simulation.run_until(1000.0)
    jobs = {id: record.job for id, record in simulation.state.records.items()}
    assert {id: job.placement[0].node for id, job in jobs.items()} == {"narrow": "few", "first": "many", "wide": "many"}
    assert {id: (job.moves, job.suspensions) for id, job in jobs.items()} == {"narrow": (1, 0), "first": (0, 0), "wide": (0, 0)}


# ------------------------------------------------------------ the measures


def left(parts: list[int], cores: float) -> Left:
    return Left(numpy.array([parts]), numpy.array([cores]), numpy.array([math.inf]), numpy.array([0]))


def measures(*wants: tuple[Want, int]) -> Fragments:
    mix = Mix(Counter(dict(wants)))
    return Fragments(mix, {want: ["V"] for want, _ in wants}, ["V"])


def test_fragments_are_what_the_next_job_cannot_have():
    """Half of the jobs want a whole device and 8 cores, half 0.3 of one and 1: as FGD counts."""
    both = measures((Want(1, PARTS, 8.0, 0, ""), 1), (Want(1, 300_000, 1.0, 0, ""), 1))
    assert both.fragments(left([PARTS, PARTS], 16))[0] == 0
    assert both.fragments(left([PARTS, 500_000], 16))[0] == pytest.approx(0.5 * 0.5)  # the half is of no use to one of two
    assert both.fragments(left([PARTS, 200_000], 16))[0] == pytest.approx(0.2)  # to neither
    assert both.fragments(left([PARTS, PARTS], 4))[0] == pytest.approx(0.5 * 2.0)  # too few cores for one of two
    assert both.fragments(left([PARTS, -1], 0.5))[0] == pytest.approx(1.0)


def test_devices_are_stranded_whose_cores_are_gone():
    one = measures((Want(1, PARTS, 8.0, 0, ""), 1))
    assert one.stranded(left([PARTS, PARTS], 16))[0] == 0
    assert one.stranded(left([PARTS, PARTS], 4))[0] == pytest.approx(1.5)


def test_a_demand_that_cannot_be_is_told():
    for wrong in ({"share": 1.5}, {"share": -0.1}, {"cores": -1.0}, {"host_bytes": -1}, {"cores": math.nan}):
        with pytest.raises(SpecError):
            Demand(**wrong)
    assert not Demand().is_declared
    assert Demand(share=0.5).is_declared


# ------------------------------------------------------------ random histories


@pytest.mark.parametrize("policy", [Fgd, BestFit, Worth])
def test_in_random_histories_no_machine_gives_away_more_than_it_has_and_everybody_ends(policy):
    for seed in range(2):
        rng = random.Random(seed)
        rows = []
        for n in range(50):
            workers = rng.choice((1, 1, 1, 2))
            share = 1.0 if workers > 1 else rng.choice((0.0, 0.16, 0.47, 0.81, 1.0))
            cores, duration_s = rng.choice((1, 3, 9)), 20 + rng.expovariate(1 / 300)
            rows.append(pod(f"p{n}", rng.uniform(0, 600), share, cores, workers, duration_s=duration_s))
        nodes = [node("a", 4, 24), node("b", 2, 40), node("c", 8, 32)]
        simulation = Tallied(rows, Machines(nodes=tuple(nodes)), Pods(), policy(), SimConfig(delays=Delays(move_s=2.0)))
        outcome = simulation.run()
        assert len(outcome.jobs) == 50, f"seed {seed}"


class Tallied(Checked):
    """Adds up what is promised after each decision."""

    def _decide(self) -> bool:
        changed = super()._decide()
        cores: dict[str, float] = defaultdict(float)
        parts: dict[tuple[str, int], float] = defaultdict(float)
        for id in self.state.active_ids:
            for slot in self.state.records[id].job.intended:
                cores[slot.node] += self._rows[id].cores
                parts[slot[:2]] += self._rows[id].share
        assert all(cores[name] <= node.cores + 1e-6 for name, node in self.nodes.items())
        assert all(used <= 1 + 1e-6 for used in parts.values())
        return changed
