"""A stand-in for a GPU: it gives fixed device time, and jobs that are active at once share it evenly.

This is how a GPU's default time-slicing behaves, and as with a GPU the host is free meanwhile. One page of shared memory per
device says who is active. What it does not have: context switches, caches, memory.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

SEATS = 16
TICK_S = 0.001


class VirtualDevice:
    """One user's view of the device whose page is `path` (made if it is not there). `seat`: a number that nobody else uses."""

    def __init__(self, path: Path, seat: int):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, 8 * SEATS)
        self._words = memoryview(mmap.mmap(descriptor, 8 * SEATS)).cast("q")
        os.close(descriptor)
        self._seat = seat

    def compute(self, device_s: float) -> None:
        """Return when the device has worked for us for so long."""
        words, left_s = self._words, device_s
        words[self._seat] = 1
        last_s = time.perf_counter()
        while left_s > 0:
            time.sleep(min(TICK_S, left_s))
            now_s = time.perf_counter()
            left_s -= (now_s - last_s) / max(1, sum(words))
            last_s = now_s
        words[self._seat] = 0
