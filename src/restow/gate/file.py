"""The file of a gate's page: made whole or not at all, opened once per process, and the locks that say who lives.

A POSIX record lock belongs to a process, and the kernel drops it when the process ends or replaces itself by exec, children
that it forked notwithstanding. It also drops it when the process closes *any* descriptor of the file: hence one descriptor
per process and file, shared by all who use it here, closed when the last of them is gone, and no mmap object (it has a
descriptor of its own). A forked child closes what it inherited and is nobody; what it opens afterwards is its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import weakref
from pathlib import Path
from typing import Protocol

from restow.errors import SetupError
from restow.gate import native
from restow.gate.record import PAGE_BYTES, SEATS, Record

_LIFE_BYTE = 4096  # the first of the bytes that are locked, one for each seat; beyond the end, nothing is written there
KEEPER = SEATS  # the byte after those of the seats: the agent's


class _Member(Protocol):
    def become_nobody(self) -> None: ...


class GateFile:
    """One page, mapped, as this process has it. `attach` gives it, `detach` gives it back."""

    def __init__(self, path: Path, number: int):
        self.path = path
        self.number = number
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(self._descriptor).st_size < PAGE_BYTES:
                raise SetupError(f"{path} is too short to be the page of a gate; remove it")
            self._address, view = native.map_shared(self._descriptor, PAGE_BYTES)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.record = Record(self._address, view)
        self.users = 0
        self._own: set[int] = set()  # what this process has locked: the kernel does not tell it of its own locks

    def is_alive(self, byte: int) -> bool:
        """Whether the process that took this seat (or KEEPER) still lives and has not given it back."""
        return byte in self._own or native.is_byte_locked(self._descriptor, _LIFE_BYTE + byte)

    def take(self, byte: int) -> bool:
        """Say that we live there; False if somebody else does."""
        if byte in self._own or not native.lock_byte(self._descriptor, _LIFE_BYTE + byte):
            return False
        self._own.add(byte)
        return True

    def give_back(self, byte: int) -> None:
        self._own.discard(byte)
        native.unlock_byte(self._descriptor, _LIFE_BYTE + byte)

    def close(self) -> None:
        self._own.clear()
        os.close(self._descriptor)


_files: dict[Path, GateFile] = {}
_members: weakref.WeakSet[_Member] = weakref.WeakSet()
_mutex = threading.Lock()


def add_member(member: _Member) -> None:
    """`become_nobody` is called in a child that is forked later."""
    with _mutex:
        _members.add(member)


def attach(path: Path, number: int) -> GateFile:
    """The page at `path`. Raises FileNotFoundError if it is gone, SetupError if it is too short."""
    with _mutex:
        file = _files.get(path)
        if file is None:
            file = _files[path] = GateFile(path, number)
        file.users += 1
        return file


def detach(file: GateFile) -> None:
    with _mutex:
        file.users -= 1
        if file.users == 0:
            del _files[file.path]
            file.close()


def _after_fork_in_child() -> None:
    global _mutex
    _mutex = threading.Lock()  # whoever had it does not exist here
    for member in list(_members):
        member.become_nobody()
    for file in _files.values():
        file.close()
    _files.clear()
    _members.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


LINK = "link"  # the folder, beside the pages of the devices, in which the page of this node's link is: device 0 there


def path_of(folder: Path, device: int, number: int) -> Path:
    return folder / f"device{device}.{number}.gate"


def numbers(folder: Path, device: int) -> list[int]:
    """The numbers of all pages of this device, the newest last."""
    pattern = re.compile(rf"device{device}\.(\d+)\.gate")
    try:
        return sorted(int(found[1]) for name in os.listdir(folder) if (found := pattern.fullmatch(name)))
    except FileNotFoundError:
        return []


def attach_newest(folder: Path, device: int, *, mode: int) -> GateFile:
    """The newest page of a device; page 1 is made, in `mode`, if there is none. Raises SetupError when shared memory is full."""
    while True:
        found = numbers(folder, device)
        if not found:
            create(folder, device, 1, mode=mode, former=0)
        else:
            with contextlib.suppress(FileNotFoundError):  # removed in the meantime
                return attach(path_of(folder, device, found[-1]), found[-1])


def create(folder: Path, device: int, number: int, *, mode: int, former: int) -> None:
    """Make a page unless it exists. It is filled under another name first: nobody ever sees half of one."""
    path = path_of(folder, device, number)
    draft = folder / f".{path.name}.{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, PAGE_BYTES)  # a full tmpfs must fail here, not by SIGBUS later
            address, view = native.map_shared(descriptor, PAGE_BYTES)
            Record(address, view).begin(number=number, device=device, mode=mode, former=former)
        finally:
            os.close(descriptor)
        with contextlib.suppress(FileExistsError):  # somebody was faster; theirs is as good
            os.link(draft, path)
    except OSError as error:
        raise SetupError(f"gate {path}: {error.strerror}; free some of {folder} or set RESTOW_SHM") from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def remove_all(folder: Path, device: int) -> None:
    """Every page of a device, and drafts whose maker was killed."""
    for pattern in (f"device{device}.*.gate", f".device{device}.*.gate.*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def still_alive(path: Path, number: int, seats: int) -> int:
    """Those of the seats (one bit each) on the page at `path` whose process still lives there."""
    try:
        file = attach(path, number)
    except (FileNotFoundError, SetupError):
        return 0
    try:
        return sum(1 << seat for seat in range(SEATS) if seats >> seat & 1 and file.is_alive(seat))
    finally:
        detach(file)
