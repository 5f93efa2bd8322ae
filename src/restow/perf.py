"""Predicted step time of a job on another placement, and what the way there costs. Pure arithmetic over measured values.

The model: a step is computing plus the communication that computing does not hide.

    step = compute + exposed
    compute = measured step - measured exposed time (of the rank that waits least: the slowest one), scaled by the share of
              a CPU core where the devices differ; the twin's rehearsal instead, where the kind of device differs
    exposed = what a ring all-reduce needs on the slowest hop, corrected by what is measured today

A ring over N ranks sends 2 (N-1)/N times the payload over every hop (Patarasuk and Yuan, JPDC 2009); gloo and NCCL both
use it for large payloads. Ranks are joined in rank order; hops that cross the same way between two machines share it.

What it does not know: other jobs' traffic on the same link (only through what is measured today), trees, compression,
the number of collectives (one for each 25 MiB bucket is assumed, which matters only where a link has delay).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from restow.cluster import Device, Snapshot
from restow.job import Job, JobSpec, Profile
from restow.placement import Placement, count_by_node, is_scattered, moved_ranks, nodes_of, ranks_per_device

REPLICA_BYTES_PER_S = 2e9  # a memory copy of state into a twin that shares the node: one core, page faults included
SHADOW_BYTES_MIN = 256_000_000  # above it a replica copy is longer than 0.13 s and following in the background pays
PRIVATE_BYTES = 16_384  # generators, data position, loop state of one rank: 12.6 KB measured
REPLICA_PAUSE_S = 0.05  # 54-89 ms measured for 104 MB in all; what is left without the copy
COPY_PAUSE_S = 0.05  # the same decision, proof and swap
SHADOW_PAUSE_S = 0.03  # 8-32 ms measured
RESTART_PAUSE_S = (
    7.0  # stop, start and first step of an ordinary script: 4.5-7 s measured; its own checkpoint not counted
)
RESIZE_PAUSE_S = 3.0  # state into the vault, all workers started anew, and back: 1.9-2.4 s measured for 20 MB of state
BUCKET_BYTES = 25 * 2**20  # DDP's default bucket
UNKNOWN_WIRE_BYTES = (
    25_000_000  # a job that was never measured: one full bucket, so that layouts can be compared at all
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveCost:
    """What a move takes from the job and from the link."""

    fill: str  # replica, copy, shadow, vault, or restart for a job that cannot switch
    downtime_s: float
    wire_bytes: int


def ring_bytes(workers: int, payload_bytes: float) -> float:
    """Bytes that each hop of the ring carries for one all-reduce of the payload."""
    return 2 * (workers - 1) / workers * payload_bytes


def communication_s(
    placement: Placement, payload_bytes: float, snapshot: Snapshot, local_bytes_per_s: float = 0.0
) -> float:
    """Seconds that collectives of one step need if nothing hides them. `local_bytes_per_s` of the job itself, if known."""
    workers = len(placement)
    if workers == 1:
        return 0.0
    traffic = ring_bytes(workers, payload_bytes)
    rounds = 2 * (workers - 1) * max(1, math.ceil(payload_bytes / BUCKET_BYTES))
    hops = [(placement[rank].node, placement[(rank + 1) % workers].node) for rank in range(workers)]
    crossing = Counter((a, b) for a, b in hops if a != b)
    slowest_s = max((_local_s(a, traffic, snapshot, local_bytes_per_s) for a, b in hops if a == b), default=0.0)
    for (a, b), sharing in crossing.items():
        link = snapshot.link(a, b)
        slowest_s = max(slowest_s, sharing * traffic / link.bytes_per_s + rounds * link.delay_s)
    return slowest_s


def _local_s(node: str, traffic: float, snapshot: Snapshot, local_bytes_per_s: float) -> float:
    found = snapshot.node(node)
    rate = local_bytes_per_s or (found.local_bytes_per_s if found else 1e9)
    return traffic / rate


def predict_step_s(profile: Profile, now: Placement, then: Placement, snapshot: Snapshot) -> float:
    """Seconds per step after a move from `now` to `then`; 0.0 when the job has not been measured yet."""
    return sum(predict_parts(profile, now, then, snapshot))


def predict_parts(profile: Profile, now: Placement, then: Placement, snapshot: Snapshot) -> tuple[float, float]:
    """The same as its two parts: computing, and communication that it does not hide.

    Correction by today's measurement: if less time is exposed than the model needs, computing hides the rest and the same part
    is taken as exposed elsewhere; if more is exposed, the link is slower than declared, and only links are scaled.
    """
    if profile.step_s <= 0:
        return 0.0, 0.0
    computing_s = profile.step_s - profile.exposed_s - profile.waited_s  # what it waits at a gate is not its own
    computing_s *= _slow_down(now, then, snapshot) * ranks_per_device(then)  # ranks of one device compute one after another
    computing_s = _resized_s(profile, computing_s, len(now), len(then))
    if profile.rehearsal_step_s and len(now) == len(then) and _kinds(then, snapshot) != _kinds(now, snapshot):
        computing_s = profile.rehearsal_step_s * ranks_per_device(then)
    payload = profile.wire_bytes
    modelled_now_s = communication_s(now, payload, snapshot, profile.local_bytes_per_s)
    modelled_then_s = communication_s(then, payload, snapshot, profile.local_bytes_per_s)
    ratio = profile.exposed_s / modelled_now_s if modelled_now_s > 0 and profile.exposed_s > 0 else 1.0
    if ratio > 1 and is_scattered(now) != is_scattered(then):
        ratio = 1.0  # what slows a link says nothing about memory, and the other way round
    return computing_s, ratio * modelled_then_s


def _resized_s(profile: Profile, computing_s: float, now: int, then: int) -> float:
    """Computing time of a rank among `then` workers instead of `now`, the batch of all of them together being the same.

    Where it had so many before, as it was then. Else a + b / workers: a part that is there for each batch, however small (the
    update, above all), and one that grows with it; from two sizes that it had, or, knowing only one, half and half.
    """
    if now == then or not now:
        return computing_s
    known = {**dict(profile.by_size), now: computing_s}
    if then in known:
        return known[then]
    if len(known) == 1:
        return computing_s * (1 + now / then) / 2
    few, many = min(known), max(known)
    grows = max(0.0, (known[few] - known[many]) / (1 / few - 1 / many))
    return max(0.0, known[many] - grows / many) + grows / then


def _slow_down(now: Placement, then: Placement, snapshot: Snapshot) -> float:
    """Computing time there by computing time here, for devices that are shares of a core. The slowest rank counts."""
    here = min((d.share for d in _devices(now, snapshot)), default=1.0)
    there = min((d.share for d in _devices(then, snapshot)), default=1.0)
    return here / there


def _kinds(placement: Placement, snapshot: Snapshot) -> set[str]:
    return {device.kind for device in _devices(placement, snapshot)}


def _devices(placement: Placement, snapshot: Snapshot) -> list[Device]:
    """The devices used, as far as their nodes are known. How much of one is lent to others is the gate's business."""
    devices = []
    for slot in placement:
        node = snapshot.node(slot.node)
        for device in node.devices if node else ():
            if device.index == slot.device:
                devices.append(device)
    return devices


def has_replicas(now: Placement, then: Placement) -> bool:
    """Does every moved rank find a staying rank of its job on its new node? In a data-parallel job it holds the same state."""
    moved = moved_ranks(now, then)
    staying = {slot.node for rank, slot in enumerate(now) if rank not in moved}
    return all(then[rank].node in staying for rank in moved)


def choose_fill(spec: JobSpec, profile: Profile, now: Placement, then: Placement) -> str:
    """replica, copy or shadow. What the user asked for, unless there is no replica to read."""
    if spec.fill == "copy" or not has_replicas(now, then):
        return "copy"
    if spec.fill == "shadow":
        return "shadow"
    if spec.fill == "replica" or profile.state_bytes < SHADOW_BYTES_MIN:
        return "replica"
    return "shadow"


def move_cost(job: Job, now: Placement, then: Placement, snapshot: Snapshot) -> MoveCost:
    """Predicted pause and bytes between machines. A standby is no downtime: it works beside the training.

    vault    3 s                             another number of workers: all of them start anew
    replica  state / 2e9 B/s + 0.05 s        the private state of each moved rank crosses
    shadow   0.03 s                          the same; plus the whole state in the background where there is no replica
    copy     crossing bytes / rate + 0.05 s  what all ranks hold alike crosses once to each node, private state each time
    """
    profile, moved = job.profile, moved_ranks(now, then)
    if not job.movable:
        return MoveCost(fill="restart", downtime_s=RESTART_PAUSE_S, wire_bytes=0)
    if len(now) != len(then):
        new_nodes = set(nodes_of(then)) - set(nodes_of(now))
        return MoveCost(fill="vault", downtime_s=RESIZE_PAUSE_S, wire_bytes=profile.state_bytes * len(new_nodes))
    crossing = [rank for rank in moved if now[rank].node != then[rank].node]
    private = len(crossing) * (profile.private_bytes + PRIVATE_BYTES)
    shared = max(0, profile.state_bytes - profile.private_bytes)
    staying = {slot.node for rank, slot in enumerate(now) if rank not in moved}
    fresh_nodes = {then[rank].node for rank in crossing} - staying - set(nodes_of(now))
    wire_bytes = private + shared * len(fresh_nodes)
    fill = choose_fill(job.spec, profile, now, then)
    if fill == "replica":
        return MoveCost(
            fill=fill, downtime_s=profile.state_bytes / REPLICA_BYTES_PER_S + REPLICA_PAUSE_S, wire_bytes=wire_bytes
        )
    if fill == "shadow":
        return MoveCost(fill=fill, downtime_s=SHADOW_PAUSE_S, wire_bytes=wire_bytes)
    slowest_s = 0.0
    for node, arriving in count_by_node([then[rank] for rank in crossing]).items():
        incoming = arriving * (profile.private_bytes + PRIVATE_BYTES) + (shared if node in fresh_nodes else 0)
        rate = max(snapshot.link(now[rank].node, node).bytes_per_s for rank in crossing if then[rank].node == node)
        slowest_s = max(slowest_s, incoming / rate)
    local_s = profile.state_bytes / REPLICA_BYTES_PER_S
    return MoveCost(fill=fill, downtime_s=slowest_s + local_s + COPY_PAUSE_S, wire_bytes=wire_bytes)


def steps_left(job: Job, now_s: float) -> float:
    """Steps that the job is expected to make yet.

    Without a declared total: as many as it has time behind it. For lifetimes with a heavy tail, as those of training jobs, the
    attained service is the best single guess (Gu et al., Tiresias, NSDI 2019, section 3).
    """
    if job.steps_wanted is not None:
        return max(0.0, job.steps_wanted - job.steps_by(now_s))
    if job.started_s is None or job.profile.step_s <= 0:
        return 0.0
    return max(0.0, now_s - job.started_s) / job.profile.step_s
