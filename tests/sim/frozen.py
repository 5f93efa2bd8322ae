"""Live clusters of a few jobs, written down for tests."""

from __future__ import annotations

from typing import Any

from restow.cluster import Device, Link, Node, Snapshot
from restow.frozen import freeze, to_wire
from restow.job import Job, JobSpec, JobState, Profile
from restow.placement import parse_placement

NOW_S = 1100.0
SCATTERED = Profile(step_s=0.3, exposed_s=0.2, wire_bytes=12_500_000, state_bytes=100_000_000)  # 0.1 s on one machine


def node(name: str, devices: int = 2, **fields: Any) -> Node:
    return Node(name=name, address=name, devices=tuple(Device(index=index) for index in range(devices)), **fields)


def running(id: str, where: str, *, since_s: float = 1010.0, **fields: Any) -> Job:
    """Submitted at 1000 s; holds its slots since `since_s`."""
    placement = parse_placement(where)
    spec = JobSpec(command=("python", "train.py"), workers=len(placement), env=(("TOKEN", "hidden"),))
    known: dict[str, Any] = {
        "spec": spec, "state": JobState.RUNNING, "submitted_s": 1000.0, "started_s": since_s, "served_at_s": since_s,
        "seen_s": NOW_S, "movable": True, "world_size": len(placement), "placement": placement, "intended": placement,
    }  # fmt: skip
    return Job(id=id, **{**known, **fields})


def waiting(id: str, workers: int = 1, **fields: Any) -> Job:
    known: dict[str, Any] = {"spec": JobSpec(command=("python", "train.py"), workers=workers), "submitted_s": 1060.0}
    return Job(id=id, **{**known, **fields})


def snapshot(*jobs: Job, nodes: tuple[Node, ...] = (node("m1"), node("m2"))) -> Snapshot:
    return Snapshot(now_s=NOW_S, nodes=nodes, jobs=jobs, links={("m1", "m2"): Link(bytes_per_s=125e6)})


def written(*jobs: Job, **fields: Any) -> dict[str, Any]:
    """As `restow snapshot` prints it."""
    return to_wire(freeze(snapshot(*jobs, **fields)))
