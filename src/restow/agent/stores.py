"""The stores that this node keeps: opened, found again, written to, ended."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restow.agent.client import NurseryClient, twice
from restow.messages import StoreOpened

log = logging.getLogger(__name__)

ANSWER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeper:
    """The process with one store."""

    pid: int
    job: str
    generation: int
    host: str
    port: int
    socket: str

    def event(self, node: str, time_s: float) -> StoreOpened:
        return StoreOpened(
            time_s=time_s, job=self.job, generation=self.generation, node=node, host=self.host, port=self.port
        )


class Stores:
    """By (job, generation)."""

    def __init__(self) -> None:
        self._keepers: dict[tuple[str, int], Keeper] = {}

    async def open(self, job: str, generation: int, address: str, nursery: NurseryClient) -> Keeper:
        """The store of this generation; the one that is open already, if there is one. Raises RestowError."""
        known = self._keepers.get((job, generation))
        if known:
            return known
        label = {"kind": "store", "job": job, "generation": generation}
        opened = await twice(nursery, lambda: nursery.open_store(address, label))
        keeper = Keeper(job=job, generation=generation, **opened)
        self._keepers[job, generation] = keeper
        label |= {"host": keeper.host, "port": keeper.port}  # for an agent that comes after us
        await twice(nursery, lambda: nursery.label(keeper.pid, label))
        return keeper

    def add(self, pid: int, label: dict[str, Any], run: Path) -> bool:
        """One that an earlier agent opened. False: nobody knows where it listens, since a kill came in between."""
        key = (label["job"], label["generation"])
        if key not in self._keepers and "port" in label:
            self._keepers[key] = Keeper(
                pid=pid, job=key[0], generation=key[1], host=label["host"], port=label["port"], socket=str(run / f"{pid}.sock")
            )
        return key in self._keepers

    def remove(self, pid: int) -> None:
        self._keepers = {key: keeper for key, keeper in self._keepers.items() if keeper.pid != pid}

    async def write(self, job: str, generation: int, name: str, word: str) -> str:
        """Write the first word under `name`; the word that is there. Empty when the store does not answer: then the ranks,
        who wait for that word, decide by themselves."""
        keeper = self._keepers.get((job, generation))
        if keeper is None:
            log.error("job %s: the store of generation %d is not on this node", job, generation)
            return ""
        try:
            return await asyncio.wait_for(_write(keeper.socket, name, word), ANSWER_S)
        except (OSError, ValueError, KeyError) as error:  # TimeoutError is an OSError
            log.error("job %s: the store of generation %d: %r", job, generation, error)
            return ""

    async def end(self, job: str, nursery: NurseryClient) -> None:
        for key, keeper in list(self._keepers.items()):
            if key[0] == job:
                await nursery.end(keeper.pid, 0.0)
                self._keepers.pop(key, None)

    def status(self) -> list[dict[str, Any]]:
        return [
            {"job": k.job, "generation": k.generation, "host": k.host, "port": k.port, "pid": k.pid}
            for k in self._keepers.values()
        ]


async def _write(path: str, name: str, word: str) -> str:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(json.dumps({"do": "set", "key": name, "value": word}).encode() + b"\n")
        return str(json.loads(await reader.readline())["value"])
    finally:
        writer.close()
