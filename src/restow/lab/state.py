"""Where labs are written down: one folder per lab with its state, its socket and its nodes' device files.

The base folder is private to the user. A lab is *abandoned* when the process that made it is gone; labs without an owner
(`restow lab up`) are abandoned when their holder is gone. Knows nothing of networks.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from restow.errors import NotFound, Refused, SetupError, SpecError

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    started_ticks: int  # since boot, as the kernel counts
    boot: str  # id of the boot

    @property
    def is_alive(self) -> bool:
        return identify(self.pid) == self


def identify(pid: int) -> Process | None:
    """The process that has this pid now; None if there is none, or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    return Process(pid, int(fields[19]), Path("/proc/sys/kernel/random/boot_id").read_text().strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class LabState:
    """What must be known to use or to remove a lab."""

    name: str
    id: str  # never used again; marks every process that was started in the lab
    folder: Path
    nodes: int
    devices: int
    subnet: int  # nodes are 10.213.<subnet>.<number>
    owner: Process | None  # None: stays until somebody takes it down
    holder: Process | None = None  # None: not yet there
    how: str = ""  # "root" or "user"
    namespaces: dict[str, int] = field(default_factory=dict)  # node → inode of its network namespace; "" is the switch
    descriptors: dict[str, int] = field(default_factory=dict)  # node → descriptor that the holder keeps open
    user_namespace: int | None = None  # inode, for how == "user"
    cgroups: tuple[str, ...] = ()  # parents first
    notes: tuple[str, ...] = ()  # what this machine could not do, one line each

    @property
    def is_abandoned(self) -> bool:
        responsible = self.owner or self.holder
        return responsible is None or not responsible.is_alive

    @property
    def mark(self) -> str:
        """The value of RESTOW_LAB in every process of the lab."""
        return f"{self.name}-{self.id}"

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(f"m{number}" for number in range(1, self.nodes + 1))

    def address(self, node: str) -> str:
        return f"10.213.{self.subnet}.{int(node[1:])}"

    def devices_file(self, node: str) -> Path:
        return self.folder / f"{node}.devices.json"

    def write(self, into: Path | None = None) -> None:
        """Replace the state file of the lab's folder (or of `into`) at once."""
        folder = into or self.folder
        fresh = folder / f"state.json.{os.getpid()}"
        fresh.write_text(json.dumps(asdict(self), default=str))
        fresh.rename(folder / "state.json")


def base_folder() -> Path:
    """The user's folder of labs; it is there only while there are labs."""
    uid = os.geteuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if uid == 0 and os.access("/run", os.W_OK):
        return Path("/run/restow-labs")
    if uid != 0 and runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / "restow-labs"
    return Path(f"/tmp/restow-labs-{uid}")


@contextmanager
def locked() -> Iterator[Path]:
    """The base folder, while no other process makes or removes labs. Removed at the end if no lab is left.

    Raises SetupError when it belongs to somebody else.
    """
    base = base_folder()
    while (lock := _take_lock(base)) is None:
        pass  # the maker of the last lab removed the lock while we waited for it; take the new one
    try:
        yield base
    finally:
        if os.listdir(base) == [".lock"]:
            (base / ".lock").unlink()
            with suppress(OSError):  # somebody made a new lock already
                base.rmdir()
        os.close(lock)


def _take_lock(base: Path) -> int | None:
    """Wait for the lock of this folder; its descriptor, or None if it is not the folder's lock any more."""
    with suppress(FileExistsError):
        base.mkdir(mode=0o700)
    try:
        status = base.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise SetupError(f"{base} is not a private folder of this user; remove it")
        lock = os.open(base / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_ino == (base / ".lock").stat().st_ino:
            return lock
    except FileNotFoundError:
        pass  # as below: not the folder's lock any more
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def read_state(folder: Path) -> LabState | None:
    """The state of the lab in `folder`; None if there is none (any more)."""
    try:
        wire: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError):
        return None
    for name in ("owner", "holder"):
        wire[name] = Process(**wire[name]) if wire[name] else None
    wire["folder"] = Path(wire["folder"])
    for name in ("cgroups", "notes"):
        wire[name] = tuple(wire[name])
    return LabState(**wire)


def states() -> list[LabState]:
    """All labs of this user, by name, abandoned ones too."""
    base = base_folder()
    found = (read_state(folder) for folder in sorted(base.glob("[a-z0-9]*")))
    return [state for state in found if state]


def find(name: str | None) -> LabState:
    """The lab with that name; with None the only one that is up. Raises NotFound or Refused."""
    alive = {state.name: state for state in states() if not state.is_abandoned}
    if name is None and len(alive) > 1:
        raise Refused(f"{len(alive)} labs are up ({', '.join(alive)}); name one")
    if name is None and alive:
        return next(iter(alive.values()))
    if name is None:
        raise NotFound("no lab is up; start one with restow lab up")
    if name not in alive:
        raise NotFound(f"no lab is named {name!r}; up: {', '.join(alive) or 'none'}")
    return alive[name]


def propose(name: str | None, *, nodes: int, devices: int) -> LabState:
    """The state of a new lab, owned by this process: a free name, a free subnet. Makes nothing.

    To be called under the lock, after the abandoned ones are gone. Raises SpecError or Refused.
    """
    identity = os.urandom(3).hex()
    name = name or f"lab-{identity}"
    if not _NAME.fullmatch(name):
        raise SpecError(f"name is {name!r}; use up to 31 of a-z, 0-9 and -, starting with a letter or digit")
    others = {state.name: state for state in states()}
    if name in others:
        raise Refused(f"lab {name!r} is up already; take it down with restow lab down {name}, or choose another name")
    taken = {state.subnet for state in others.values()}
    subnet = next((n for n in range(250) if n not in taken), None)
    if subnet is None:
        raise Refused("250 labs are up already; take one down")
    me = identify(os.getpid())
    return LabState(
        name=name, id=identity, folder=base_folder() / name, nodes=nodes, devices=devices, subnet=subnet, owner=me
    )


def place(state: LabState) -> None:
    """Make the lab's folder, with the state inside from its first moment. To be called under the lock."""
    fresh = state.folder.with_name(f".{state.id}")
    try:
        fresh.mkdir(mode=0o700)
        state.write(into=fresh)
        fresh.rename(state.folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
