"""CPU devices: equal, bounded shares of this machine's cores.

A device is the core that its process is pinned to and a control group with a quota (cgroup v1 or v2). Who puts a process
there is the agent, from the device file. Where control groups cannot be written there is only the core, and the lab
says so.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from restow.errors import SpecError

PERIOD_US = 10_000
"""Quota period. The usual 100 ms would stop a worker for 55 ms at a time, longer than many steps."""

QUOTA_US_MIN = 1_000  # the kernel's least quota
BUSY = 0.9  # of the cores for devices; the rest is for agents, Ray and the kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuDevice:
    index: int
    share: float  # of the core
    core: int
    cgroup: str | None  # folder of the control group; None: pinned only, the share is not enforced


def choose_share(devices: int, cores: int, share: float | None = None) -> float:
    """The share of a core that each of `devices` gets: as much as fits, about 90 % of all cores, or the wanted `share`.

    Raises SpecError when the wanted one does not fit on the fullest core.
    """
    per_core = math.ceil(devices / cores)
    if share is None:
        return round(min(1.0, BUSY * cores / devices, 1 / per_core), 4)
    if not 0 < share <= 1 / per_core:
        raise SpecError(
            f"share is {share:g}; {devices} devices on {cores} cores can have up to {1 / per_core:.3g} each"
        )
    return share


def quota_us(share: float) -> tuple[int, int]:
    """Quota and period for `share`; the period grows where the quota would be under the kernel's least."""
    period_us = max(PERIOD_US, math.ceil(QUOTA_US_MIN / share))
    return round(share * period_us), period_us


def cores() -> list[int]:
    """The cores that we may use."""
    return sorted(os.sched_getaffinity(0))


def write_devices(path: Path, devices: Sequence[CpuDevice]) -> None:
    """The file that an agent reads (RESTOW_DEVICES)."""
    entries = [{"index": d.index, "kind": "cpu", "share": d.share, "core": d.core, "cgroup": d.cgroup} for d in devices]
    path.write_text(json.dumps({"devices": entries}) + "\n")


class Cgroups:
    """The control groups of one lab, all under one folder named after it."""

    def __init__(self, folder: Path, version: int):
        self.folder = folder
        self.version = version

    def paths(self, names: Sequence[str]) -> tuple[str, ...]:
        """What `create` will make, parents first; to be written down before."""
        return (str(self.folder), *(str(self.folder / name) for name in names))

    def create(self, names: Sequence[str], share: float) -> None:
        """One group per name, each bounded. Raises OSError."""
        quota, period = quota_us(share)
        self.folder.mkdir()
        if self.version == 2:
            _write(self.folder / "cgroup.subtree_control", "+cpu")
        for name in names:
            group = self.folder / name
            group.mkdir()
            if self.version == 2:
                _write(group / "cpu.max", f"{quota} {period}")
            else:
                _write(group / "cpu.cfs_period_us", str(period))
                _write(group / "cpu.cfs_quota_us", str(quota))


def find_cgroups(name: str) -> tuple[Cgroups | None, str]:
    """Where this process may make bounded groups, tried out; or None and why not. Leaves nothing."""
    reason = "no cpu control group is mounted"
    for parent, version in _candidates():
        groups = Cgroups(parent / name, version)
        try:
            groups.create(["probe"], 0.5)
            if _accepts_a_process(groups.folder / "probe"):
                return groups, ""
            reason = f"processes cannot be moved into {parent}"
        except OSError as error:
            reason = f"{parent}: {error.strerror}"
        finally:
            for path in (groups.folder / "probe", groups.folder):
                with suppress(OSError):  # not made, which is what was to be found out
                    path.rmdir()
    return None, reason


def _candidates() -> Iterator[tuple[Path, int]]:
    """Folders to try: where we are and, for v2 (whose inner groups hold no processes), beside it; then the root."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, place = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), place))
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, options = line.split()[:4]
        if kind == "cgroup" and "cpu" in options.split(","):
            yield from ((path, 1) for path in _existing(Path(mount), own.get("cpu", "/")))
        if kind == "cgroup2":
            place = os.path.dirname(own.get("", "/"))
            yield from ((path, 2) for path in _existing(Path(mount), place) if _offers_cpu(path))


def _existing(mount: Path, place: str) -> list[Path]:
    folders = dict.fromkeys((mount / place.lstrip("/"), mount))
    return [folder for folder in folders if folder.is_dir() and os.access(folder / "cgroup.procs", os.F_OK)]


def _offers_cpu(folder: Path) -> bool:
    """Do groups made in this v2 folder have a quota? Switched on if it is not and may be."""
    try:
        if "cpu" not in (folder / "cgroup.subtree_control").read_text().split():
            _write(folder / "cgroup.subtree_control", "+cpu")
    except OSError:
        return False
    return True


def _accepts_a_process(group: Path) -> bool:
    """A child of ours tries to enter. Only for processes with one thread: it forks."""
    child = os.fork()
    if child == 0:
        try:
            _write(group / "cgroup.procs", "0")
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _write(path: Path, text: str) -> None:
    path.write_text(text)
