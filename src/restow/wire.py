"""Words and bytes on one TCP connection between two processes of a job, and the handshake that comes first.

Handshake: the server sends a nonce S; the client answers with a nonce C and HMAC(secret, "client" S C); the server,
if that is right, with HMAC(secret, "server" S C). Fixed sizes, compared in constant time, nothing parsed before.
Deadlines are values of time.monotonic(); None waits for ever.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import hmac
import ipaddress
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from restow import errors
from restow.errors import Refused, RestowError, Unreachable

HEADER_MAX = 64 << 20  # bytes of one JSON word: about 100 per tensor
PART_BYTES = 8 << 20  # handed to the kernel at once; between parts a withdrawn server stops
VIEWS_MAX = 512  # below the kernel's IOV_MAX of 1024
_GREETING = b"restow-fill-1\n"
_LENGTH = struct.Struct("<I")
_NONCE = 32


class Deadline:
    """`with Deadline(...) as deadline:` turns what can go wrong on a socket into one line, and calls `on_error`."""

    def __init__(self, timeout_s: float, where: str, on_error: Callable[[], None]):
        self._timeout_s, self._where, self._on_error = timeout_s, where, on_error

    def __enter__(self) -> float:
        return time.monotonic() + self._timeout_s

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            return
        self._on_error()
        if isinstance(error, TimeoutError) and not error.errno:  # ETIMEDOUT: the kernel has given up sooner than we
            raise Unreachable(f"{self._where} did not answer within {self._timeout_s:g} s") from None
        if isinstance(error, OSError):
            raise Unreachable(f"the connection to {self._where} broke: {error.strerror or error}") from None
        if isinstance(error, (KeyError, ValueError, TypeError)):
            raise Unreachable(f"{self._where} sent what is not understood: {error!r}") from error


def left(deadline: float | None) -> float | None:
    """Seconds until the deadline, above 0. Raises TimeoutError when it is over."""
    if deadline is None:
        return None
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


# ---------------------------------------------------------------- handshake


def welcome(connection: socket.socket, secret: bytes, deadline: float) -> None:
    """The server's half. Raises Refused if the other end does not know the secret."""
    mine = secrets.token_bytes(_NONCE)
    send_views(connection, [memoryview(_GREETING + mine)], deadline)
    answer = _receive_exactly(connection, 2 * _NONCE, deadline)
    theirs, proof = answer[:_NONCE], answer[_NONCE:]
    if not hmac.compare_digest(proof, _proof(secret, b"client", mine, theirs)):
        raise Refused("a client does not know the secret of this job")
    send_views(connection, [memoryview(_proof(secret, b"server", mine, theirs))], deadline)


def prove(connection: socket.socket, secret: bytes, deadline: float) -> None:
    """The client's half. Raises Refused if either does not know the secret."""
    greeting = _receive_exactly(connection, len(_GREETING) + _NONCE, deadline)
    if not greeting.startswith(_GREETING):
        raise Refused("this is no fill port of restow")
    theirs, mine = greeting[len(_GREETING) :], secrets.token_bytes(_NONCE)
    send_views(connection, [memoryview(mine + _proof(secret, b"client", theirs, mine))], deadline)
    try:
        proof = _receive_exactly(connection, _NONCE, deadline)
    except (Unreachable, ConnectionError):
        raise Refused("the fill port did not accept our secret; is it a process of this job?") from None
    if not hmac.compare_digest(proof, _proof(secret, b"server", theirs, mine)):
        raise Refused("the fill port does not know the secret of this job")


def _proof(secret: bytes, role: bytes, server: bytes, client: bytes) -> bytes:
    return hmac.new(secret, role + server + client, hashlib.sha256).digest()


# ---------------------------------------------------------------- words


def send(connection: socket.socket, word: dict[str, Any], deadline: float | None) -> None:
    raw = json.dumps(word, separators=(",", ":")).encode()
    send_views(connection, [memoryview(_LENGTH.pack(len(raw)) + raw)], deadline)


def receive(connection: socket.socket, deadline: float | None) -> tuple[dict[str, Any], int]:
    """The next word and its size. A word that is an error is raised as what it was there."""
    (length,) = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size, deadline))
    if length > HEADER_MAX:
        raise Unreachable(f"a word of {length} bytes; at most {HEADER_MAX} are taken")
    word = json.loads(_receive_exactly(connection, length, deadline))
    if not isinstance(word, dict):
        raise Unreachable(f"a word is {str(word)[:40]!r}; expected an object")
    if "error" in word:
        kind = getattr(errors, str(word.get("kind")), Refused)
        raise (kind if isinstance(kind, type) and issubclass(kind, RestowError) else Refused)(str(word["error"]))
    return word, length


def whole(word: dict[str, Any], key: str) -> int:
    """A count in a word, checked."""
    value = word.get(key)
    if not isinstance(value, int) or value < 0:
        raise Unreachable(f"{key} is {value!r}; expected a count")
    return value


def _receive_exactly(connection: socket.socket, length: int, deadline: float | None) -> bytes:
    raw = bytearray(length)
    receive_views(connection, [memoryview(raw)], deadline)
    return bytes(raw)


# ---------------------------------------------------------------- raw bytes


def parts(views: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """`views` in parts of about PART_BYTES: many small ones together, big ones cut."""
    part: list[memoryview] = []
    size = 0
    for view in views:
        at = 0
        while at < view.nbytes:
            piece = view[at : at + PART_BYTES - size]
            part.append(piece)
            at += piece.nbytes
            size += piece.nbytes
            if size >= PART_BYTES or len(part) == VIEWS_MAX:
                yield part
                part, size = [], 0
    if part:
        yield part


def send_views(connection: socket.socket, views: Sequence[memoryview], deadline: float | None) -> None:
    for part in parts(views):
        while part:
            connection.settimeout(left(deadline))
            part = _behind(part, connection.sendmsg(part))


def receive_views(connection: socket.socket, views: Sequence[memoryview], deadline: float | None) -> None:
    for part in parts(views):
        while part:
            connection.settimeout(left(deadline))
            count = connection.recvmsg_into(part)[0]
            if not count:
                raise ConnectionResetError(errno.ECONNRESET, "the other end hung up")
            part = _behind(part, count)


def _behind(part: list[memoryview], count: int) -> list[memoryview]:
    """What of `part` comes after its first `count` bytes."""
    for at, view in enumerate(part):
        if count < view.nbytes:
            return [view[count:], *part[at + 1 :]]
        count -= view.nbytes
    return []


# ---------------------------------------------------------------- sockets


def prepare(connection: socket.socket) -> None:
    """No waiting for more to send; and a peer whose machine is gone is noticed in about 10 s."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 10_000)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def hurry(connection: socket.socket) -> None:
    """Its few bytes go before the bulk that waits for the same link, where the queues know priorities."""
    if hasattr(socket, "SO_PRIORITY"):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 6)
    if connection.family is socket.AF_INET:
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)


def hang_up(connection: socket.socket) -> None:
    """Close, also for a thread that waits on it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.EBADF):  # never connected, or closed already
            raise
    connection.close()


def family_of(address: str) -> socket.AddressFamily:
    try:
        return socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    except ValueError:  # a name
        return socket.AF_INET


@functools.cache
def machine() -> str:
    """Equal for two processes that can count as being on one machine: same boot, same network namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/net').st_ino}"
