"""The keeper of a store: a process with one TCPStore server, forked by the nursery. Outlives ranks, agent and nursery.

It listens on the node's own address only. The agent speaks to it through a Unix socket: {"do": "set", "key", "value"} writes
the first word of a key and answers {"value": the word that is there}. When nobody has been connected for a while after somebody
was, it ends: its generation is over and nobody said so.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

LONELY_S = 600.0  # ranks keep a connection for as long as their communicators live
LOOK_S = 30.0
REQUEST_S = 5.0
REQUEST_BYTES_MAX = 65536


def keep(address: str, folder: Path, report: int) -> int:
    """Serve until ended. Says {"host", "port", "socket"} or {"error"} to `report`."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    path = folder / f"{os.getpid()}.sock"
    try:
        listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET, backlog=1024)
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        control.bind(str(path))
        control.listen()
        port = listener.getsockname()[1]
        store = open_store(address, port, listener.detach())
    except (OSError, RuntimeError) as error:
        os.write(report, json.dumps({"error": f"store at {address}: {error}"}).encode())
        os._exit(1)
    os.write(report, json.dumps({"host": address, "port": port, "socket": str(path)}).encode())
    os.close(report)
    control.settimeout(LOOK_S)
    serve(control, store, port)
    path.unlink(missing_ok=True)
    return 0


def open_store(address: str, port: int, descriptor: int) -> Any:
    import torch.distributed as dist

    return dist.TCPStore(
        address, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60), master_listen_fd=descriptor
    )


def serve(control: socket.socket, store: Any, port: int) -> None:
    was_used, alone_since = False, time.monotonic()
    while True:
        try:
            connection, _ = control.accept()
        except TimeoutError:
            if connections_to(port) > 1:  # one is our own
                was_used, alone_since = True, time.monotonic()
            elif was_used and time.monotonic() - alone_since > LONELY_S:
                return
            continue
        with connection:
            connection.settimeout(REQUEST_S)
            try:
                answer(connection, store)
            except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
                print(f"store at port {port}: {error!r}", file=sys.stderr, flush=True)


def answer(connection: socket.socket, store: Any) -> None:
    """One request, one answer."""
    line = b""
    while not line.endswith(b"\n"):
        piece = connection.recv(4096)
        if not piece or len(line) > REQUEST_BYTES_MAX:
            return
        line += piece
    request = json.loads(line)
    word = store.compare_set(str(request["key"]), "", str(request["value"]))
    connection.sendall(json.dumps({"value": word.decode()}).encode() + b"\n")


def connections_to(port: int) -> int:
    """Established TCP connections to this port of ours."""
    count = 0
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except FileNotFoundError:  # no IPv6 here
            continue
        for line in lines:
            local, _, state = line.split()[1:4]
            count += state == "01" and int(local.rpartition(":")[2], 16) == port
    return count
