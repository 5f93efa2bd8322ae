"""The agent's line to the nursery: starts it where none lives, asks, and hears who exited."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import restow
from restow.agent.birth import Birth
from restow.agent.folders import Folders
from restow.errors import RestowError, SetupError, Unreachable

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

START_S = 120.0  # importing torch from a cold network disk takes its time
ANSWER_S = 60.0
LINE_BYTES_MAX = 64 << 20
READY, ANOTHER = "ready", "another nursery lives here"  # what it says on its stdout
_CODE = """import sys
sys.path.remove("")
where, *about = sys.argv[1:]
if where not in sys.path:
    sys.path.append(where)
del sys.argv[1:]
from restow.agent.nursery import main
main(*about)
"""


class NurseryRefused(RestowError):
    """The nursery could not do it; the line is its reason."""


class NurseryClient:
    """`start` connects, `on_list(children)` is told what lives there at each (re)connect, `on_exit(child)` what ends.

    A nursery that was killed is replaced at once; its successor watches the children that it left.
    """

    def __init__(
        self, folders: Folders, *, address: str, python: str, environment: Mapping[str, str], warm: bool,
        on_list: Callable[[list[dict[str, Any]]], None], on_exit: Callable[[dict[str, Any]], None],
    ):  # fmt: skip
        self._folders = folders
        self._address = address
        self._python = python
        self._environment = {**environment, "OMP_NUM_THREADS": "1"}  # read at import; each rank sets its own afterwards
        self._warm = warm
        self._on_list, self._on_exit = on_list, on_exit
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, tuple[asyncio.Future[Any], Callable[[Any], None]]] = {}
        self.local_bytes_per_s = 0.0  # measured by the nursery when it started; 0: not, or by an earlier one
        self._number = 0
        self._connected = asyncio.Event()
        self.listed = asyncio.Event()  # what lives there is known
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when `on_list` has been told. Raises SetupError when no nursery can be started."""
        await self._connect()
        self._task = asyncio.create_task(self._run())
        await self._ask("list", hear=self._on_list)
        self.listed.set()

    async def close(self) -> None:
        """Let go of it; it lives on."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._writer:
            self._writer.close()

    async def quit(self) -> None:
        """End it, and with it every child at once."""
        try:
            await asyncio.wait_for(self._ask("quit"), 10.0)
        except (RestowError, TimeoutError) as error:
            log.warning("nursery: %s", error)
        await self.close()

    # ------------------------------------------------------------ requests

    async def bear(self, birth: Birth, on_born: Callable[[int, Mapping[str, Any]], None]) -> None:
        """Start a process; `on_born(pid, label)` is called before its exit can be heard of. Raises NurseryRefused with the
        reason why it cannot be started, Unreachable when the nursery was killed meanwhile."""
        await self._ask("start", birth=birth.to_wire(), hear=lambda value: on_born(int(value["pid"]), birth.label))

    async def open_store(self, address: str, label: Mapping[str, Any]) -> dict[str, Any]:
        """{"pid", "host", "port", "socket"} of a new store. Raises NurseryRefused."""
        return await self._ask("store", address=address, label=dict(label))

    async def open_vault(self, orders: Mapping[str, Any], label: Mapping[str, Any]) -> dict[str, Any]:
        """{"pid"} of a process that serves a suspended job's state, checked. Raises NurseryRefused when it is damaged."""
        return await self._ask("vault", orders=dict(orders), label=dict(label))

    async def move_vault(
        self, do: str, orders: Mapping[str, Any], label: Mapping[str, Any], on_born: Callable[[dict[str, Any]], None]
    ) -> None:
        """Start a process that gives out the files of a vault ("give"), or fetches them ("take"); `on_born({"pid"})`, of the former
        with its "port", is called before its exit can be heard of. Raises NurseryRefused."""
        await self._ask(do, orders=dict(orders), label=dict(label), hear=on_born)

    async def write_checkpoint(self, orders: Mapping[str, Any], label: Mapping[str, Any]) -> dict[str, Any]:
        """{"pid"} of a process that writes a checkpoint; how it ended comes as its exit. Raises NurseryRefused."""
        return await self._ask("checkpoint", orders=dict(orders), label=dict(label))

    async def label(self, pid: int, label: Mapping[str, Any]) -> None:
        await self._ask("label", pid=pid, label=dict(label))

    async def end(self, pid: int, grace_s: float) -> None:
        """SIGTERM now and SIGKILL after the grace (0: SIGKILL now), to the process and all that it started."""
        await self._ask("end", pid=pid, grace_s=grace_s)

    async def taken(self, pid: int) -> None:
        """Its exit has been told on; it may be forgotten."""
        await self._ask("taken", pid=pid)

    async def _ask(self, do: str, *, hear: Callable[[Any], None] = lambda value: None, **arguments: Any) -> Any:
        """`hear(value)` is called in the order in which the nursery speaks; whoever awaits wakes up some time later."""
        try:
            await asyncio.wait_for(self._connected.wait(), START_S)
        except TimeoutError:
            raise Unreachable(f"the nursery cannot be started; see {self._folders.nursery_log}") from None
        assert self._writer
        self._number += 1
        number, answer = self._number, asyncio.get_running_loop().create_future()
        self._waiting[number] = (answer, hear)
        self._writer.write(json.dumps({"id": number, "do": do, **arguments}).encode() + b"\n")
        try:
            return await asyncio.wait_for(answer, ANSWER_S)
        except TimeoutError:
            raise Unreachable(f"the nursery does not answer {do}; see {self._folders.nursery_log}") from None
        finally:
            self._waiting.pop(number, None)

    # ------------------------------------------------------------ the line

    async def _run(self) -> None:
        while True:
            await self._receive()
            self._connected.clear()
            self.listed.clear()
            for answer, _ in self._waiting.values():
                if not answer.done():
                    answer.set_exception(Unreachable("the nursery was killed while it was asked"))
            log.warning("the nursery is gone; starting another one")
            while True:
                try:
                    await self._connect()
                    break
                except SetupError as error:
                    log.error("%s", error)
                    await asyncio.sleep(1.0)
            self._greeting = asyncio.create_task(self._greet())

    async def _greet(self) -> None:
        try:
            await self._ask("list", hear=self._on_list)
        except RestowError as error:  # killed again; so is asked again
            log.error("nursery: %s", error)
        else:
            self.listed.set()

    async def _receive(self) -> None:
        while line := await self._next_line():
            message = json.loads(line)
            if "exited" in message:
                self._on_exit(message["exited"])
                continue
            answer, hear = self._waiting.get(message["id"], (None, None))
            if answer is None or hear is None or answer.done():
                continue
            if "error" in message:
                answer.set_exception(NurseryRefused(message["error"]))
            else:
                hear(message["value"])
                answer.set_result(message["value"])

    async def _next_line(self) -> bytes:
        try:
            return await self._reader.readline()
        except ConnectionError:
            return b""

    async def _connect(self) -> None:
        """To the living nursery, or to a new one. Raises SetupError."""
        deadline = time.monotonic() + START_S
        while not await self._open():
            if time.monotonic() > deadline:
                raise SetupError(f"the nursery was started but does not listen; see {self._folders.nursery_log}")
            if await self._start_process() == ANOTHER:  # that one is still importing
                await asyncio.sleep(0.2)
        self._connected.set()

    async def _open(self) -> bool:
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(
                str(self._folders.nursery_socket), limit=LINE_BYTES_MAX
            )
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    async def _start_process(self) -> str:
        """READY, or ANOTHER if one lives already. Raises SetupError."""
        where = str(Path(restow.__file__).resolve().parents[1])
        with self._folders.nursery_log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                self._python, "-c", _CODE, where, str(self._folders.node), str(self._folders.shm), self._address,
                "warm" if self._warm else "cold",
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=output,
                env=self._environment, cwd="/", start_new_session=True,
            )  # fmt: skip
        assert process.stdout
        try:
            said = (await asyncio.wait_for(process.stdout.readline(), START_S)).decode().strip()
        except TimeoutError:
            said = f"nothing within {START_S:.0f} s"
        await process.wait()
        said, _, rate = said.partition(" ") if said.startswith(READY) else (said, "", "")
        self.local_bytes_per_s = float(rate or 0.0)
        if said not in (READY, ANOTHER):
            raise SetupError(f"the nursery did not start: {said or 'it ended at once'}; see {self._folders.nursery_log}")
        return said


async def twice(nursery: NurseryClient, ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Once more, of its successor, when the nursery was killed while it was asked."""
    try:
        return await ask()
    except Unreachable:
        await nursery.listed.wait()
        return await ask()
