"""The controller's Unix socket: one JSON object as a line in, one or more out, then it is closed. Mode 0600:
whoever can open it may do everything.

    → {"do": "show", "arguments": {"job": "digits-1"}}
    ← {"answer": …}                                     a question, or
    ← {"item": …}  {"item": …}  … {"end": true}         a stream, until the client hangs up or it ends, or
    ← {"error": "NotFound", "line": "job 'x' does not exist …"}
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
from pathlib import Path
from typing import Any

from restow.codec import arguments_of
from restow.controller.requests import Requests
from restow.errors import RestowError, SpecError

log = logging.getLogger(__name__)

LINE_BYTES_MAX = 1 << 20
VERBS = (
    "ping", "ps", "show", "nodes", "snapshot", "events", "logs", "wait", "submit", "cancel", "migrate", "defrag",
    "share", "scale", "checkpoint", "checkpoints", "restore", "pause", "resume", "cordon", "drain", "explain", "stop",
)  # fmt: skip


class Server:
    def __init__(self, path: Path, requests: Requests):
        self._path = path
        self._requests = requests
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._path.unlink(missing_ok=True)  # of a controller that was killed; the lock says that it is gone
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._accept, self._path, limit=LINE_BYTES_MAX)
        finally:
            os.umask(before)

    async def close(self) -> None:
        if self._server:
            self._server.close()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            log.debug("a client hung up")
        finally:
            self._talks.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
        except ValueError:
            await _write(writer, {"error": "SpecError", "line": f"a request is at most {LINE_BYTES_MAX} bytes"})
            return
        if not line:
            return
        answering = asyncio.create_task(self._answer(line, writer))
        hung_up = asyncio.create_task(reader.read(1))  # a client says one thing; what comes next is its end
        try:
            await asyncio.wait({answering, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answering.cancel()
            hung_up.cancel()
            await asyncio.gather(answering, hung_up, return_exceptions=True)

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            call = self._call(line)
            if inspect.isasyncgen(call):
                async for item in call:
                    await _write(writer, {"item": item})
                await _write(writer, {"end": True})
            else:
                await _write(writer, {"answer": await call})
        except RestowError as error:
            await _write(writer, {"error": type(error).__name__, "line": str(error)})
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # our mistake in answering; the state is owned elsewhere and is not touched by it
            log.exception("request %r", line[:200])
            await _write(
                writer, {"error": "RestowError", "line": f"the controller failed to answer: {error!r}; see its log"}
            )

    def _call(self, line: bytes) -> Any:
        try:
            request = json.loads(line)
            verb, arguments = request["do"], request.get("arguments", {})
            method = getattr(self._requests, verb) if verb in VERBS else None
        except (ValueError, TypeError, KeyError):
            raise SpecError(f"request is {line[:80]!r}; write one JSON object with the key 'do'") from None
        if method is None:
            raise SpecError(f"verb is {verb!r}; choose one of {', '.join(VERBS)}")
        return method(**arguments_of(method, arguments))


async def _write(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    writer.write(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
    await writer.drain()
