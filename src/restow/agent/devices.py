"""Which devices this node has: from a file, else the GPUs that the NVIDIA driver names, else its CPU cores."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restow.cluster import Device
from restow.errors import SetupError


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDevice:
    """A device and how a process gets to use it."""

    device: Device
    core: int | None = None  # a CPU device: pinned to it
    cgroup: str | None = None  # a CPU device: folder of the control group that bounds its share

    @property
    def is_gpu(self) -> bool:
        return self.device.kind != "cpu"


def find_devices(file: Path | None) -> dict[int, LocalDevice]:
    """Index → device. Raises SetupError when the file is wrong."""
    if file is not None:
        return read_devices(file)
    return find_gpus() or find_cores()


def read_devices(file: Path) -> dict[int, LocalDevice]:
    """The devices that a file names, as the lab writes it: {"devices": [{"index", "kind", "share", "core", "cgroup"}]}."""
    try:
        wire = json.loads(file.read_text())
        entries = wire["devices"] if isinstance(wire, dict) else wire
        found = {device.device.index: device for device in map(_from_entry, entries)}
    except OSError as error:
        sample = '{"devices": [{"index": 0}, {"index": 1}]}'
        raise SetupError(f"device file {file}: {error.strerror}; unset RESTOW_DEVICES, or name a file such as {sample}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(f'device file {file} is wrong ({error!r}); write {{"devices": [{{"index": 0, "core": 0}}]}}') from None
    if not found or len(found) != len(entries):
        raise SetupError(f"device file {file} names no device, or one index twice")
    return found


def _from_entry(entry: dict[str, Any]) -> LocalDevice:
    device = Device(
        index=int(entry["index"]),
        kind=str(entry.get("kind", "cpu")),
        memory_bytes=int(entry.get("memory_bytes", 0)),
        share=float(entry.get("share", 1.0)),
    )
    core, cgroup = entry.get("core"), entry.get("cgroup")
    return LocalDevice(device=device, core=None if core is None else int(core), cgroup=cgroup or None)


def find_gpus() -> dict[int, LocalDevice]:
    """GPUs in the order of the PCI bus; none where there is no driver."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    try:
        found = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = pynvml.nvmlDeviceGetName(handle)
            kind = name.decode() if isinstance(name, bytes) else name
            memory_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            found[index] = LocalDevice(device=Device(index=index, kind=kind, memory_bytes=memory_bytes))
        return found
    finally:
        pynvml.nvmlShutdown()


def find_cores() -> dict[int, LocalDevice]:
    """One device per core that this process may use."""
    cores = sorted(os.sched_getaffinity(0))
    return {index: LocalDevice(device=Device(index=index), core=core) for index, core in enumerate(cores)}
