"""What a rank alone holds, as of its last two save points, in a small file in shared memory that outlives it.

Two slots, written in turn: whoever is killed in the middle of one leaves the other whole. Each begins with the step, the length and
the checksum of what follows. Knows nothing of what is in it.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import xxhash

_HEAD = struct.Struct("<qqQ")  # step, length, XXH3 of the bytes with the step as its seed
SLOT_BYTES = 1 << 20  # the first try; a slot that needs more makes the file anew
PAGE = 4096
SEED_MASK = (1 << 63) - 1


class Slots:
    """The writer's end."""

    def __init__(self, path: Path):
        self._path = path
        self._room = 0
        self._descriptor = -1

    def write(self, step: int, blob: bytes) -> None:
        """Raises OSError when there is no room; the slot of the step before is then still whole."""
        if _HEAD.size + len(blob) > self._room:
            self._make_room(len(blob))
        head = _HEAD.pack(step, len(blob), xxhash.xxh3_64_intdigest(blob, step))
        os.pwritev(self._descriptor, [head, blob], (step % 2) * self._room + PAGE)

    def _make_room(self, length: int) -> None:
        """A file with larger slots takes the place of this one, with what was in it."""
        before = read(self._path) if self._descriptor >= 0 else {}
        self.close()
        self._room = max(SLOT_BYTES, 2 * (_HEAD.size + length) + -2 * (_HEAD.size + length) % PAGE)
        unfinished = self._path.with_name(f"{self._path.name}.unfinished")
        self._descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.pwrite(self._descriptor, struct.pack("<q", self._room), 0)
        for step, blob in before.items():
            self.write(step, blob)
        unfinished.replace(self._path)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._room = 0


def read(path: Path) -> dict[int, bytes]:
    """Step → what was held then, of every slot that is whole; empty where there is no such file."""
    found: dict[int, bytes] = {}
    try:
        with path.open("rb") as file:
            room = struct.unpack("<q", file.read(8))[0]
            for number in (0, 1):
                file.seek(number * room + PAGE)
                step, length, checksum = _HEAD.unpack(file.read(_HEAD.size))
                blob = file.read(length) if 0 <= length <= room else b""
                if length > 0 and len(blob) == length and xxhash.xxh3_64_intdigest(blob, step & SEED_MASK) == checksum:
                    found[step] = blob
    except (OSError, struct.error):
        pass  # not there, or no slot was written yet
    return found
