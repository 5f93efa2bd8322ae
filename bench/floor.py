"""How fast a move could be on this machine: one copy of the state in memory, or its bytes over the link."""

from __future__ import annotations

import time
from statistics import median

import numpy

from bench.cases import RATE_BITS_PER_S, Case


def copy_s(count_bytes: int, tries: int = 5) -> float:
    """Median seconds of one copy of so many bytes, by one thread, between buffers whose pages are there."""
    source = numpy.ones(count_bytes, dtype=numpy.uint8)
    target = numpy.zeros_like(source)
    target[:] = 1
    taken = []
    for _ in range(tries):
        begin_s = time.perf_counter()
        numpy.copyto(target, source)
        taken.append(time.perf_counter() - begin_s)
    return median(taken)


def floor_s(case: Case, state_bytes: int) -> float:
    """For a shadow nothing is copied in the pause: the floor is one memory copy all the same, to compare by one yardstick."""
    crossing = case.lower_bound_bytes(state_bytes)
    return crossing * 8 / RATE_BITS_PER_S if crossing else copy_s(state_bytes)
