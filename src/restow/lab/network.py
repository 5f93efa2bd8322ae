"""The network of a lab: a switch, a cable to each node, and what each link lets through. Runs in the holder only.

    node m1            switch              node m2
    eth0 ──────────── p1 br0 p2 ──────────── eth0

Each end of a cable shapes what it sends with `tbf`, so a node's NIC has its rate in both directions. Links of a pair are
an `htb` class (by destination address) under that at the two senders. So the tree at an interface is, outermost
first and each part only if needed: netem (delay) → tbf (rate) → htb (pairs).

A netlink socket keeps the namespace in which it was opened, so one socket per node is all that is needed to change it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from socket import inet_aton
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from restow.errors import NotFound, SetupError, SpecError
from restow.lab.enter import CLONE_NEWNET, join, unshare
from restow.lab.shape import MTU_BYTES, OPEN, Shape, burst_bytes, queue_bytes

_ROOT = 0xFFFF_FFFF
_NETEM, _TBF, _HTB = 0x1_0000, 0x2_0000, 0x3_0000
_PACKETS = 100_000  # netem's queue; it counts packets, so it must never be what limits
_IPV4 = 0x0800


@dataclass(slots=True)
class _Space:
    """One network namespace: a socket into it and a descriptor that keeps it."""

    route: IPRoute
    descriptor: int

    @property
    def inode(self) -> int:
        return os.fstat(self.descriptor).st_ino


def _new_space() -> _Space:
    """A fresh namespace; this process is inside it afterwards."""
    unshare(CLONE_NEWNET)
    descriptor = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    # no IPv6: its neighbour discovery would show in the byte counts; where /proc/sys is read-only it stays
    with suppress(OSError):
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    route = IPRoute()
    route.link("set", index=1, state="up")
    return _Space(route, descriptor)


class Network:
    """The switch and the nodes. Building it moves this process into the switch's namespace for good."""

    def __init__(self, addresses: Mapping[str, str], shape: Shape):
        self.addresses = dict(addresses)
        self.shapes = dict.fromkeys(addresses, OPEN)
        self.pairs: dict[tuple[str, str], Shape] = {}  # key: the two names, in the order of the nodes
        self._switch = _new_space()
        self._spaces = {node: _new_space() for node in addresses}
        self._ports: dict[str, int] = {}
        self._port_names = {node: f"p{number}" for number, node in enumerate(addresses, 1)}
        self._interfaces: dict[str, int] = {}
        join(self._switch.descriptor, CLONE_NEWNET)
        bridge = self._make_bridge()
        for node in addresses:
            self._plug_in(node, self._port_names[node], bridge)
        for node in addresses:
            self.set_node(node, shape)

    # ------------------------------------------------------------ building

    def _make_bridge(self) -> int:
        route = self._switch.route
        try:
            route.link("add", ifname="br0", kind="bridge", br_stp_state=0, br_mcast_snooping=0)
        except NetlinkError as error:
            raise SetupError(f"this kernel makes no bridge ({error}); it needs CONFIG_BRIDGE") from None
        (bridge,) = route.link_lookup(ifname="br0")
        route.link("set", index=bridge, mtu=MTU_BYTES, state="up")
        return int(bridge)

    def _plug_in(self, node: str, port_name: str, bridge: int) -> None:
        switch, inside = self._switch.route, self._spaces[node]
        peer = {"ifname": "eth0", "net_ns_fd": inside.descriptor, "mtu": MTU_BYTES}
        try:
            switch.link("add", ifname=port_name, kind="veth", mtu=MTU_BYTES, peer=peer)
        except NetlinkError as error:
            raise SetupError(f"this kernel makes no veth pair ({error}); it needs CONFIG_VETH") from None
        (port,) = switch.link_lookup(ifname=port_name)
        (interface,) = inside.route.link_lookup(ifname="eth0")
        inside.route.addr("add", index=interface, address=self.addresses[node], prefixlen=24)
        inside.route.link("set", index=interface, state="up")
        switch.link("set", index=port, master=bridge, state="up")
        self._ports[node], self._interfaces[node] = port, interface

    @property
    def namespaces(self) -> dict[str, int]:
        """Node → inode of its namespace; the switch is ""."""
        return {"": self._switch.inode, **{node: space.inode for node, space in self._spaces.items()}}

    @property
    def descriptors(self) -> dict[str, int]:
        return {node: space.descriptor for node, space in self._spaces.items()}

    # ------------------------------------------------------------ changing

    def set_node(self, node: str, shape: Shape) -> None:
        """Give a node's NIC this rate in both directions and this delay; cut or heal it."""
        self._check(node)
        before = self.shapes[node]
        self.shapes[node] = shape
        try:
            self._shape_node(node)
        except SetupError:
            self.shapes[node] = before
            self._shape_node(node)
            raise
        self._switch.route.link("set", index=self._ports[node], state="down" if shape.is_cut else "up")

    def set_pair(self, a: str, b: str, shape: Shape) -> None:
        """Give the link between two nodes this rate each way, and this delay beyond that of the NICs; cut or heal it."""
        pair = self._pair(a, b)
        before = self.pairs.get(pair, OPEN)
        self._put_pair(pair, shape)
        try:
            for node in pair:
                self._shape_node(node)
        except SetupError:
            self._put_pair(pair, before)
            for node in pair:
                self._shape_node(node)
            raise

    def shape_of(self, a: str, b: str | None) -> Shape:
        """What was set for a node, or for a pair of nodes."""
        self._check(a)
        return self.shapes[a] if b is None else self.pairs.get(self._pair(a, b), OPEN)

    def counters(self, node: str) -> tuple[int, int]:
        """Bytes received and sent by the node's interface."""
        self._check(node)
        port = f"{self._port_names[node]}:"  # its other end is ours; this file is 50 times cheaper than asking by netlink
        for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
            name, *words = line.split()
            if name == port:
                return int(words[8]), int(words[0])  # what the port sent is what the node received
        raise NotFound(f"the port of node {node!r} is gone")

    def _check(self, node: str) -> None:
        if node not in self.addresses:
            raise NotFound(f"no node is named {node!r}; there are {', '.join(self.addresses)}")

    def _pair(self, a: str, b: str) -> tuple[str, str]:
        self._check(a)
        self._check(b)
        if a == b:
            raise SpecError(f"a link joins two nodes; {a} was named twice")
        order = list(self.addresses)
        return (a, b) if order.index(a) < order.index(b) else (b, a)

    def _put_pair(self, pair: tuple[str, str], shape: Shape) -> None:
        if shape == OPEN:
            self.pairs.pop(pair, None)
        else:
            self.pairs[pair] = shape

    # ------------------------------------------------------------ shaping

    def _shape_node(self, node: str) -> None:
        """Put what is wanted at both ends of the node's cable. A pair's packets are sorted out at the node's end."""
        shape = self.shapes[node]
        peers = {b if a == node else a: pair for (a, b), pair in self.pairs.items() if node in (a, b)}
        # half of the delay at each end: between two nodes lie two cables, and a packet passes one end of each
        half = replace(shape, delay_s=shape.delay_s / 2)
        inside = self._spaces[node].route
        self._shape_interface(inside, self._interfaces[node], half, {self.addresses[p]: s for p, s in peers.items()})
        self._shape_interface(self._switch.route, self._ports[node], half, {})

    def _shape_interface(self, route: IPRoute, index: int, shape: Shape, peers: Mapping[str, Shape]) -> None:
        """Replace the interface's tree.

        Where only numbers change the kernel changes them in place; else the tree is built anew and packets that wait in
        the old one are lost, as when a cable is replugged: TCP sends them again.
        """
        wanted = (["netem"] if shape.delay_s else []) + (["tbf"] if shape.rate_bits_per_s else [])
        found = [kind for q in route.get_qdiscs(index) if (kind := q.get_attr("TCA_KIND")) in ("netem", "tbf", "htb")]
        if peers or "htb" in found or sorted(found) != sorted(wanted):
            if found:
                route.tc("del", index=index, parent=_ROOT)
        parent = _ROOT
        if shape.delay_s:
            self._add_netem(route, index, _NETEM, parent, shape.delay_s)
            parent = _NETEM + 1
        if shape.rate_bits_per_s:
            self._replace(
                route, "tbf", index, _TBF, parent, rate=int(shape.rate_bits_per_s / 8),
                burst=burst_bytes(shape.rate_bits_per_s), limit=queue_bytes(shape.rate_bits_per_s),
            )  # fmt: skip
            parent = _TBF + 1
        if peers:
            self._replace(route, "htb", index, _HTB, parent, default=0)  # 0: what matches no pair passes at once
        for number, (address, pair) in enumerate(peers.items(), 1):
            self._add_pair(route, index, number, address, pair)

    def _add_pair(self, route: IPRoute, index: int, number: int, address: str, pair: Shape) -> None:
        rate = int((pair.rate_bits_per_s or 30e9) / 8)
        burst = burst_bytes(rate * 8)
        handle = _HTB + number
        route.tc(
            "add-class", "htb", index, handle=handle, parent=_HTB, rate=rate, burst=burst, cburst=burst, quantum=60_000
        )
        if pair.is_cut:
            route.tc("replace", "pfifo", index, handle=(0x100 + number) << 16, parent=handle, limit=0)  # drops all
        elif pair.delay_s:
            self._add_netem(route, index, (0x100 + number) << 16, handle, pair.delay_s)
        else:
            packets = max(50, queue_bytes(rate * 8) // MTU_BYTES)
            route.tc("replace", "pfifo", index, handle=(0x100 + number) << 16, parent=handle, limit=packets)
        key = f"0x{inet_aton(address).hex()}/0xffffffff+16"  # the destination in the IPv4 header
        try:
            route.tc("add-filter", "u32", index, parent=_HTB, prio=1, protocol=_IPV4, target=handle, keys=[key])
        except NetlinkError as error:
            raise SetupError(
                f"this kernel sorts no packets ({error}); links of a pair need CONFIG_NET_CLS_U32"
            ) from None

    def _add_netem(self, route: IPRoute, index: int, handle: int, parent: int, delay_s: float) -> None:
        self._replace(route, "netem", index, handle, parent, delay=round(delay_s * 1e6), limit=_PACKETS)

    def _replace(self, route: IPRoute, kind: str, index: int, handle: int, parent: int, **options: Any) -> None:
        try:
            route.tc("replace", kind, index, handle=handle, parent=parent, **options)
        except NetlinkError as error:
            if error.code != errno.ENOENT:
                raise
            what = "no delay can be added; use delay 0" if kind == "netem" else "links cannot be shaped; use rate none"
            raise SetupError(f"this kernel has no {kind} (CONFIG_NET_SCH_{kind.upper()}): {what}") from None
