"""What each kind of job is, measured alone in the cluster before the workload runs: nothing here has seen a job of the workload.

One job of each kind runs on one machine for a while; one of several workers is then sent to two machines, as a person would, and
makes as many steps there. Its step is the mean over those steps, as its own lines say; what else belongs to its profile is what
restow has measured of it at their end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.replay.live import command, spec_of
from bench.replay.simulated import Measured
from bench.replay.workload import DEVICES, Kind
from bench.systems.restow import Cluster, Watched
from bench.timeline import said
from restow.codec import from_json, value_from
from restow.job import Profile
from restow.messages import Event, MovePredicted, RankConnected, RankSwitched
from restow.placement import parse_placement

WARM_STEPS = 8  # of a generation, before its steps count
STEPS = 30  # that count; medians of the profile are over the last 15
TAIL_STEPS = 10  # after those, in which it is looked at
STANDBY_S = 6.0  # time that a job is given to be moved in: with less it might be over first


def measure(cluster: Cluster, kinds: Mapping[str, Kind], folder: Path) -> dict[str, Measured]:
    """One after another, each alone. Raises RunFailed."""
    return {kind.name: _measure(cluster, kind, folder) for kind in kinds.values()}


def _measure(cluster: Cluster, kind: Kind, folder: Path) -> Measured:
    is_gang = kind.workers > 1
    counted = WARM_STEPS + STEPS
    standby = math.ceil(STANDBY_S / _about_s(kind)) if is_gang else 0
    total = counted + (standby + counted if is_gang else 0) + TAIL_STEPS
    job = Watched(cluster, cluster.client.submit(spec_of(kind, f"alone-{kind.name}", command(kind, 0, total, folder)))["id"])
    views = [job.wait_until("its steps", lambda view: view["step"] >= counted)]
    if is_gang:
        cluster.client.migrate(job.job, to=_apart(kind.workers))
        views.append(job.wait_until("its steps elsewhere", lambda view: view["step"] >= total - TAIL_STEPS))
    job.wait_until("its end", lambda view: view["state"] == "done")
    return measured(job.show(), views, list(said(job.lines(), "step")), _events(cluster, job.job), time.time() - time.monotonic())


def _about_s(kind: Kind) -> float:
    """A step of it alone on one machine, as it was made."""
    return (kind.device_ms + kind.stall_ms) / 1e3


def _apart(workers: int) -> str:
    """Its last worker on the other machine."""
    first, second = DEVICES
    return " ".join([*(f"{first}:{device}" for device in range(workers - 1)), f"{second}:0"])


def _events(cluster: Cluster, job: str) -> list[Event]:
    return [from_json({key: value for key, value in wire.items() if key != "number"}) for wire in cluster.client.events()
            if wire.get("job") == job or wire.get("move", {}).get("job") == job]  # fmt: skip


def measured(
    end: Mapping[str, Any], views: Sequence[Mapping[str, Any]], marks: Sequence[Mapping[str, Any]], events: Iterable[Event],
    clock_s: float,
) -> Measured:  # fmt: skip
    """`views`: of the job in each place, after the steps that count there; `marks`: what its ranks printed; `clock_s`: what is to
    be added to their times for the controller's."""
    events = list(events)
    switched = max((event.step for event in events if isinstance(event, RankSwitched)), default=0)
    ends = {mark["step"]: mark["end_s"] + clock_s for mark in marks if mark["rank"] == 0}
    first, last = min(ends), max(mark["end_s"] for mark in marks) + clock_s
    places = []
    for view, origin in zip(views, (0, switched), strict=False):
        step_s = _mean_s(ends, origin + WARM_STEPS)
        profile = value_from(Profile, _plain(view["profile"]))
        places.append((parse_placement(" ".join(view["placement"])), replace(profile, step_s=step_s, waited_s=0.0)))
    asked_s = [event.time_s for event in events if isinstance(event, MovePredicted)]
    connected_s = [event.time_s for event in events if isinstance(event, RankConnected)]
    return Measured(
        places=tuple(places), start_s=max(0.0, ends[first] - end["submitted_s"] - places[0][1].step_s),
        end_s=max(0.0, end["ended_s"] - last), standby_s=max(connected_s) - min(asked_s) if asked_s and connected_s else 0.0,
    )  # fmt: skip


def _mean_s(ends: Mapping[int, float], first: int) -> float:
    """Over the steps that count, from this one on."""
    last = min(first + STEPS, max(ends))
    return (ends[last] - ends[first]) / (last - first)


def _plain(profile: Mapping[str, Any]) -> dict[str, Any]:
    return {**profile, "by_size": [list(pair) for pair in profile["by_size"]]}


