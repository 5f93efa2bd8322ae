"""What happens before anything is decided: machines join, and jobs of a live cluster's snapshot stand where they stood."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from restow.cluster import Link, Node
from restow.job import JobSpec
from restow.messages import Event, JobSubmitted, LinkMeasured, NodeCordoned, NodeDrained, NodeJoined
from restow.placement import Schedule, devices_held
from restow.sim.machines import Machines
from restow.sim.rows import Row

LOCAL_BYTES_PER_S = Node(name="", address="", devices=()).local_bytes_per_s  # what is taken for one of which nothing was measured


def joining(machines: Machines) -> Iterator[Event]:
    for node in machines.nodes:
        yield NodeJoined(
            time_s=0.0, node=node.name, address=node.address, devices=node.devices, cores=node.cores, host_bytes=node.host_bytes
        )
    names = [node.name for node in machines.nodes]
    if len(names) == 2 and not machines.links:  # of more, the default of core/ is taken: an event for each pair would be too many
        yield LinkMeasured(time_s=0.0, a=names[0], b=names[1], link=machines.link)
    for (a, b), link in machines.links.items():
        yield LinkMeasured(time_s=0.0, a=a, b=b, link=link)
    for node in machines.nodes:
        if node.local_bytes_per_s != LOCAL_BYTES_PER_S:
            yield LinkMeasured(time_s=0.0, a=node.name, b=node.name, link=Link(bytes_per_s=node.local_bytes_per_s))
        if node.is_cordoned:
            yield NodeCordoned(time_s=0.0, node=node.name, is_cordoned=True)
        if node.is_draining:
            yield NodeDrained(time_s=0.0, node=node.name, is_draining=True, by_s=node.drain_by_s)


def submissions(rows: Iterable[Row], begins_s: float, borne: Callable[[JobSpec], JobSpec]) -> Iterator[Event]:
    """Of those that have a past and are there by then, when they were submitted. `borne`: what becomes of a spec where machines
    fail."""
    for row in rows:
        if row.past and row.submitted_s <= begins_s:
            yield JobSubmitted(time_s=row.submitted_s, job=row.id, spec=borne(row.past.spec))


def schedules(rows: Iterable[Row], begins_s: float) -> Iterator[tuple[float, Schedule]]:
    """(time, schedule), each with one more of the jobs that stand somewhere: placed at the time from which on what it holds makes
    up the service that it has had."""
    standing = [(row, row.past) for row in rows if row.past and row.past.placement]
    timed = [(begins_s - past.service_s / devices_held(past.placement), row.id, past) for row, past in standing]
    schedule = Schedule()
    for time_s, id, past in sorted(timed, key=lambda item: item[:2]):
        schedule.put(id, past.placement, past.reason)
        if past.sharing:
            schedule.sharing[id] = past.sharing
        yield time_s, schedule
