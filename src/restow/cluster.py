"""What there is: nodes, devices, links, and the frozen snapshot that a policy sees. Values only."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from restow.job import Job
from restow.placement import Placement, Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    index: int
    kind: str = "cpu"  # "cpu" or the name that the driver gives, for example "NVIDIA H200"
    memory_bytes: int = 0
    share: float = 1.0  # of a CPU core, for CPU devices in a lab: 0.5 is half a core


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    name: str
    address: str  # where its workers can be reached by other nodes
    devices: tuple[Device, ...]
    is_alive: bool = True
    is_cordoned: bool = False  # nothing new is started here
    is_draining: bool = False  # and what is here leaves
    drain_by_s: float = 0.0  # until then a job that finds no room elsewhere stays; afterwards it is suspended
    cores: float = 0.0  # that its jobs may keep busy; 0: not known, and not counted
    host_bytes: int = 0  # of memory for its jobs; 0: not known, and not counted
    local_bytes_per_s: float = 1.0e9  # what two ranks on this node exchange per second (gloo loopback measured 0.9-2.5e9)


DEFAULT_LINK_BYTES_PER_S = 125e6  # 1 Gbit/s, the ordinary network we assume until something was measured or declared


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The way between two nodes, both directions alike."""

    bytes_per_s: float = DEFAULT_LINK_BYTES_PER_S
    delay_s: float = 0.0


class Forecast(Protocol):
    """What is believed of how fast jobs are, where more is known than what was measured of each: tables of measured models, say."""

    def step_s(self, job: Job, placement: Placement, beside: Sequence[tuple[Job, Placement]] = ()) -> float:
        """Seconds of a step on these devices, infinite where it cannot run; `beside`: who else is on them."""

    def alone_s(self, job: Job) -> float:
        """The same on the devices that suit it best, which are its own."""

    def alike(self, job: Job) -> Hashable:
        """The same for all jobs of which the same is believed, wherever they are."""

    def place(self, placement: Placement) -> Hashable:
        """The same for all placements of which the same is believed, whoever is there."""

    def stages_s(self, job: Job) -> tuple[float, float, float] | None:
        """Seconds of a step, each alone: reading and preparing data, computing, communicating. None: nobody has measured them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The frozen cluster that a policy sees. Never training state. Jobs show where they are *intended* to be."""

    now_s: float
    nodes: tuple[Node, ...]
    jobs: tuple[Job, ...]  # every job that is not final, by (submitted_s, id)
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)  # key: the two names, sorted
    moves_last_hour: int = 0
    residue: Mapping[Slot, str] = field(default_factory=dict)
    """Slot → job, where a leaver or an abandoned twin (of any job, final ones included) is not gone yet."""
    forecast: Forecast | None = None  # None: only profiles are known

    def link(self, a: str, b: str) -> Link:
        return self.links.get((min(a, b), max(a, b)), Link())

    def node(self, name: str) -> Node | None:
        return next((node for node in self.nodes if node.name == name), None)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every whole device of every live node."""
        return tuple(Slot(n.name, d.index) for n in self.nodes if n.is_alive for d in n.devices)

    def kinds(self) -> dict[tuple[str, int], str]:
        """Device → its kind."""
        return {(node.name, device.index): device.kind for node in self.nodes for device in node.devices}

    def holders(self) -> dict[tuple[str, int], set[str]]:
        """Device → jobs that use it now or are promised it: actual, intended, of a switch under way, residue."""
        holders: dict[tuple[str, int], set[str]] = {}
        for slot, id in self.residue.items():
            holders.setdefault(slot[:2], set()).add(id)
        for job in self.jobs:
            placements: list[Placement] = [job.placement, job.intended]
            if job.switch:
                placements.append(job.switch.placement)
            for placement in placements:
                for slot in placement:
                    holders.setdefault(slot[:2], set()).add(job.id)
        return holders
