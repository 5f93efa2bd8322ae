"""Memory below tensors: reading another process's on the same machine, and keeping our own once it was touched.

One copy, no server thread in the way (process_vm_readv). Needs the same user (or CAP_SYS_PTRACE) and the same process
namespace; `can_read` finds out without guessing. Knows nothing of tensors: addresses and lengths only.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from restow.errors import Refused, Unreachable

IOVECS_MAX = 1024  # the kernel's UIO_MAXIOV
SECOND_THREAD_BYTES = 32 << 20  # below it, starting a thread costs more than it brings
_CALL_BYTES = 1 << 30  # the kernel stops at 2 GB - 4 KB per call; smaller calls keep threads interruptible

_libc = ctypes.CDLL(None, use_errno=True)  # calls release the GIL
_libc.malloc.restype, _libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
_libc.memset.argtypes, _libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
_readv = _libc.process_vm_readv
_readv.restype = ctypes.c_ssize_t
_readv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MMAP_BYTES = 32 << 20  # the most that glibc takes (HEAP_MAX_SIZE / 2); larger pieces come from mmap as ever
_PIECE_BYTES = 16 << 20  # below _MMAP_BYTES: from the heap
KEPT_BYTES = 256 << 20

_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)

Piece = tuple[int, int, int]
"""(address there, bytes, address here)"""


def allow_reading() -> bool:
    """Let processes of the same user read this one where yama restricts that to parents; False: yama is not there."""
    return bool(_libc.prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0) == 0)


def keep_touched_memory(environment: Mapping[str, str] = os.environ, kept_bytes: int = KEPT_BYTES) -> bool:
    """Let malloc keep `kept_bytes` that were freed, so that a step's temporaries are the same pages each time. False: not
    glibc, or the user has set malloc's own variables.

    By default glibc gives pieces of some megabytes back to the kernel, and each step faults them in again; a twin that has
    parked would do so in its first step, when the whole gang waits for it (16,000 faults and 70 ms for 100 MB of state).
    """
    if any(name in environment for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return False
    mallopt = getattr(_libc, "mallopt", None)
    trim = min(kept_bytes, 2**31 - 1)  # the parameter is an int
    return bool(mallopt and mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, trim))


def touch_ahead(nbytes: int) -> None:
    """Have so many bytes of this thread's heap ready: taken, written to and freed again."""
    sizes = [_PIECE_BYTES] * (nbytes // _PIECE_BYTES) + [nbytes % _PIECE_BYTES]
    pieces = [piece for piece in map(_libc.malloc, sizes) if piece]
    for piece, size in zip(pieces, sizes, strict=False):
        _libc.memset(piece, 0, size)
    for piece in pieces:
        _libc.free(piece)


def can_read(pid: int, canary: int, nonce: bytes) -> bool:
    """Is `pid` a process of this machine that we may read? True only if the bytes at `canary` are `nonce`, so another
    process that happens to have the same number on this machine is told apart."""
    seen = ctypes.create_string_buffer(len(nonce))
    try:
        read_process_memory(pid, [(canary, len(nonce), ctypes.addressof(seen))])
    except (Refused, Unreachable):
        return False
    return seen.raw == nonce


def read_process_memory(pid: int, pieces: Sequence[Piece], threads: int = 2) -> int:
    """Copy `pieces` from `pid` into our memory; returns the bytes. The caller keeps both sides' memory alive.

    Raises Refused when the kernel forbids it, Unreachable when the process or the memory is gone.
    """
    total = sum(length for _, length, _ in pieces)
    if threads < 2 or total < SECOND_THREAD_BYTES:
        return _read(pid, pieces)
    shares = _halves(pieces, total)
    with ThreadPoolExecutor(1, "restow-read") as second:
        other = second.submit(_read, pid, shares[1])
        return _read(pid, shares[0]) + other.result()


def _halves(pieces: Sequence[Piece], total: int) -> tuple[list[Piece], list[Piece]]:
    first: list[Piece] = []
    left = total // 2
    for at, (there, length, here) in enumerate(pieces):
        if length >= left:
            tail = [(there + left, length - left, here + left)] if length > left else []
            return [*first, (there, left, here)], [*tail, *pieces[at + 1 :]]
        first.append((there, length, here))
        left -= length
    return first, []


def _read(pid: int, pieces: Sequence[Piece]) -> int:
    """All of `pieces`, in calls of at most IOVECS_MAX of them, going on after a partial read."""
    done = 0
    waiting = [piece for piece in reversed(pieces) if piece[1]]
    while waiting:
        batch: list[Piece] = []
        room = _CALL_BYTES
        while waiting and len(batch) < IOVECS_MAX and room:
            there, length, here = waiting.pop()
            if length > room:
                waiting.append((there + room, length - room, here + room))
                length = room
            batch.append((there, length, here))
            room -= length
        got = _call(pid, batch)
        done += got
        for at, (there, length, here) in enumerate(batch):
            if got < length:  # a partial read ends inside this piece
                waiting.extend(reversed(batch[at + 1 :]))
                waiting.append((there + got, length - got, here + got))
                break
            got -= length
    return done


def _call(pid: int, batch: Sequence[Piece]) -> int:
    remote = array("Q", [word for there, length, _ in batch for word in (there, length)])
    local = array("Q", [word for _, length, here in batch for word in (here, length)])
    while True:
        got = _readv(pid, local.buffer_info()[0], len(batch), remote.buffer_info()[0], len(batch), 0)
        if got > 0:
            return int(got)
        code = ctypes.get_errno() if got < 0 else 0
        if code == 4:  # EINTR
            continue
        why = os.strerror(code) if code else "nothing came"
        if code in (1, 38):  # EPERM, ENOSYS
            raise Refused(f"reading the memory of process {pid}: {why}; it needs the same user and no ptrace restriction")
        raise Unreachable(f"reading the memory of process {pid}: {why}; it ended, or its memory is no longer there")
