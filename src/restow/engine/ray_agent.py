"""The actor that holds a node's agent inside Ray. Runs on the agent's machine, in a Ray worker; imports no torch.

Errors for the user travel as {"error": class, "line": text}, since Ray would wrap them in its own.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
from typing import Any

from restow import config
from restow.engine.processes import identify, members_of, started_of
from restow.errors import RestowError

LEAVE_S = 0.5  # for the answer to get out


class AgentActor:
    """Starts the agent at the first call; whoever calls meanwhile waits for the same start."""

    def __init__(self, cluster_id: str, factory: str):
        self._cluster_id = cluster_id
        self._factory = factory
        self._agent: Any = None
        self._starting = asyncio.Lock()

    async def tell(self, command: dict[str, Any]) -> dict[str, Any]:
        return await self._answer("tell", command)

    async def events(self, after: int, wait_s: float) -> dict[str, Any]:
        return await self._answer("events", after, wait_s)

    async def ask(self, what: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return await self._answer("ask", what, arguments)

    async def stop(self) -> dict[str, Any]:
        """End the agent and everything that it runs."""
        return await self._answer("stop", False)

    async def leave(self) -> dict[str, Any]:
        """End Ray on this node, and with it this process, as soon as the answer is out."""
        asyncio.get_running_loop().call_later(LEAVE_S, _end_session)
        return {"value": None}

    async def _answer(self, method: str, *arguments: Any) -> dict[str, Any]:
        try:
            return {"value": await getattr(await self._started(), method)(*arguments)}
        except RestowError as error:
            return {"error": type(error).__name__, "line": str(error)}

    async def _started(self) -> Any:
        async with self._starting:
            if self._agent is None:
                module, _, name = self._factory.partition(":")
                agent = getattr(importlib.import_module(module), name)(self._cluster_id)
                await agent.start()
                self._agent = agent
        return self._agent


def _end_session() -> None:
    """What `ray start` began here is one session, and a Ray worker is a member of it."""
    session = identify(os.getsid(0)) if started_of(os.getsid(0)) else None
    members = members_of(session) if session else []
    for pid in sorted(members, key=lambda pid: pid == os.getpid()):  # this one last
        os.kill(pid, signal.SIGKILL)


def make_agent(cluster_id: str) -> Any:
    """This node's agent as the environment of its Ray node describes it; not started."""
    from restow.agent.loop import Agent, AgentConfig

    node = config.node()
    return Agent(
        AgentConfig(
            node=node.name,
            address=node.address,
            cluster_id=cluster_id,
            node_dir=config.run_folder(cluster_id) / node.name,
            shm_dir=config.shm_folder(cluster_id, node.name),
            vault_dir=config.home().vaults(node.name),
            devices_file=config.devices_file(),
        )
    )
