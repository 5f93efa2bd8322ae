"""Where the systems run: the lab's two nodes, or, where there is no lab, two names for this machine without a shaped link."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

ROOT = Path(__file__).resolve().parent.parent


class Node(Protocol):
    """One node of a place; `restow.lab` gives the real one."""

    name: str
    address: str
    interface: str

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]: ...


class Place(Protocol):
    nodes: Mapping[str, Any]

    def counters(self, node: str) -> tuple[int, int]: ...

    def set_link(self, a: str, b: str | None = None, **link: Any) -> None: ...


class HereNode:
    """This machine under another name."""

    def __init__(self, name: str) -> None:
        self.name, self.address, self.interface = name, "127.0.0.1", "lo"
        self.devices_file: Path | None = None

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(list(argv), **options)


class Here:
    """Two nodes that are both this machine: no link between them, so bytes count what crosses the loopback."""

    def __init__(self) -> None:
        self.nodes = {name: HereNode(name) for name in ("m1", "m2")}

    def counters(self, node: str) -> tuple[int, int]:
        received = Path("/sys/class/net/lo/statistics/rx_bytes")
        return int(received.read_text()), 0

    def set_link(self, a: str, b: str | None = None, **link: Any) -> None:
        """There is no link to shape."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


def set_rate(place: Place, rate_bits_per_s: float | None) -> None:
    """Of the link between the nodes, which is as fast as the slower of their interfaces; None: as fast as this machine is."""
    for name in place.nodes:
        place.set_link(name, None, rate_bits_per_s=rate_bits_per_s)


def environment(node: Any, **more: str) -> dict[str, str]:
    """What a process of a benchmark finds in its environment on this node."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": node.interface,
        "TORCH_DISABLE_ADDR2LINE": "1",
        # with it, an agent that joins a later round waits in vain for an address that was given only in the first
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        **more,
    }


def free_port() -> int:
    """A TCP port that nobody uses here; in a fresh namespace any port is free."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def python(*words: str) -> list[str]:
    return [sys.executable, *words]


class Wire:
    """Samples a node's interface counters, to say afterwards how many bytes crossed between two instants.

    Between the end of the last old step and the first sample before it lies at most one interval; the collectives of a
    step end before its optimizer begins, so a sample there holds all of the step's own traffic.
    """

    def __init__(self, place: Any, node: str, interval_s: float = 0.02) -> None:
        self._count, self._interval_s = lambda: sum(place.counters(node)), interval_s
        self._samples: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wire", daemon=True)

    def _run(self) -> None:
        while not self._over.is_set():
            self._samples.append((time.monotonic(), self._count()))
            self._over.wait(self._interval_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._samples.append((time.monotonic(), self._count()))

    def between(self, begin_s: float, end_s: float) -> int:
        """Bytes in both directions from the last sample before `begin_s` to the first one after `end_s`."""
        samples = self._samples
        earlier = [count for time_s, count in samples if time_s <= begin_s] or [samples[0][1]]
        later = [count for time_s, count in samples if time_s >= end_s] or [samples[-1][1]]
        return later[0] - earlier[-1]
