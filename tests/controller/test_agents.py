"""Contact with a node outlives mistakes: whatever a call raises, the node is not out of reach for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from restow.controller import agents
from restow.controller.agents import Agents
from restow.engine.base import EventBatch
from restow.messages import Discard, NodeJoined


class Wrong:
    """A handle that raises what nobody expects, at the first call of each kind."""

    node = "m1"

    def __init__(self) -> None:
        self.told: list[object] = []
        self.tried: set[str] = set()

    def _stumble(self, what: str) -> None:
        if what not in self.tried:
            self.tried.add(what)
            raise KeyError(f"{what}: Ray has lost its way")

    async def tell(self, command: object) -> None:
        self._stumble("tell")
        self.told.append(command)

    async def events(self, after: int, wait_s: float) -> EventBatch:
        self._stumble("events")
        await asyncio.sleep(min(wait_s, 0.01))
        return EventBatch(epoch="1", events=())

    async def ask(self, what: str, **arguments: Any) -> Any:
        self._stumble("ask")
        return {"address": "127.0.0.1", "devices": [], "processes": [], "pulse": None}


class Engine:
    def __init__(self, handle: Wrong) -> None:
        self.handle = handle

    async def agents(self) -> dict[str, Wrong]:
        return {"m1": self.handle}


def test_a_call_that_fails_in_a_way_that_nobody_expects_is_told_and_tried_again(monkeypatch, caplog):
    monkeypatch.setattr(agents, "RETRY_S", 0.01)
    handle, joined = Wrong(), asyncio.Event()

    async def take(events: Any) -> None:
        if any(isinstance(event, NodeJoined) for event in events):
            joined.set()

    async def compare(*_: object) -> None:
        """Nothing to compare."""

    async def story() -> None:
        contacts = Agents(Engine(handle), take=take, compare=compare, silence_s=4.0)  # type: ignore[arg-type]
        running = asyncio.create_task(contacts.run())
        async with asyncio.timeout(20):
            await joined.wait()
            contacts.send("m1", Discard(job="a", generation=1))
            contacts.send("m1", Discard(job="a", generation=2))
            while len(handle.told) < 2:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(story())
    assert handle.told == [Discard(job="a", generation=1), Discard(job="a", generation=2)]
    assert "Ray has lost its way" in caplog.text
