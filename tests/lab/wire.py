"""Two tiny programs that tests run inside nodes: one takes bytes, one sends them and says how long it took."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from restow.lab import Lab, LabNode

PORT = 5000

SERVER = f"""
import socket
listener = socket.create_server(("", {PORT}))
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    while connection.recv(1 << 16):
        pass
    connection.sendall(b"k")
    connection.close()
"""

CLIENT = f"""
import json, socket, sys, time
host, count, timeout_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
start_s = time.monotonic()
try:
    connection = socket.create_connection((host, {PORT}), timeout=timeout_s)
    connection.sendall(bytes(count))
    connection.shutdown(socket.SHUT_WR)
    answer = connection.recv(1)
except OSError:
    answer = b""
print(json.dumps({{"arrived": answer == b"k", "seconds": time.monotonic() - start_s}}))
"""


@dataclass(frozen=True, slots=True)
class Transfer:
    arrived: bool
    seconds: float


def serve(node: LabNode) -> subprocess.Popen[Any]:
    """A server in this node, listening when this returns. It ends with the lab."""
    server = node.popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert server.stdout
    with server.stdout:
        assert server.stdout.readline() == "ready\n"
    return server


def send(lab: Lab, a: str, b: str, count: int = 1, timeout_s: float = 20.0) -> Transfer:
    """Send `count` bytes from node `a` to the server in node `b`; it arrived if the server said so."""
    argv = [sys.executable, "-c", CLIENT, lab.nodes[b].address, str(count), str(timeout_s)]
    client = lab.nodes[a].popen(argv, stdout=subprocess.PIPE, text=True)
    return Transfer(**json.loads(client.communicate(timeout=60)[0]))
