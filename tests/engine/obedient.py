"""An agent that does at once what it is told, with ranks that exist only as entries. It passes for `agent.loop.Agent`
towards an engine; what a rank would report, a test says with `say`."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from typing import Any

from restow import config
from restow.codec import from_json, to_json
from restow.errors import NotFound
from restow.messages import (
    Command,
    Event,
    Launch,
    OpenStore,
    RankExited,
    RankStarted,
    Stop,
    StoreOpened,
)


class Machine:
    """What survives an agent: the processes and logs of one node."""

    def __init__(self, node: str, devices: int = 2):
        self.node = node
        self.devices = devices
        self.processes: dict[tuple[str, int, int], dict[str, Any]] = {}
        self.logs: dict[tuple[str, int, int], str] = {}


class ObedientAgent:
    def __init__(self, machine: Machine):
        self.machine = machine
        self.epoch = uuid.uuid4().hex
        self.told: list[Command] = []
        self._unread: list[tuple[int, dict[str, Any]]] = []
        self._number = 0
        self._news = asyncio.Event()

    async def start(self) -> None:
        self._news = asyncio.Event()

    async def stop(self, keep_ranks: bool) -> None:
        if not keep_ranks:
            self.machine.processes.clear()

    async def tell(self, wire: dict[str, Any]) -> None:
        command = from_json(wire)
        self.told.append(command)
        about = {"time_s": time.time(), "job": command.job, "generation": command.generation, "node": self.machine.node}
        match command:
            case OpenStore():
                self.say(StoreOpened(**about, host="127.0.0.1", port=1))
            case Launch(placement=placement):
                for rank, slot in enumerate(placement):
                    key = (command.job, command.generation, rank)
                    if slot.node == self.machine.node and key not in self.machine.processes:
                        pid = 1000 + len(self.machine.logs)
                        self.machine.processes[key] = dict(
                            zip(("job", "generation", "rank"), key, strict=True), role="rank", pid=pid
                        )
                        self.machine.logs[key] = f"rank {rank} starts\n"
                        self.say(RankStarted(**about, rank=rank, pid=pid))
            case Stop():
                for key in [k for k in self.machine.processes if k[:2] == (command.job, command.generation)]:
                    self.exit(key, -15)

    async def events(self, after: int, wait_s: float) -> dict[str, Any]:
        self._unread = [(number, event) for number, event in self._unread if number > after]
        if not self._unread and wait_s:
            self._news.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
            except TimeoutError:
                pass  # an empty answer is the answer
        return {"epoch": self.epoch, "events": list(self._unread)}

    async def ask(self, what: str, arguments: dict[str, Any]) -> Any:
        if what == "status":
            devices = [
                {"index": i, "kind": "cpu", "memory_bytes": 0, "share": 1.0} for i in range(self.machine.devices)
            ]
            processes = list(self.machine.processes.values())
            return {
                "node": self.machine.node,
                "address": "127.0.0.1",
                "devices": devices,
                "processes": processes,
                "pid": os.getpid(),
            }
        raise NotFound(f"question is {what!r}; this agent knows status")

    def say(self, event: Event) -> None:
        self._number += 1
        self._unread.append((self._number, to_json(event)))
        self._news.set()

    def exit(self, key: tuple[str, int, int], code: int, reason: str = "") -> None:
        del self.machine.processes[key]
        job, generation, rank = key
        self.say(
            RankExited(
                time_s=time.time(), job=job, generation=generation, node=self.machine.node, rank=rank, role="rank", code=code,
                reason=reason,
            )
        )  # fmt: skip


def make_in_ray(cluster_id: str) -> ObedientAgent:
    """For the actor: the agent of whatever node this process is on."""
    return ObedientAgent(Machine(config.node().name))
