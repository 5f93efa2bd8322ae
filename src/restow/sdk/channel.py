"""The rank's line to its agent: a Unix socket with JSON lines, kept by one background thread.

Losing the agent is not an error: the thread tries again for ever, says hello again and repeats every fact it had told. The
training thread never waits for it. Protocol: docs/design/001-processes.md.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

RECONNECT_S = 0.2
LINE_BYTES_MAX = 1 << 20


class Channel:
    """`tell` says a fact (kept and repeated to a new agent); messages from the agent come to `on_message` on this thread."""

    def __init__(self, path: str, hello: Mapping[str, Any], on_message: Callable[[dict[str, Any]], None]):
        self._path, self._hello, self._on_message = path, dict(hello), on_message
        self._lock = threading.Lock()
        self._facts: list[dict[str, Any]] = []
        self._socket: socket.socket | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="restow-channel", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def tell(self, **fact: Any) -> None:
        """Never blocks for long and never raises: without an agent the fact waits for the next one."""
        with self._lock:
            self._facts.append(fact)
            if self._socket:
                self._send(self._socket, fact)

    def say(self, **word: Any) -> bool:
        """What is not to be repeated to another agent. False: there is none now, and it was not said."""
        with self._lock:
            if self._socket:
                self._send(self._socket, word)
            return self._socket is not None

    def change_hello(self, **changes: Any) -> None:
        """What the next agent is to be told of us: a twin that became the rank says so."""
        with self._lock:
            self._hello.update(changes)

    def forget(self) -> None:
        """What was told so far need not be repeated: it is journalled, or of a life that is over."""
        with self._lock:
            self._facts.clear()

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            if self._socket:
                self._socket.close()

    def _send(self, connection: socket.socket, message: dict[str, Any]) -> None:
        try:
            connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            connection.close()  # the reading thread sees it and connects again
            self._socket = None

    def _run(self) -> None:
        while not self._closed.is_set():
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(self._path)
            except OSError:
                connection.close()
                self._closed.wait(RECONNECT_S)
                continue
            with self._lock:
                self._socket = connection
                for message in [{"type": "hello", **self._hello}, *self._facts]:
                    if self._socket:
                        self._send(connection, message)
            self._read(connection)
            with self._lock:
                self._socket = None
            connection.close()
            self._closed.wait(RECONNECT_S)

    def _read(self, connection: socket.socket) -> None:
        """Messages until the connection ends or says something that is not ours."""
        buffer = b""
        while not self._closed.is_set():
            try:
                chunk = connection.recv(65536)
            except OSError:
                return
            if not chunk or len(buffer) > LINE_BYTES_MAX:
                return
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                try:
                    message = json.loads(line)
                except ValueError:
                    return
                if isinstance(message, dict):
                    self._on_message(message)
