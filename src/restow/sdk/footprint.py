"""What a process needs of its device's memory, and the limit it was given.

The *valley* is what it holds at a save point, the *peak* the most inside a step. On a CPU, which only stands for a device, they
are the process's private memory (RssAnon): the interpreter's own share is in it, and memory that malloc keeps after it was freed.
"""

from __future__ import annotations

import re
import resource
from pathlib import Path

import torch

from restow.errors import SpecError

_FIRST_STEPS = 3  # sampled all: the first makes the optimizer's state, the second is the first ordinary one
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")

_limit_bytes = 0  # what limit_memory was given last; 0: never


class MemoryWatch:
    """Highest valley and highest peak so far, sampled: one step in `every`, from its save point to the next.

    CUDA: memory_allocated and max_memory_allocated, whose high-water mark is reset at the beginning of a sampled step, so a
    script that reads it for itself sees less. CPU: the kernel's high-water mark (VmHWM), reset by writing 5 to
    /proc/self/clear_refs (Linux 4.0); where that is not allowed the peak is that of the whole life: too much, never too little.
    """

    def __init__(self, device: torch.device | str = "cpu", every: int = 32):
        self._device = torch.device(device)
        self._every = every  # a sample costs some 100 us on either device: 32 steps make that 3 us each
        self._steps = 0
        self._open: tuple[int, int] | None = None  # (valley, high-water mark at that time) of a step that is being sampled
        self.valley_bytes = 0  # 0: no sample yet
        self.peak_bytes = 0

    def step(self) -> None:
        """At each save point; most calls do nothing."""
        number, self._steps = self._steps, self._steps + 1
        if self._open is not None:
            valley, mark = self._open
            self._open = None
            self.peak_bytes = max(self.peak_bytes, valley + max(0, self._highest() - mark))
        if number < _FIRST_STEPS or number % self._every == 0:
            valley, mark = self._begin()
            self._open = (valley, mark)
            self.valley_bytes = max(self.valley_bytes, valley)
            self.peak_bytes = max(self.peak_bytes, valley)

    def _begin(self) -> tuple[int, int]:
        """(bytes held now, what the high-water mark is now that it was reset)."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            held = int(torch.cuda.memory_allocated(self._device))
            return held, held
        try:
            _CLEAR_REFS.write_bytes(b"5\n")
        except OSError:
            pass  # the mark is that of the whole life, as the docstring says
        status = _status()
        return status["RssAnon"], status["VmRSS"]

    def _highest(self) -> int:
        return int(torch.cuda.max_memory_allocated(self._device)) if self._device.type == "cuda" else _status()["VmHWM"]


def _status() -> dict[str, int]:
    """The lines of /proc/self/status that are in kB, as bytes."""
    lines = (line.split() for line in _STATUS.read_text().splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): int(amount) << 10 for name, amount, _ in lines}


def limit_memory(nbytes: int, device: torch.device | str = "cpu") -> None:
    """Let this process's allocations fail above `nbytes` of device memory, with an error that names memory.

    CUDA: what torch's allocator may take, all in all; not what libraries allocate by themselves. CPU: private memory from now
    on (RLIMIT_DATA above what there is), so call it before the model is built; address space counts, touched or not, and
    an arena does not. A limit, no protection: a script that means harm can lift it.
    """
    global _limit_bytes
    if nbytes <= 0:
        raise SpecError(f"a memory limit of {nbytes} bytes leaves nothing to train in")
    device = torch.device(device)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.set_per_process_memory_fraction(min(1.0, nbytes / total), index)
    else:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = _status()["VmData"] + nbytes
        resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    _limit_bytes = nbytes


_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) ?(bytes|[KMGT]i?B)")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def memory_error_line(error: BaseException, job: str = "this job") -> str | None:
    """One line for a person if `error` says that device memory is used up, or more than `limit_memory` allows; else None."""
    text = str(error)
    is_ours = isinstance(error, torch.OutOfMemoryError) or (bool(_limit_bytes) and isinstance(error, MemoryError)) or (
        isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in text or "CUDA out of memory" in text)
    )
    if not is_ours:
        return None
    what = f"exceeds its memory of {_said(_limit_bytes)}" if _limit_bytes else "found no more memory on its device"
    asked = _ASKED.search(text)
    piece = f" (it asked for {_said(float(asked[1]) * _UNITS[asked[2]])} more)" if asked and asked[2] in _UNITS else ""
    return f"{job} {what}{piece}; make its batch or model smaller, or declare more memory in its spec"


def _said(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
