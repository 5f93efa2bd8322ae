"""The cluster that is simulated: from a few words, or a YAML file, to nodes and links.

8x4                      8 machines of 4 devices
5x8:V100,5x8:K80         10 machines of 8, of two kinds

A file has the same under `nodes:`, and what else there is to say:

nodes: 5x8:V100,5x8:K80
link: 10 Gbit/s          # between any two machines
local: 60 GB/s           # what two ranks exchange inside one
memory: 32GB             # of each device
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restow.cluster import DEFAULT_LINK_BYTES_PER_S, Device, Link, Node
from restow.errors import TraceError

MACHINES_MAX, DEVICES_MAX = 1_000_000, 1024
_GROUP = re.compile(r"\s*(\d+)\s*x\s*(\d+)\s*(?::\s*([\w.\- ]+?))?\s*")
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(bit|B)/s\s*")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)B?\s*")
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_KEYS = ("nodes", "link", "local", "memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """What is simulated, before any job has come."""

    nodes: tuple[Node, ...]
    link: Link = field(default_factory=Link)
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)  # those that are known each by itself, by sorted names

    @property
    def devices(self) -> int:
        return sum(len(node.devices) for node in self.nodes)


def read_machines(text: str) -> Machines:
    """From the words above, or from a file that is there. Raises TraceError."""
    if not _GROUP.fullmatch(text.split(",")[0]) and (Path(text).is_file() or text.endswith((".yaml", ".yml"))):
        return _from_file(Path(text))
    return machines(text)


def machines(
    text: str, *, link_bytes_per_s: float = DEFAULT_LINK_BYTES_PER_S, local_bytes_per_s: float = 1e9, memory_bytes: int = 0
) -> Machines:  # fmt: skip
    """`5x8:V100,5x8:K80`: nodes v100-0 to v100-4 and k80-0 to k80-4. Raises TraceError."""
    nodes: list[Node] = []
    counts: dict[str, int] = {}
    for group in text.split(","):
        found = _GROUP.fullmatch(group)
        if not found:
            raise TraceError(f"cluster is {text!r}; write machines x devices, for example 8x4 or 5x8:V100,5x8:K80, or a file")
        number, devices, kind = int(found[1]), int(found[2]), found[3] or "gpu"
        if not (1 <= number <= MACHINES_MAX and 1 <= devices <= DEVICES_MAX):
            limits = f"1 to {MACHINES_MAX} machines of 1 to {DEVICES_MAX} devices"
            raise TraceError(f"cluster is {text!r}; {number} machines of {devices} devices cannot be simulated, {limits} can")
        stem = re.sub(r"\W+", "-", kind.lower())
        for _ in range(number):
            name = f"{stem}-{counts.get(stem, 0)}"
            counts[stem] = counts.get(stem, 0) + 1
            all_devices = tuple(Device(index=index, kind=kind, memory_bytes=memory_bytes) for index in range(devices))
            nodes.append(Node(name=name, address=name, devices=all_devices, local_bytes_per_s=local_bytes_per_s))
    return Machines(nodes=tuple(nodes), link=Link(bytes_per_s=link_bytes_per_s))


def _from_file(path: Path) -> Machines:
    import yaml

    try:
        written: Any = yaml.safe_load(path.read_text())
    except OSError as error:
        raise TraceError(f"cluster {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or "it is not text"
        raise TraceError(f"cluster {path}{where} cannot be read as YAML: {what}") from None
    if not isinstance(written, dict) or not isinstance(written.get("nodes"), str):
        raise TraceError(f"cluster {path} has no nodes; write for example nodes: 8x4")
    for key in written:
        if key not in _KEYS:
            raise TraceError(f"cluster {path}: unknown key {key!r}; the keys are {', '.join(_KEYS)}")
    return machines(
        written["nodes"],
        link_bytes_per_s=_rate(path, written, "link", DEFAULT_LINK_BYTES_PER_S),
        local_bytes_per_s=_rate(path, written, "local", 1e9),
        memory_bytes=_bytes(path, written.get("memory", 0)),
    )


def _rate(path: Path, written: dict[str, Any], key: str, otherwise: float) -> float:
    if key not in written:
        return otherwise
    found = _RATE.fullmatch(str(written[key]))
    if not found or float(found[1]) <= 0:
        raise TraceError(f"cluster {path}: {key} is {written[key]!r}; write for example 10 Gbit/s")
    return float(found[1]) * _UNITS[found[2]] / (8 if found[3] == "bit" else 1)


def _bytes(path: Path, value: Any) -> int:
    found = _SIZE.fullmatch(str(value))
    if not found:
        raise TraceError(f"cluster {path}: memory is {value!r}; write for example 32GB")
    return int(float(found[1]) * _UNITS[found[2]])
