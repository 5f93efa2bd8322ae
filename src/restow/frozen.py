"""A live cluster as a file: what a policy saw of it at one moment, to be simulated on from there.

    {"type": "restow-snapshot", "version": 1, "now_s": …, "nodes": […], "links": […], "jobs": […]}

Nothing of the environment of any job is in it; its command is. Knows neither how it is taken nor what is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from restow.cluster import Link, Node, Snapshot
from restow.codec import to_json, value_from
from restow.errors import SpecError, TraceError
from restow.job import Job, JobSpec, JobState, Profile, Sharing
from restow.placement import Placement

TYPE = "restow-snapshot"
VERSION = 1
NOW_S_MAX = 1e11  # the year 5138


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenLink:
    a: str
    b: str
    link: Link


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenJob:
    """One job that is not final."""

    id: str
    spec: JobSpec  # as it was asked for last, without its environment
    state: str  # one of JobState, or `suspended`
    workers: int
    placement: Placement  # what it holds
    measured_on: Placement  # where its profile is from: there, or where it was when it was suspended
    submitted_s: float
    started_s: float | None  # when it first ran
    steps_done: int  # by now
    steps_total: int | None  # that its script or its spec says
    profile: Profile
    service_s: float  # device seconds that it has held
    is_movable: bool
    why_not: str = ""  # if not
    is_paused: bool = False  # a person wants it to hold no devices
    is_leaving: bool = False  # it was told to end
    sharing: Sharing | None = None
    reason: str = ""  # why it is where it is


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenCluster:
    """Times are seconds since 1970, by the controller's clock."""

    now_s: float
    nodes: tuple[Node, ...]
    links: tuple[FrozenLink, ...]
    jobs: tuple[FrozenJob, ...]  # by submission


def freeze(snapshot: Snapshot) -> FrozenCluster:
    links = tuple(FrozenLink(a=a, b=b, link=link) for (a, b), link in sorted(snapshot.links.items()))
    jobs = tuple(_freeze_job(job, snapshot.now_s) for job in snapshot.jobs)
    return FrozenCluster(now_s=snapshot.now_s, nodes=snapshot.nodes, links=links, jobs=jobs)


def _freeze_job(job: Job, now_s: float) -> FrozenJob:
    kept = job.kept.placement if job.kept else ()
    return FrozenJob(
        id=job.id, spec=replace(job.spec, env=(), share=job.share), state="suspended" if job.is_suspended else job.state.value,
        workers=job.workers, placement=job.placement, measured_on=job.placement or kept, submitted_s=job.submitted_s,
        started_s=job.started_s, steps_done=int(job.steps_by(now_s)), steps_total=job.steps_wanted, profile=job.profile,
        service_s=job.service_s(now_s), is_movable=job.movable, why_not=job.why_not, is_paused=job.paused,
        is_leaving=job.cancel_asked, sharing=job.sharing, reason=job.reason,
    )  # fmt: skip


def to_wire(cluster: FrozenCluster) -> dict[str, Any]:
    return {"type": TYPE, "version": VERSION, **to_json(cluster)}


def from_wire(wire: Any) -> FrozenCluster:
    """What `to_wire` made. Raises TraceError for anything else, naming what is wrong; the caller names the file."""
    if not isinstance(wire, Mapping) or wire.get("type") != TYPE:
        raise TraceError("it is JSON, but no snapshot of a cluster; restow snapshot writes one")
    if wire.get("version") != VERSION:
        raise TraceError(f"its version is {wire.get('version')!r}; this restow reads version {VERSION}, take it anew")
    try:
        found = value_from(FrozenCluster, {key: value for key, value in wire.items() if key not in ("type", "version")})
    except SpecError as error:
        raise TraceError(str(error)) from None
    assert isinstance(found, FrozenCluster)
    _check(found)
    return found


def _check(cluster: FrozenCluster) -> None:
    if not 0 <= cluster.now_s <= NOW_S_MAX:
        raise TraceError(f"it was taken at {cluster.now_s:g} s; that is no time since 1970")
    _check_machines(cluster)
    devices = {(node.name, device.index) for node in cluster.nodes for device in node.devices}
    for what, names in (("nodes", [node.name for node in cluster.nodes]), ("jobs", [job.id for job in cluster.jobs])):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise TraceError(f"two {what} are called {twice[0]}")
    if not devices:
        raise TraceError("its cluster has no devices")
    states = {"suspended", *(state.value for state in JobState if not state.is_final)}
    used: dict[tuple[str, int], float] = {}
    for job in cluster.jobs:
        if job.state not in states:
            raise TraceError(f"job {job.id} is {job.state!r}; a job there is {', '.join(sorted(states))}")
        if job.workers < 1 or (job.placement and len(job.placement) != job.workers):
            raise TraceError(f"job {job.id} has {job.workers} workers on {len(job.placement)} slots")
        if min(job.steps_done, job.steps_total or 0, job.service_s, *_figures(job.profile)) < 0:
            raise TraceError(f"job {job.id} has steps, service or something measured below 0")
        if not 0 <= job.submitted_s <= cluster.now_s:
            raise TraceError(f"job {job.id} was submitted at {job.submitted_s:g} s, which is not before the snapshot")
        for slot in dict.fromkeys(job.placement):
            if slot[:2] not in devices:
                raise TraceError(f"job {job.id} is on {slot}, which is not there")
            used[slot[:2]] = used.get(slot[:2], 0.0) + slot.share
            if not 0 < slot.share <= 1 or used[slot[:2]] > 1 + 1e-9:
                raise TraceError(f"device {slot.node}:{slot.device} is given away more than once, last to job {job.id}")


def _figures(profile: Profile) -> tuple[float, ...]:
    return profile.step_s, profile.exposed_s, profile.alone_step_s, profile.wire_bytes, profile.state_bytes, profile.private_bytes


def _check_machines(cluster: FrozenCluster) -> None:
    for node in cluster.nodes:
        if not node.local_bytes_per_s > 0 or not all(device.share > 0 for device in node.devices):
            raise TraceError(f"node {node.name} exchanges nothing, or has a device of no share")
    for pair in cluster.links:
        if not pair.link.bytes_per_s > 0 or not pair.link.delay_s >= 0:
            raise TraceError(f"the link from {pair.a} to {pair.b} carries {pair.link.bytes_per_s:g} bytes per second")
