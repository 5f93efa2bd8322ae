"""The page: 4096 bytes of shared memory between one rank and the agent of its node.

The rank writes how far it is; the agent writes the step at which the rank is to stop. Both sides only load and store
aligned 8-byte words, so no lock is needed and a step costs one store and one load. The file outlives the agent and the
rank; who created it removes it. Knows nothing of jobs; the layout below is all of it.

A proposal is safe by order (Dekker): the rank stores `step` before it loads `switch_step`; the agent stores `switch_step`
before it loads `step`. If the agent then sees `step < switch_step`, the rank will see the proposal in time.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Any

from restow.errors import SetupError

PAGE_BYTES = 4096
MAGIC = 0x3157_4F54_5345_52  # "RESTOW1"

# name → (offset, struct code); every word is 8 bytes
_WORDS: dict[str, tuple[int, Any]] = {
    "magic": (0, "Q"),
    "pid": (8, "q"),
    "generation": (16, "q"),  # of the rank that writes here
    "step": (24, "q"),  # finished steps; the rank's word
    "steps_total": (32, "q"),  # -1: open ended
    "switch_step": (40, "q"),  # stop when `step` equals this; -1: nothing proposed; the agent's word
    "switch_generation": (48, "q"),
    "step_s": (56, "d"),  # smoothed seconds per step
    "exposed_s": (64, "d"),  # smoothed seconds per step spent waiting for communication
    "data_s": (112, "d"),  # ... for the next batch
    "waited_s": (120, "d"),  # ... at the gate of a shared device
    "held_s": (128, "d"),  # seconds per step for which the gate was ours; 0: it was free, or there is none
    "valley_bytes": (136, "q"),  # memory in use at save points
    "swap_bytes": (144, "q"),  # to be moved out of the device between two time slices; the agent's word
    "quantum_s": (152, "d"),  # of a time slice; the agent's word
    "is_tight": (168, "q"),  # 1: who computes must hold the gate, since memory is short; the agent's word
    "swapped_bytes": (160, "q"),  # moved out at the end of the last time slice
    "wire_bytes": (72, "q"),  # payload given to collectives in the last step
    "memory_bytes": (80, "q"),
    "last_step_ns": (88, "q"),  # time.monotonic_ns() at the end of the last step
    "values_sequence": (96, "q"),  # even: the text below is whole; odd: being written
    "armed": (104, "q"),  # 1: a switch is being prepared, keep private state where it survives this process
}
_TEXT_OFFSET = 512  # reported values: u16 length, then JSON, at most 3000 bytes
_TEXT_MAX = 3000


class Page:
    """One rank's page. Attribute access reads and writes the shared word: `page.step = 7`, `page.switch_step`."""

    def __init__(self, path: Path, memory: mmap.mmap):
        self.path = path
        self._memory = memory
        view = memoryview(memory)
        self.words: dict[str, Any] = {name: view[o : o + 8].cast("B").cast(code) for name, (o, code) in _WORDS.items()}
        """Name → one-element memoryview; hot code keeps the view and uses `view[0]`."""

    def get(self, name: str) -> int | float:
        value: int | float = self.words[name][0]
        return value

    def set(self, name: str, value: int | float) -> None:
        self.words[name][0] = value

    def write_text(self, text: str) -> None:
        """Publish a short text (reported values as JSON). Torn reads are seen by the reader and tried again."""
        raw = text.encode()[:_TEXT_MAX]
        sequence = self.words["values_sequence"]
        sequence[0] += 1
        struct.pack_into("<H", self._memory, _TEXT_OFFSET, len(raw))
        self._memory[_TEXT_OFFSET + 2 : _TEXT_OFFSET + 2 + len(raw)] = raw
        sequence[0] += 1

    def read_text(self) -> str:
        """The last whole text; empty if none, or if three tries met a writer."""
        for _ in range(3):
            before = self.words["values_sequence"][0]
            (length,) = struct.unpack_from("<H", self._memory, _TEXT_OFFSET)
            raw = bytes(self._memory[_TEXT_OFFSET + 2 : _TEXT_OFFSET + 2 + min(length, _TEXT_MAX)])
            if before % 2 == 0 and self.words["values_sequence"][0] == before:
                return raw.decode(errors="replace")
        return ""

    def close(self) -> None:
        for view in self.words.values():
            view.release()
        self.words = {}
        self._memory.close()


def create_page(path: Path) -> Page:
    """A new page with nothing proposed. Raises SetupError when shared memory is full."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, PAGE_BYTES)  # a full tmpfs must fail here, not by SIGBUS later
            memory = mmap.mmap(descriptor, PAGE_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise SetupError(
            f"shared memory page {path}: {error.strerror}; free some of {path.parent} or set RESTOW_SHM"
        ) from None
    page = Page(path, memory)
    page.set("switch_step", -1)
    page.set("steps_total", -1)
    page.set("magic", MAGIC)
    return page


def open_page(path: Path) -> Page:
    """The page that somebody created. Raises SetupError when it is not one."""
    try:
        descriptor = os.open(path, os.O_RDWR)
        try:
            memory = mmap.mmap(descriptor, PAGE_BYTES)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise SetupError(f"shared memory page {path} cannot be opened: {error}") from None
    page = Page(path, memory)
    if page.get("magic") != MAGIC:
        page.close()
        raise SetupError(f"{path} is not a page of restow (wrong magic)")
    return page
