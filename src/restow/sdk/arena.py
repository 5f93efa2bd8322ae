"""Host memory for what the device has no room for: one arena, touched once and kept, and fast copies into and out of it.

Fresh pages cost more than the bytes that go into them (copies on two cores: 20 GB/s, into fresh huge pages 5, into small
ones 1.4), so nothing here is given back before the end. Pinned for CUDA
by registering our own pages: torch's pinned allocator rounds up to a power of two, which for 80 GB is 48 GB of nothing.
Bytes are flat uint8 tensors (of a device) or addresses; knows nothing of jobs, parameters or turns.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from restow.errors import Refused
from restow.sdk.memory import SECOND_THREAD_BYTES

GRAIN_BYTES = 32 << 20  # an arena grows by at least so much: a copy is split where two segments meet
CHUNK_BYTES = 4 << 20  # of a copy: 0.3 ms, so two threads end together
HUGE_BYTES = 2 << 20  # of a huge page
_POPULATE_WRITE = 23  # madvise: fault all pages in with one call; Linux 5.14, not in Python's mmap yet
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every context, as torch's own does
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h

_libc = ctypes.CDLL(None, use_errno=True)  # calls release the GIL
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_memmove = _libc.memmove
_memmove.restype = ctypes.c_void_p
_memmove.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

Pair = tuple[torch.Tensor, torch.Tensor]
"""(to, from): flat bytes of the same length."""


class Arena:
    """Bytes of host memory by offset. Grows by what is missing, in segments: what is in it stays where it is."""

    def __init__(self, pinned: bool = False):
        self._pinned = pinned
        self._segments: list[torch.Tensor] = []
        # memory that is unmapped while it is pinned makes a later allocation at its address fail, far from here
        finalizer = weakref.finalize(self, _release, self._segments, pinned)
        finalizer.atexit = False

    @property
    def capacity_bytes(self) -> int:
        return sum(segment.numel() for segment in self._segments)

    def reserve(self, nbytes: int) -> None:
        """Make it hold `nbytes` in all. Raises Refused, and changes nothing, where the host has too little memory."""
        missing = nbytes - self.capacity_bytes
        if missing <= 0:
            return
        missing = -(-missing // GRAIN_BYTES) * GRAIN_BYTES
        if missing > (free := available_bytes()):
            raise Refused(f"swapping needs {missing >> 20} MB more host memory and {free >> 20} MB are available; "
                          "run fewer jobs on this node or let less than everything leave the device")
        self._segments.append(_segment(missing, self._pinned))

    def views(self, offset: int, nbytes: int) -> Iterator[torch.Tensor]:
        """`nbytes` from `offset` on, as one flat tensor for each segment that they touch."""
        for segment in self._segments:
            if nbytes and offset < segment.numel():
                view = segment[offset : offset + nbytes]
                yield view
                nbytes -= view.numel()
            offset = max(0, offset - segment.numel())

    def close(self) -> None:
        """Give the memory back (with the last view of it)."""
        _release(self._segments, self._pinned)


def _release(segments: list[torch.Tensor], pinned: bool) -> None:
    while segments:
        segment = segments.pop()
        if pinned:
            _check_cuda(torch.cuda.cudart().cudaHostUnregister(segment.data_ptr()), "unpinning", segment.numel())


def _segment(nbytes: int, pinned: bool) -> torch.Tensor:
    """Touched anonymous memory that no forked DataLoader worker gets copies of when we write.

    Pinned: huge pages, which are touched at 4.6 GB/s against 1.3. Else shared, which has none (as most kernels are set), but does
    not count for RLIMIT_DATA and as RssAnon: these stand for the device's memory where there is no device. Copies are as fast.
    """
    flags = mmap.MAP_ANONYMOUS | (mmap.MAP_PRIVATE if pinned else mmap.MAP_SHARED)
    try:
        memory = mmap.mmap(-1, nbytes, flags=flags)
    except OSError as error:
        raise Refused(f"swapping needs {nbytes >> 20} MB more host memory: {error}") from None
    memory.madvise(mmap.MADV_DONTDUMP)
    memory.madvise(mmap.MADV_DONTFORK)
    segment = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the mapping
    if pinned:
        want_huge_pages(segment.data_ptr(), nbytes)
    populate(segment.data_ptr(), nbytes)
    segment[:: mmap.PAGESIZE] = 0  # for kernels that could not
    if pinned:
        _check_cuda(torch.cuda.cudart().cudaHostRegister(segment.data_ptr(), nbytes, _PORTABLE), "pinning", nbytes)
    return segment


def _check_cuda(code: object, doing: str, nbytes: int) -> None:
    if int(code):  # type: ignore[call-overload]
        raise Refused(f"{doing} {nbytes >> 20} MB of host memory: CUDA error {int(code)}")  # type: ignore[call-overload]


def available_bytes() -> int:
    """What the kernel thinks can be had without swapping to disk; a cgroup's limit is not in it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 1 << 62  # a kernel older than 3.14 does not say: let mmap decide


# ---------------------------------------------------------------- copies


def flat(storage: torch.UntypedStorage) -> torch.Tensor:
    """The bytes of a storage. A tensor of its own, with its own version: a write through it is not seen by autograd."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def copy(pairs: Sequence[Pair], device: torch.device) -> None:
    """All of them; done when it returns. CUDA: on a stream of its own, one call for each pair, host memory pinned."""
    if device.type != "cuda":
        copy_in_host(pairs)
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for to, source in pairs:
            to.copy_(source, non_blocking=True)
    stream.synchronize()


def copy_in_host(pairs: Sequence[Pair], threads: int = 2) -> None:
    """By memmove, in chunks that two threads take turns at: on an idle machine 20 GB/s against 13; where the second core is
    busy the first does most. (torch's own copy would use the threads that the user set, or not.)"""
    waiting = deque(_chunks(pairs))
    if threads < 2 or sum(to.numel() for to, _ in waiting) < SECOND_THREAD_BYTES:
        _move(waiting)
        return
    with ThreadPoolExecutor(1, "restow-swap") as second:
        other = second.submit(_move, waiting)
        _move(waiting)
        other.result()


def _chunks(pairs: Sequence[Pair]) -> Iterator[Pair]:
    for to, source in pairs:
        assert to.numel() == source.numel()
        for at in range(0, to.numel(), CHUNK_BYTES):
            yield to[at : at + CHUNK_BYTES], source[at : at + CHUNK_BYTES]


def _move(waiting: deque[Pair]) -> None:
    while True:
        try:
            to, source = waiting.popleft()
        except IndexError:  # the other thread has taken the last
            return
        _memmove(to.data_ptr(), source.data_ptr(), to.numel())


# ---------------------------------------------------------------- pages of the host


def populate(address: int, nbytes: int) -> None:
    """Have the pages that lie wholly within faulted in by one call; nothing happens where the kernel cannot."""
    start, length = whole_pages(address, nbytes)
    _libc.madvise(start, length, _POPULATE_WRITE)


def want_huge_pages(address: int, nbytes: int) -> None:
    """Where this memory is faulted in from now on, by 2 MB at a time if the kernel has them."""
    if nbytes >= HUGE_BYTES:
        start, length = whole_pages(address, nbytes)
        _libc.madvise(start, length, mmap.MADV_HUGEPAGE)  # a kernel without them says EINVAL; then they are small


def free_pages(address: int, nbytes: int, lazily: bool) -> None:
    """Let the kernel have the memory of whole pages; the addresses stay. At once (they read as zeros), or `lazily`, when it
    needs memory for anybody (they read as what they were, or zeros): those that it did not take are written without a fault."""
    if not nbytes or (lazily and _libc.madvise(address, nbytes, mmap.MADV_FREE) == 0):
        return
    if _libc.madvise(address, nbytes, mmap.MADV_DONTNEED):
        raise OSError(ctypes.get_errno(), "madvise(MADV_DONTNEED): is the memory of this process locked?")


def whole_pages(address: int, nbytes: int) -> tuple[int, int]:
    """(address, bytes) of the pages that lie wholly within."""
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    return start, max(0, (address + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start)


def keep_freed_memory() -> bool:
    """Let malloc never give memory back to the kernel. False: not glibc.

    For a CPU that stands for a device: the storages that swap.py empties are then filled again without page faults, as
    a device's would be, and another process gains nothing. For the whole process, and for good.
    """
    mallopt = getattr(_libc, "mallopt", None)
    return bool(mallopt and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
