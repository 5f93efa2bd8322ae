"""The C library as the gate needs it: robust mutexes, futexes, record locks, shared memory. Linux, 64 bits.

Calls that cannot block keep the interpreter's lock (PyDLL): giving it up and taking it again would cost more than they do,
and another thread could run while a mutex that other processes want is held. Calls that can block give it up (CDLL).
Everything works on addresses; knows nothing of gates.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import mmap
import os
import platform
import time
import weakref
from errno import EACCES, EAGAIN, EBUSY, EDEADLK, ENOTRECOVERABLE, EOWNERDEAD, ETIMEDOUT
from pathlib import Path
from typing import Any

__all__ = ["EBUSY", "EDEADLK", "ENOTRECOVERABLE", "EOWNERDEAD", "ETIMEDOUT"]

_quick = ctypes.PyDLL(None, use_errno=True)
_patient = ctypes.CDLL(None, use_errno=True)
_plain = ctypes.PyDLL(None)  # without errno, which costs a little at each call

MUTEX_BYTES = 64  # pthread_mutex_t is 40 bytes on x86_64, 48 on aarch64


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _timespec(time_s: float) -> _Timespec:
    nanoseconds = max(0, int(time_s * 1e9))
    return _Timespec(nanoseconds // 1_000_000_000, nanoseconds % 1_000_000_000)


# ---- mutexes -----------------------------------------------------------------------------------------------------------

# Each takes what `reference` gave and returns 0 or an error number. Without argtypes, since converting costs as much as locking.
trylock: Any = _plain["pthread_mutex_trylock"]
unlock: Any = _plain["pthread_mutex_unlock"]
make_consistent: Any = _plain["pthread_mutex_consistent"]

_ERRORCHECK, _SHARED, _ROBUST = 2, 1, 1  # <pthread.h>, the same in glibc and musl


def reference(address: int, length: int = 8) -> Any:
    """A pointer to `length` bytes at `address`, ready to be passed."""
    return ctypes.byref((ctypes.c_char * length).from_address(address))


def make_mutex(mutex: Any) -> None:
    """A robust, process-shared, unlocked one. The error-checking kind: who locks it twice is told, not hung."""
    attributes = ctypes.create_string_buffer(64)
    _plain["pthread_mutexattr_init"](attributes)
    for set_attribute, value in (("settype", _ERRORCHECK), ("setpshared", _SHARED), ("setrobust", _ROBUST)):
        code = _plain[f"pthread_mutexattr_{set_attribute}"](attributes, value)
        assert code == 0, f"pthread_mutexattr_{set_attribute}: {os.strerror(code)}"
    code = _plain["pthread_mutex_init"](mutex, attributes)
    assert code == 0, f"pthread_mutex_init: {os.strerror(code)}"
    _plain["pthread_mutexattr_destroy"](attributes)


def _kind_of_ours() -> int:
    sample = ctypes.create_string_buffer(MUTEX_BYTES)
    make_mutex(sample)
    return int.from_bytes(sample.raw[MUTEX_KIND_OFFSET : MUTEX_KIND_OFFSET + 4], "little", signed=True)


MUTEX_KIND_OFFSET = 16  # the field `kind`, a C int, of glibc's pthread_mutex_t
MUTEX_KIND = _kind_of_ours()  # of any that `make_mutex` made; glibc ends a process that uses certain others


try:
    _clocklock: Any = _patient["pthread_mutex_clocklock"]
except AttributeError:  # glibc before 2.30, musl
    _clocklock = None
_timedlock: Any = _patient["pthread_mutex_timedlock"]


def lock_within(mutex: Any, timeout_s: float) -> int:
    """Wait for a mutex, other threads may run: 0, ETIMEDOUT, EOWNERDEAD (it is ours, its last owner died), EDEADLK (it is this
    thread's already) or another error number."""
    if _clocklock:
        deadline = _timespec(time.monotonic() + timeout_s)
        return int(_clocklock(mutex, time.CLOCK_MONOTONIC, ctypes.byref(deadline)))
    deadline = _timespec(time.time() + timeout_s)
    return int(_timedlock(mutex, ctypes.byref(deadline)))


def mutex_owner(address: int) -> int:
    """The id of the thread that has locked the mutex at `address`, 0 if none: the first word in glibc and the low 30 bits of it,
    as the kernel's robust list demands."""
    return ctypes.c_uint32.from_address(address).value & 0x3FFF_FFFF


def process_of(thread: int) -> int:
    """The process of a thread; 0 if there is none."""
    try:
        status = Path(f"/proc/{thread}/status").read_text() if thread else ""
    except OSError:
        return 0
    return int(status.partition("Tgid:")[2].split(maxsplit=1)[0]) if "Tgid:" in status else 0


# ---- futexes -----------------------------------------------------------------------------------------------------------

_SYS_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 0)
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1  # not the private kind: the word is shared between processes
_ARGUMENTS = (
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_uint32,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_uint32,
)
_futex_wait, _futex_wake = _patient["syscall"], _plain["syscall"]
for _function in (_futex_wait, _futex_wake):
    _function.argtypes, _function.restype = _ARGUMENTS, ctypes.c_long


def wait_while(word: Any, value: int, timeout_s: float) -> None:
    """Sleep while the 32-bit word holds `value`, until woken, at most `timeout_s`. May return early for no reason."""
    _futex_wait(_SYS_FUTEX, word, _FUTEX_WAIT, value, ctypes.byref(_timespec(timeout_s)), None, 0)


def wake(word: Any) -> None:
    """Wake whoever sleeps on the word."""
    _futex_wake(_SYS_FUTEX, word, _FUTEX_WAKE, 0x7FFF_FFFF, None, None, 0)


# ---- record locks ------------------------------------------------------------------------------------------------------


class _Flock(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_short),
        ("whence", ctypes.c_short),
        ("start", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("pid", ctypes.c_int),
    )


_fcntl: Any = _quick["fcntl"]
_quick_fcntl: Any = _plain["fcntl"]


def lock_byte(descriptor: int, byte: int) -> bool:
    """Take the POSIX record lock on one byte for this process; False if another process has it."""
    wanted = _Flock(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    if _fcntl(descriptor, fcntl.F_SETLK, ctypes.byref(wanted)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (EACCES, EAGAIN):
        return False
    raise OSError(code, os.strerror(code))


def unlock_byte(descriptor: int, byte: int) -> None:
    _fcntl(descriptor, fcntl.F_SETLK, ctypes.byref(_Flock(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0)))


def is_byte_locked(descriptor: int, byte: int) -> bool:
    """Whether *another* process has the record lock on this byte; one's own locks are never seen."""
    asked = _Flock.from_buffer_copy(_question(byte))
    if _quick_fcntl(descriptor, fcntl.F_GETLK, ctypes.byref(asked)) != 0:
        raise OSError(f"the record locks of descriptor {descriptor} cannot be read")
    return bool(asked.type != fcntl.F_UNLCK)


@functools.cache
def _question(byte: int) -> bytes:
    return bytes(_Flock(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))


# ---- shared memory -----------------------------------------------------------------------------------------------------

_mmap, _munmap = _quick["mmap"], _quick["munmap"]
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def map_shared(descriptor: int, length: int) -> tuple[int, memoryview[int]]:
    """(address, bytes) of a file's first `length` bytes in shared memory; unmapped when the last view of them is gone.

    Not `mmap.mmap`: that duplicates the descriptor, and closing the duplicate would drop this process's record locks.
    """
    address = _mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    block = (ctypes.c_char * length).from_address(address)
    weakref.finalize(block, _munmap, address, length).atexit = False  # views may be in use until the very end
    return address, memoryview(block).cast("B")
