"""What is replayed: kinds of jobs whose steps take known times, and when which of them comes. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from restow.job import JobSpec, ShareSpec

DEVICES = {"m1": 3, "m2": 2}
RATE_BITS_PER_S = 200e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What one step of a worker takes. The payload goes through an all-reduce once per step."""

    name: str
    workers: int
    device_ms: float
    stall_ms: float = 0.0  # of the loader, in which nothing computes
    payload_mb: float = 0.1
    shares: bool = False  # may others use its devices, too?

    @property
    def options(self) -> list[str]:
        return [f"--device-ms={self.device_ms:g}", f"--stall-ms={self.stall_ms:g}", f"--payload-mb={self.payload_mb:g}"]

    def spec(self, command: tuple[str, ...], name: str) -> JobSpec:
        """The same for a live job and a simulated one."""
        return JobSpec(command=command, name=name, workers=self.workers, share=ShareSpec(allow=self.shares))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A job of the workload."""

    name: str
    kind: str
    at_s: float  # since the first
    steps: int


KINDS = {
    kind.name: kind
    for kind in (
        Kind(name="solo", workers=1, device_ms=150),
        Kind(name="loader", workers=1, device_ms=115, stall_ms=110, shares=True),
        Kind(name="pair", workers=2, device_ms=120, payload_mb=3.1),  # the link needs 125 ms for it
        Kind(name="wide", workers=3, device_ms=140, payload_mb=2.0),
    )
}

WORKLOAD = (
    Arrival(name="a", kind="solo", at_s=0, steps=650),
    Arrival(name="b", kind="solo", at_s=2, steps=180),
    Arrival(name="c", kind="loader", at_s=4, steps=440),
    Arrival(name="d", kind="solo", at_s=6, steps=360),
    Arrival(name="e", kind="pair", at_s=38, steps=480),
    Arrival(name="f", kind="loader", at_s=44, steps=300),
    Arrival(name="g", kind="solo", at_s=76, steps=200),
    Arrival(name="h", kind="wide", at_s=84, steps=260),
    Arrival(name="i", kind="loader", at_s=92, steps=200),
    Arrival(name="j", kind="pair", at_s=140, steps=250),
)
