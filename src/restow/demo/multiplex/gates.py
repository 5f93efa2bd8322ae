"""Who holds a device now, as its gate's page says. Reads a copy of the page and takes no lock, so it disturbs nobody."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from restow.gate import FREE
from restow.gate.file import numbers, path_of
from restow.gate.record import MOVED, NO_SEAT, PAGE_BYTES, SEATS, Record, job_name
from restow.placement import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSeen:
    """One device's gate at one moment."""

    time_s: float  # monotonic
    device: Slot
    is_free: bool  # disarmed: everybody computes whenever they like
    holder: str  # id of a job; empty: nobody
    held_s: Mapping[str, float]  # id of a job → how long it has held the device so far

    def parts(self, earlier: GateSeen) -> dict[str, float]:
        """Of the time between both looks, the part in which each job held the device."""
        passed_s = self.time_s - earlier.time_s
        if passed_s <= 0:
            return {}
        return {job: min(1.0, max(0.0, held - earlier.held_s.get(job, 0.0)) / passed_s) for job, held in self.held_s.items()}


def look(folder: Path, device: Slot) -> GateSeen | None:
    """None where there is no page (yet)."""
    pages = numbers(folder, device.device)
    if not pages:
        return None
    try:
        page = path_of(folder, device.device, pages[-1]).read_bytes()
    except OSError:
        return None  # removed in the meantime
    if len(page) < PAGE_BYTES:
        return None
    buffer = ctypes.create_string_buffer(page, PAGE_BYTES)
    record = Record(ctypes.addressof(buffer), memoryview(buffer).cast("B"))
    now_ns, owner = time.monotonic_ns(), record.owner[0]
    held_s: dict[str, float] = {}
    holder = ""
    for seat in range(SEATS):
        if not record.taken[seat]:
            continue
        job, since_ns = job_name(record.job(seat)), record.since_ns[seat]
        present_ns = max(0, now_ns - since_ns) if seat == owner and since_ns else 0
        held_s[job] = held_s.get(job, 0.0) + (record.held_ns[seat] + present_ns) / 1e9
        if seat == owner != NO_SEAT:
            holder = job
    is_free = record.mode[0] & ~MOVED == FREE
    return GateSeen(time_s=now_ns / 1e9, device=device, is_free=is_free, holder=holder, held_s=held_s)
