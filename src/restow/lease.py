"""A node's lease: for how long it may act without a word of the controller. Shared by both ends; knows no process.

The node sends numbered words, and the controller answers each at once. An answer to a word gives the node a lease that runs from
when that word was *sent*; the controller counts the node's silence from when it *heard* the last word, and waits GRACE_S longer. So
the node's lease is over, by its own clock, before the controller gives it up, whatever both clocks show and whatever got lost on
the way (C. Gray and D. Cheriton, Leases, SOSP 1989). Only differences of monotonic clocks count.

No lease is needed while no controller holds the line: nobody can decide anything then.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

LEASE_S = 0.7
GRACE_S = 0.2
BEAT_S = 0.1  # between two words: six may be late or lost
WORD = struct.Struct("<QQ")  # node → controller: number, how often its lease has run out
ANSWER = struct.Struct("<Q")  # the number again
_FILE = struct.Struct("<qQ")  # until (monotonic ns; 0: nobody holds us to one), how often it ran out


class LeaseFile:
    """The node's lease in shared memory: written by its pulse, read by its agent. One writer; each word is written in one piece."""

    def __init__(self, path: Path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _FILE.size)
            self._words = memoryview(mmap.mmap(descriptor, _FILE.size)).cast("q")
        finally:
            os.close(descriptor)

    @property
    def until_s(self) -> float:
        """When it is over, by time.monotonic(); 0.0 without one."""
        return self._words[0] / 1e9

    @property
    def lapses(self) -> int:
        """How often it has run out."""
        return self._words[1]

    @property
    def is_over(self) -> bool:
        return 0 < self._words[0] < time.monotonic_ns()

    def extend(self, until_s: float) -> None:
        self._words[0] = max(self._words[0], int(until_s * 1e9))

    def renew(self, until_s: float) -> None:
        """Another controller, or the same one again."""
        self._words[0] = int(until_s * 1e9)

    def release(self) -> None:
        """The controller has gone: it was ended, or it ended itself. A lease that is over stays over."""
        if not self.is_over:
            self._words[0] = 0

    def count_lapse(self) -> None:
        self._words[1] += 1
