"""A cluster in this process for the controller's tests: real core, policy, journal and socket; obedient agents."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from restow.controller.journal import Journal
from restow.controller.loop import Controller, LoopConfig
from restow.controller.requests import Requests
from restow.core.state import ClusterState
from restow.engine.local import LocalEngine
from restow.messages import Progressed
from restow.policies.base import Policy
from restow.policies.consolidate import Consolidate
from tests.engine.obedient import Machine, ObedientAgent

QUICK = LoopConfig(decide_s_min=0.01, decide_s_max=0.1, tick_s=0.05, keep_progress_s=0.05, silence_s=1.5)


class World:
    """Machines and a journal that outlive controllers. `async with world.controller() as requests`."""

    def __init__(self, folder: Path, policy: Policy | None = None, **machines: int):
        self.folder = folder
        self.machines = {name: Machine(name, devices) for name, devices in machines.items()}
        self.policy = policy or Consolidate()
        self.agents: dict[str, ObedientAgent] = {}
        self.engine = LocalEngine(self.machines, self._make)
        self.now: Controller

    def _make(self, node: str) -> ObedientAgent:
        self.agents[node] = ObedientAgent(self.machines[node])
        return self.agents[node]

    @contextlib.asynccontextmanager
    async def controller(self) -> AsyncIterator[Requests]:
        """A controller with every node joined; let go as abruptly as by kill -9, except that the file is closed."""
        journal = Journal(self.folder / "journal.db")
        self.now = Controller(
            state=ClusterState("secret"), policy=self.policy, journal=journal, engine=self.engine, config=QUICK
        )
        running = asyncio.create_task(self.now.run())
        try:
            await until(lambda: running.done() or len(self.now.agents.joined) == len(self.machines), self.now)
            yield Requests(self.now, about={"cluster_id": "0badcafe"}, shut_down=lambda end_agents: None)
            if running.done():
                running.result()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            journal.close()

    async def reach(self, job: str, state: str) -> None:
        await until(lambda: self.now.state.jobs[job].state.value == state, self.now)

    def progress(self, job: str, rank: int, step: int, time_s: float, step_s: float = 0.1) -> None:
        found = self.now.state.jobs[job]
        node = found.placement[rank].node
        self.agents[node].say(Progressed(
            time_s=time_s, job=job, generation=found.generation, node=node, rank=rank, step=step, steps_total=None,
            step_s=step_s, exposed_s=0.0, wire_bytes=0, memory_bytes=0, values=(("loss", 0.5),),
        ))  # fmt: skip

    def types(self) -> list[str]:
        return [type(event).__name__ for _, event in self.now.journal.events()]


async def until(holds: Callable[[], Any], controller: Controller, limit_s: float = 20.0) -> None:
    """Wait for a condition over the controller; looked at after each journalled event, and a few times a second."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await controller.changed.wait()


def play(story: Any) -> None:
    async def within_a_minute() -> None:
        async with asyncio.timeout(60):
            await story()

    asyncio.run(within_a_minute())


def spec(workers: int, **fields: Any) -> dict[str, Any]:
    return {"command": ["python", "train.py"], "workers": workers, **fields}
