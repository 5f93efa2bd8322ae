"""Giving a twin its state: a server in the process that has it, a client in the process that wants it.

On one machine the client reads the server's memory (one copy); between machines the bytes go over one TCP connection,
straight from tensor memory into tensor memory. Both sides prove that they know the job's secret before anything else is
read. "One machine" also means one network namespace: a node of the lab shares memory with its neighbours in fact, but
not in what it stands for. The bytes themselves are neither encrypted nor signed: the network is trusted with them.

    server = FillServer(address, secret)       client = FillClient(host, server.port, secret)   # connects by itself
    server.publish(tensors, private)           blob = client.fetch_private(timeout_s=10)
    ...                                        wire_bytes = client.fill(tensors, timeout_s=10)
    server.withdraw()                          client.close()

Words on the wire after the handshake: u32 length and JSON; then raw bytes where the JSON says so. See wire.py.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch

from restow import wire
from restow.errors import Refused, RestowError, ScriptError, Unreachable
from restow.sdk import ipc, memory
from restow.sdk.spans import Span, describe, difference, spans_of

HANDSHAKE_S = 5.0
CONNECTIONS_MAX = 256  # a gang's twins and what knocks by mistake


@dataclass(frozen=True, slots=True)
class _Edition:
    """What was published for one switch."""

    number: int
    spans: dict[str, Span]
    private: bytes


class FillServer:
    """Serves this process's state from threads of its own. Answers wait for `publish`, and after `withdraw` again."""

    def __init__(self, address: str, secret: bytes):
        self._secret = secret
        self._changed = threading.Condition()
        self._edition: _Edition | None = None
        self._published = 0
        self._is_closed = False
        self._sent = 0
        self._connections: set[socket.socket] = set()
        self._nonce = secrets.token_bytes(32)
        self._canary = ctypes.create_string_buffer(self._nonce, len(self._nonce))
        memory.allow_reading()
        try:
            self._listener = socket.create_server((address, 0), backlog=64, family=wire.family_of(address))
        except OSError as error:
            raise Unreachable(f"fill port on {address}: {error.strerror}; is that an address of this node?") from None
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="restow-fill", daemon=True).start()

    @property
    def sent_bytes(self) -> int:
        """Tensor and private bytes handed to sockets so far."""
        return self._sent

    def publish(self, tensors: Mapping[str, torch.Tensor], private: bytes) -> None:
        """Answer from now on, with these live tensors: they must not change until `withdraw`."""
        spans = {name: Span(name, tensor) for name, tensor in tensors.items()}
        for device in {t.device for t in tensors.values() if t.is_cuda}:
            torch.cuda.synchronize(device)  # server threads read outside the training's stream
        with self._changed:
            self._published += 1
            self._edition = _Edition(self._published, spans, private)
            self._changed.notify_all()

    def withdraw(self) -> None:
        """Stop answering; a fill that is under way fails at the client, never half-done and silent."""
        with self._changed:
            self._edition = None

    def close(self) -> None:
        with self._changed:
            self._is_closed, self._edition = True, None
            open_now = list(self._connections)
            self._changed.notify_all()
        for connection in [self._listener, *open_now]:
            wire.hang_up(connection)

    # ------------------------------------------------------------ threads

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._is_closed:
                    return
                time.sleep(0.05)  # out of descriptors: others may close some
                continue
            with self._changed:
                welcome = not self._is_closed and len(self._connections) < CONNECTIONS_MAX
                if welcome:
                    self._connections.add(connection)
            if welcome:
                threading.Thread(target=self._serve, args=(connection,), name="restow-fill", daemon=True).start()
            else:
                wire.hang_up(connection)

    def _serve(self, connection: socket.socket) -> None:
        """One client, until it leaves. Its going away or misbehaving ends this connection and nothing else."""
        try:
            wire.prepare(connection)
            wire.welcome(connection, self._secret, time.monotonic() + HANDSHAKE_S)
            wire.send(connection, {
                "pid": os.getpid(), "machine": wire.machine(),
                "canary": ctypes.addressof(self._canary), "nonce": self._nonce.hex(),
            }, None)
            while True:
                request, _ = wire.receive(connection, None)
                try:
                    self._answer(connection, request)
                except RestowError as error:
                    wire.send(connection, {"error": str(error), "kind": type(error).__name__}, None)
        except (OSError, RestowError):
            pass  # gone, or never one of us: it sees its end of the connection close
        finally:
            with self._changed:
                self._connections.discard(connection)
            wire.hang_up(connection)

    def _answer(self, connection: socket.socket, request: dict[str, Any]) -> None:
        ask = request.get("ask")
        if ask == "still":  # was everything read from the memory of one edition?
            edition = self._edition
            if edition is None or edition.number != request.get("edition"):
                raise Refused("the state was withdrawn while it was being read; the switch was given up")
            wire.send(connection, {"edition": edition.number}, None)
        elif ask == "private":
            edition = self._wait()
            wire.send(connection, {"edition": edition.number, "bytes": len(edition.private)}, None)
            self._send_views(connection, edition, [memoryview(edition.private)])
        elif ask == "fill":
            self._fill(connection, self._wait(), request)
        else:
            raise Refused(f"request is {str(ask)[:40]!r}; expected private, fill or still")

    def _fill(self, connection: socket.socket, edition: _Edition, request: dict[str, Any]) -> None:
        wanted = [tuple(item) for item in request.get("tensors", ())]
        spans = []
        for name, *shape in wanted:
            span = edition.spans.get(name)
            if span is None:
                raise ScriptError(f"{name} is wanted but is not in the state served; both must run the same script, "
                                  "and both must have made their first step")
            if why := difference(name, describe(span.tensor), shape):
                raise ScriptError(why)
            spans.append(span)
        ways: list[Any] = [self._way(span, request) for span in spans]
        wire.send(connection, {"edition": edition.number, "ways": ways}, None)
        for group in spans_of(span for span, way in zip(spans, ways, strict=True) if way is None):
            self._send_views(connection, edition, group)

    @staticmethod
    def _way(span: Span, request: dict[str, Any]) -> Any:
        """How the client gets it: an address in our memory, a CUDA handle, or None: it follows on the socket."""
        if request.get("local") and span.is_plain:
            return span.address
        if request.get("local") and request.get("cuda") and span.tensor.is_cuda:
            return ipc.export(span.tensor)
        return None

    def _send_views(self, connection: socket.socket, edition: _Edition, views: list[memoryview]) -> None:
        for part in wire.parts(views):
            if self._edition is not edition:
                raise OSError("withdrawn")  # in the middle of raw bytes: only hanging up is understood
            with self._changed:
                self._sent += sum(view.nbytes for view in part)
            wire.send_views(connection, part, None)

    def _wait(self) -> _Edition:
        with self._changed:
            self._changed.wait_for(lambda: self._edition is not None or self._is_closed)
            if self._edition is None:
                raise OSError("closed")
            return self._edition


class FillClient:
    """The other end. Connects and proves itself in the background; every failure is one exception with one line."""

    def __init__(self, host: str, port: int, secret: bytes, connect_s: float = 10.0):
        self._where = f"{host}:{port}"
        self._socket: socket.socket | None = None
        self._is_closed = False
        self._lock = threading.Lock()
        self._edition: int | None = None  # of the private state: the tensors must be of the same
        self._ready: Future[dict[str, Any]] = Future()

        def connect() -> None:
            try:
                self._ready.set_result(self._connect(host, port, secret, connect_s))
            except Exception as error:  # raised again where somebody waits for the connection
                self._ready.set_exception(error)

        threading.Thread(target=connect, name="restow-fill-client", daemon=True).start()

    def wait(self, timeout_s: float = 15.0) -> None:
        """Until connected and proved; raises what went wrong."""
        self._hello(time.monotonic() + timeout_s)

    @property
    def local(self) -> bool:
        """Can the server's memory be read from here? Waits for the connection."""
        return bool(self._hello(time.monotonic() + 15.0)["local"])

    def fetch_private(self, timeout_s: float) -> bytes:
        """The private state; waits until it is published."""
        with self._lock, self._errors(timeout_s) as deadline:
            connection = self._connected(deadline)
            wire.send(connection, {"ask": "private"}, deadline)
            answer, _ = wire.receive(connection, deadline)
            blob = bytearray(wire.whole(answer, "bytes"))
            wire.receive_views(connection, [memoryview(blob)], deadline)
            self._edition = answer["edition"]
            return bytes(blob)

    def fill(self, tensors: Mapping[str, torch.Tensor], timeout_s: float) -> int:
        """Write the server's values into these tensors, in place; returns the bytes that came through the socket.

        If it raises, some of them may have been written: the twin must not go on.
        """
        with self._lock, self._errors(timeout_s) as deadline:
            connection = self._connected(deadline)
            spans = [Span(name, tensor) for name, tensor in tensors.items()]
            received, not_opened = self._fill(connection, spans, True, deadline)
            if not_opened:
                received += self._fill(connection, not_opened, False, deadline)[0]
            return received

    def is_gone(self) -> bool:
        """Has the server's process ended (or never answered)? Looks, and reads nothing."""
        if not self._ready.done():
            return False
        if self._ready.exception() or self._socket is None or self._is_closed:
            return True
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            return bool(poll.poll(0)) and not self._socket.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):  # reset, or closed by a failed request
            return True

    def close(self) -> None:
        self._is_closed = True
        if self._socket is not None:
            wire.hang_up(self._socket)

    # ------------------------------------------------------------ inside

    def _fill(self, connection: socket.socket, spans: list[Span], with_handles: bool,
              deadline: float) -> tuple[int, list[Span]]:
        """One request. Returns the bytes received, and the spans whose CUDA handle could not be opened here."""
        with_handles = with_handles and any(span.tensor.is_cuda for span in spans)
        wire.send(connection, {
            "ask": "fill", "local": self._ready.result()["local"], "cuda": with_handles,
            "tensors": [[span.name, *describe(span.tensor)] for span in spans],
        }, deadline)
        answer, _ = wire.receive(connection, deadline)
        edition, ways = answer["edition"], answer["ways"]
        if self._edition not in (None, edition):
            raise Refused("the private state was of another switch than the tensors; the switch was given up")
        if len(ways) != len(spans):
            raise Unreachable(f"{self._where} answered for {len(ways)} of {len(spans)} tensors")
        pairs = list(zip(ways, spans, strict=True))
        self._read_memory([(way, span) for way, span in pairs if isinstance(way, int)])
        not_opened = [span for way, span in pairs if isinstance(way, str) and not ipc.copy_from(way, span.tensor)]
        received = 0
        for group in spans_of((span for way, span in pairs if way is None), for_writing=True):
            wire.receive_views(connection, group, deadline)
            received += sum(view.nbytes for view in group)
        for device in {span.tensor.device for span in spans if span.tensor.is_cuda}:
            torch.cuda.synchronize(device)  # copies from handles are over before we ask whether the source still held
        wire.send(connection, {"ask": "still", "edition": edition}, deadline)
        wire.receive(connection, deadline)
        return received, not_opened

    def _read_memory(self, pieces: list[tuple[int, Span]]) -> None:
        pid = self._ready.result()["pid"]
        memory.read_process_memory(pid, [(at, s.nbytes, s.address) for at, s in pieces if s.is_plain])
        for at, span in pieces:
            if not span.is_plain:
                for group in spans_of([span], for_writing=True):
                    for view in group:
                        here = ctypes.addressof(ctypes.c_char.from_buffer(view))
                        memory.read_process_memory(pid, [(at, view.nbytes, here)])
                        at += view.nbytes

    def _connect(self, host: str, port: int, secret: bytes, connect_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + connect_s
        while True:
            try:
                connection = socket.create_connection((host, port), wire.left(deadline))
                break
            except ConnectionRefusedError as error:
                if self._is_closed or time.monotonic() + 0.1 > deadline:
                    raise Unreachable(f"fill port {self._where}: {error.strerror}; the process there ended") from None
                time.sleep(0.05)
            except OSError as error:
                raise Unreachable(f"fill port {self._where}: {error}") from None
        self._socket = connection
        with self._errors(connect_s):
            wire.prepare(connection)
            wire.prove(connection, secret, deadline)
            hello, _ = wire.receive(connection, deadline)
            hello["local"] = hello["machine"] == wire.machine() and memory.can_read(
                hello["pid"], hello["canary"], bytes.fromhex(hello["nonce"]))
        return hello

    def _hello(self, deadline: float) -> dict[str, Any]:
        try:
            return self._ready.result(wire.left(deadline))
        except TimeoutError:
            raise Unreachable(f"fill port {self._where} does not answer in time") from None

    def _connected(self, deadline: float) -> socket.socket:
        self._hello(deadline)
        if self._socket is None or self._is_closed:
            raise Unreachable(f"the connection to {self._where} was closed")
        return self._socket

    def _errors(self, timeout_s: float) -> wire.Deadline:
        """After any failure the connection is of no use: the other end may be in the middle of a word."""
        return wire.Deadline(timeout_s, self._where, self.close)
