"""The Unix socket that ranks talk to: JSON lines, the first of which proves whose they are.

Whatever is not understood is dropped with one line in the log; nothing that a script writes here can hurt the agent. Does not
know what the messages mean.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from restow.agent.workers import Worker

log = logging.getLogger(__name__)

LINE_BYTES_MAX = 1 << 18
HELLO_S = 10.0
UNREAD_BYTES_MAX = 1 << 22  # of ours, in the way to a rank that does not read; more ends the connection


class Channel:
    """One rank's connection."""

    def __init__(self, writer: asyncio.StreamWriter):
        self._writer = writer

    def send(self, message: dict[str, Any]) -> None:
        if self._writer.is_closing():
            return  # it connects again and is told again
        self._writer.write(json.dumps(message).encode() + b"\n")
        if self._writer.transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()


class ChannelServer:
    """`find(pid)` knows the process, at the latest when `settled()` returns: it may speak before its birth was told.
    `on_hello(worker, hello)` and `on_message(worker, message)` hear what it says."""

    def __init__(
        self, path: Path, *, find: Callable[[int], Worker | None], settled: Callable[[], Awaitable[object]],
        on_hello: Callable[[Worker, dict[str, Any]], None], on_message: Callable[[Worker, dict[str, Any]], None],
    ):  # fmt: skip
        self._path = path
        self._find, self._settled = find, settled
        self._on_hello, self._on_message = on_hello, on_message
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path=str(self._path), limit=LINE_BYTES_MAX, backlog=512)
        self._path.chmod(0o600)

    async def close(self) -> None:
        if self._server:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        worker = None
        channel = Channel(writer)
        try:
            first = await asyncio.wait_for(reader.readuntil(b"\n"), HELLO_S)
            worker = await self._recognise(first)
            if worker is None:
                log.warning("channel: refused %s", _shown(first))
                return
            if worker.channel:
                worker.channel.close()
            worker.channel = channel
            self._on_hello(worker, json.loads(first))
            await self._listen(worker, reader)
        except TimeoutError:
            log.warning("channel: no hello within %.0f s", HELLO_S)
        except asyncio.LimitOverrunError:
            log.warning("channel: %s sent a line of more than %d bytes", _name(worker), LINE_BYTES_MAX)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            if isinstance(error, asyncio.IncompleteReadError) and error.partial:
                log.warning("channel: %s left after half a line: %s", _name(worker), _shown(error.partial))
        finally:
            if worker and worker.channel is channel:
                worker.channel = None
            self._writers.discard(writer)
            writer.close()

    async def _listen(self, worker: Worker, reader: asyncio.StreamReader) -> None:
        has_complained = False
        while True:
            line = await reader.readuntil(b"\n")
            message = _object(line)
            if message is not None:
                self._on_message(worker, message)
            elif not has_complained:
                log.warning("channel: %s said %s", _name(worker), _shown(line))
                has_complained = True

    async def _recognise(self, line: bytes) -> Worker | None:
        """The process that this hello is from, if it knows its job's secret."""
        hello = _object(line)
        if hello is None or hello.get("type") != "hello" or not isinstance(hello.get("pid"), int):
            return None
        worker = self._find(hello["pid"])
        if worker is None:
            await asyncio.wait_for(self._settled(), HELLO_S)
            worker = self._find(hello["pid"])
        secret = hello.get("secret")
        if worker is None or not isinstance(secret, str) or not hmac.compare_digest(worker.secret.encode(), secret.encode()):
            return None
        if hello.get("job") != worker.job or hello.get("rank") != worker.rank:
            return None
        return worker


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and isinstance(message.get("type"), str) else None


def _shown(line: bytes) -> str:
    """At most 60 bytes; a hello's secret is not among them when it is not ours to show."""
    return repr(line[:60]) if b"secret" not in line[:60] else "a hello"


def _name(worker: Worker | None) -> str:
    return f"{worker.job} rank {worker.rank}" if worker else "a stranger"
