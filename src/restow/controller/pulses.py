"""The controller's end of every node's pulse (restow/lease.py): it answers each word at once, and knows when it heard the last one.

One thread for all nodes, apart from the event loop, so that a slow decision or a slow disk never costs a node its lease.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from restow.errors import RestowError, Unreachable
from restow.lease import ANSWER, GRACE_S, LEASE_S, WORD
from restow.wire import hurry, prepare, prove

HELLO_S = 1.0


@dataclass(slots=True)
class Line:
    """One node's pulse. `heard_s` and `lapses` are written by the thread and read by everybody."""

    connection: socket.socket
    heard_s: float = field(default_factory=time.monotonic)
    lapses: int = -1  # how often the node's lease had run out, as of its last word
    is_open: bool = True
    unread: bytes = b""

    @property
    def is_silent(self) -> bool:
        """May the node count as lost? Its lease is over then."""
        return time.monotonic() - self.heard_s > LEASE_S + GRACE_S


class Pulses:
    """`line = await pulses.open(status["pulse"])`, then look at it; `close(line)` when the node is given up."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    async def open(self, where: Mapping[str, Any]) -> Line:
        """Connect, prove ourselves, and hear the first word. Raises RestowError when nobody answers in time."""
        return await asyncio.to_thread(self._open, where)

    def _open(self, where: Mapping[str, Any]) -> Line:
        host, port = str(where["host"]), int(where["port"])
        try:
            connection = socket.create_connection((host, port), HELLO_S)
        except OSError as error:
            raise Unreachable(f"no pulse at {host}:{port}: {error.strerror or error}") from None
        line = Line(connection)
        try:
            prepare(connection)
            hurry(connection)
            prove(connection, bytes.fromhex(where["secret"]), time.monotonic() + HELLO_S)
            connection.settimeout(HELLO_S)
            while line.lapses < 0 and line.is_open:
                self._hear(line)
        except OSError as error:
            line.is_open = False
            raise Unreachable(f"the pulse at {host}:{port} does not beat: {error.strerror or error}") from None
        except RestowError:
            line.is_open = False
            raise
        finally:
            if not line.is_open:
                connection.close()
        if not line.is_open:
            raise Unreachable(f"the pulse at {host}:{port} hung up")
        connection.setblocking(False)
        with self._lock:
            self._selector.register(connection, selectors.EVENT_READ, line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._answer, name="pulses", daemon=True)
                self._thread.start()
        return line

    def close(self, line: Line) -> None:
        with self._lock:
            line.is_open = False
            with suppress(KeyError, ValueError):  # it hung up by itself
                self._selector.unregister(line.connection)
            line.connection.close()

    def _answer(self) -> None:
        while True:
            for key, _ in self._selector.select(1.0):
                line: Line = key.data
                with self._lock:
                    if not line.is_open:
                        continue
                    with suppress(BlockingIOError):
                        self._hear(line)
                    if not line.is_open:
                        with suppress(KeyError, ValueError):
                            self._selector.unregister(line.connection)
                        line.connection.close()

    def _hear(self, line: Line) -> None:
        """Take what came and answer it. An answer that does not fit into the socket's buffer is not worth waiting for."""
        try:
            piece = line.connection.recv(4096)
        except (BlockingIOError, TimeoutError):
            raise
        except OSError:
            piece = b""
        if not piece:
            line.is_open = False
            return
        line.unread += piece
        while len(line.unread) >= WORD.size:
            number, line.lapses = WORD.unpack_from(line.unread)
            line.unread = line.unread[WORD.size :]
            line.heard_s = time.monotonic()
            try:
                line.connection.sendall(ANSWER.pack(number))
            except BlockingIOError:
                raise
            except OSError:
                line.is_open = False
                return
