"""The workload in the simulator: rows with what was measured of each kind alone, the live cluster's machines, and its delays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.replay.deeds import Deeds, deeds_of
from bench.replay.workload import Arrival, Kind
from restow.agent.loop import PROGRESS_S
from restow.codec import to_json, value_from
from restow.controller.loop import LoopConfig
from restow.core.state import ClusterState
from restow.job import Profile
from restow.messages import Event
from restow.own_policies import DEFAULT_POLICY, find_policy
from restow.placement import Placement, parse_placement
from restow.sim.delays import Delays
from restow.sim.machines import Machines
from restow.sim.past import Past
from restow.sim.profiled import Profiled
from restow.sim.recorder import Recorder
from restow.sim.rows import Row
from restow.sim.simulation import SimConfig, Simulation

LOOK_S = LoopConfig().decide_s_max


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of one kind of job, alone in the cluster. Seconds."""

    places: tuple[tuple[Placement, Profile], ...]  # where, and what; on one machine first
    start_s: float  # from its submission to its first step, without that step
    end_s: float  # from its last step until it is done
    standby_s: float  # from the decision to move it until its twins have parked and are connected; 0: it was not moved

    def to_json(self) -> dict[str, Any]:
        places = [{"placement": " ".join(map(str, there)), "profile": to_json(profile)} for there, profile in self.places]
        return {"places": places, "start_s": self.start_s, "end_s": self.end_s, "standby_s": self.standby_s}

    @classmethod
    def from_json(cls, wire: Mapping[str, Any]) -> Measured:
        """What `to_json` made."""
        places = ((parse_placement(each["placement"]), value_from(Profile, each["profile"])) for each in wire["places"])
        return cls(places=tuple(places), start_s=wire["start_s"], end_s=wire["end_s"], standby_s=wire["standby_s"])


class Kept(Recorder):
    """Every event as it came."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def observe(self, event: Event, state: ClusterState) -> None:
        self.events.append(event)


def simulate(
    workload: Sequence[Arrival], kinds: Mapping[str, Kind], measured: Mapping[str, Measured], machines: Machines
) -> dict[str, Deeds]:
    """Job → what becomes of it under the default policy."""
    rows = [row(arrival, kinds[arrival.kind], measured[arrival.kind]) for arrival in workload]
    kept = Kept()
    config = SimConfig(look_s=LOOK_S, report_s=PROGRESS_S, delays=delays(measured))
    Simulation(rows, machines, Profiled(machines), find_policy(DEFAULT_POLICY), config, kept).run()
    return deeds_of(kept.events, [arrival.name for arrival in workload])


def row(arrival: Arrival, kind: Kind, measured: Measured) -> Row:
    (there, profile), *elsewhere = measured.places
    past = Past(
        spec=kind.spec(("simulated",), arrival.name), placement=(), measured_on=there, profile=profile, steps=0.0, says_total=True,
        started_s=None, service_s=0.0, is_movable=True, why_not="", sharing=None, reason="", elsewhere=tuple(elsewhere),
    )  # fmt: skip
    return Row(
        id=arrival.name, submitted_s=arrival.at_s, workers=kind.workers, steps=arrival.steps, model=kind.name,
        past=past,
    )  # fmt: skip


def delays(measured: Mapping[str, Measured]) -> Delays:
    """Of all kinds together. What a move costs, perf.py predicts for each."""
    every = list(measured.values())
    moved = [found.standby_s for found in every if found.standby_s]
    return Delays(
        start_s=_mean([found.start_s for found in every]), standby_s=_mean(moved), end_s=_mean([found.end_s for found in every])
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
