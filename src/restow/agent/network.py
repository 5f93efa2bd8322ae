"""Which network interface carries an address. Gloo and NCCL have to be told."""

from __future__ import annotations

import psutil

from restow.errors import SetupError


def interface_of(address: str) -> str:
    """The name of the interface. Raises SetupError when the address is not one of this machine's."""
    found = {name: [a.address.partition("%")[0] for a in addresses] for name, addresses in psutil.net_if_addrs().items()}
    for name, addresses in found.items():
        if address in addresses:
            return name
    known = ", ".join(sorted(a for addresses in found.values() for a in addresses if "." in a))
    raise SetupError(f"node address is {address}; this machine has {known}: set RESTOW_NODE_ADDRESS to one that other nodes reach")
