"""Where a person may move a running job to: the places that they name are checked at once, or chosen for them."""

from __future__ import annotations

from collections import Counter

from restow.cluster import Snapshot
from restow.errors import NotFound, Refused, SpecError
from restow.job import Job
from restow.placement import Placement, Slot, nodes_of
from restow.policies import sharing
from restow.policies.sharing import SharingConfig


def packed(job: Job, snapshot: Snapshot) -> Placement:
    """The job on as few nodes as its own and the free devices allow; ranks stay where they can. Refused if on no fewer."""
    held = {device for device, holders in snapshot.holders().items() if holders - {job.id}}
    own = nodes_of(job.placement)
    closed = {n.name for n in snapshot.nodes if n.is_draining or (n.is_cordoned and n.name not in own)}
    usable = [slot for slot in snapshot.slots if (slot.node, slot.device) not in held and slot.node not in closed]
    ours = Counter(slot.node for slot in job.placement)
    room = Counter(slot.node for slot in usable)
    chosen: list[Slot] = []
    for node in sorted(room, key=lambda node: (-min(room[node], job.workers), -ours[node], node)):
        chosen += [slot for slot in usable if slot.node == node][: job.workers - len(chosen)]
    chosen = _prefer_own(chosen, job, usable)
    spare = [slot for slot in chosen if (slot.node, slot.device) not in {(s.node, s.device) for s in job.placement}]
    kept = {(slot.node, slot.device) for slot in chosen}
    placement = tuple(slot if (slot.node, slot.device) in kept else spare.pop(0) for slot in job.placement)
    nodes = nodes_of(job.placement)
    if len(nodes) == 1:
        raise Refused(f"job {job.id} is on one machine already ({nodes[0]}); --to moves it elsewhere")
    if len(nodes_of(placement)) >= len(nodes):
        raise Refused(f"job {job.id} cannot use fewer than its {len(nodes)} machines: none has enough free devices")
    return placement


def check(job: Job, placement: Placement, snapshot: Snapshot) -> None:
    """Raises SpecError, NotFound or Refused, with what stands against this placement of the job."""
    if len(placement) != job.workers:
        raise SpecError(
            f"--to names {_count(len(placement), 'slot')}; job {job.id} has {_count(job.workers, 'worker')}, write one"
            " slot per rank"
        )
    for slot in placement:
        if slot.share != 1.0:
            whole = slot._replace(share=1.0)
            raise SpecError(f"--to names a part of a device, {slot}; restow divides devices by itself, write {whole}")
    places = [(slot.node, slot.device) for slot in placement]
    for slot, place in zip(placement, places, strict=True):
        if places.count(place) > 1:
            raise SpecError(f"--to names {slot.node}:{slot.device} twice; a device takes one rank")
    existing = {(slot.node, slot.device) for slot in snapshot.slots}
    for node, device in places:
        if (node, device) not in existing:
            raise NotFound(f"device {node}:{device} does not exist or its node is lost; see restow nodes")
    for node in nodes_of(placement):
        found = snapshot.node(node)
        if found and found.is_draining:
            raise Refused(f"node {node} is drained; restow undrain {node} first")
        if found and found.is_cordoned and node not in nodes_of(job.placement):
            raise Refused(f"node {node} is cordoned; restow uncordon {node} first")
    devices = sharing.devices_of(placement)
    hosts = next((hosts for hosts in sharing.groups(snapshot) if devices == sharing.devices_of(hosts[0].intended)), ())
    if hosts and job not in hosts:  # exactly the devices of others: it may join them
        why_not = sharing.hindrance(job, hosts, snapshot, SharingConfig()) if job.share.allow else "it does not share devices"
        if why_not:
            names = " and ".join(host.id for host in hosts)
            raise Refused(
                f"no room at {written(placement)}, held by {names}: job {job.id} cannot join, {why_not}; choose another place"
            )
        return
    holders = snapshot.holders()
    for node, device in places:
        others = sorted(holders.get((node, device), set()) - {job.id})
        if others:
            raise Refused(f"device {node}:{device} is held by {' and '.join(others)}; choose another or move that job first")
    if places == [(slot.node, slot.device) for slot in job.placement]:
        raise Refused(f"job {job.id} is at {written(placement)} already")


def written(placement: Placement) -> str:
    return " ".join(str(slot) for slot in placement)


def _prefer_own(chosen: list[Slot], job: Job, usable: list[Slot]) -> list[Slot]:
    """The same number of devices on each node, but those that the job holds already where there is a choice."""
    own = {(slot.node, slot.device) for slot in job.placement}
    wanted = Counter(slot.node for slot in chosen)
    preferred: list[Slot] = []
    for node, count in wanted.items():
        there = sorted((slot for slot in usable if slot.node == node), key=lambda slot: (slot[:2] not in own, slot))
        preferred += there[:count]
    return preferred


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
