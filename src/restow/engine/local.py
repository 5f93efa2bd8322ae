"""The engine inside one process: agents made by a factory, one per named node. For tests and for embedding.

An agent is anything with the methods of `agent.loop.Agent`. `lose` and `heal` make a node silent, as a pulled cable does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from restow.codec import to_json
from restow.engine.base import AgentHandle, EventBatch
from restow.errors import Unreachable
from restow.messages import Command


class LocalHandle:
    """An agent of this process, reached through the engine, so that the engine can play a cut link."""

    def __init__(self, engine: LocalEngine, node: str):
        self.node = node
        self._engine = engine

    async def tell(self, command: Command) -> None:
        await self._engine.reach(self.node).tell(to_json(command))

    async def events(self, after: int, wait_s: float) -> EventBatch:
        agent = self._engine.reach(self.node)
        answer = await agent.events(after, wait_s)
        if self._engine.reach(self.node) is not agent:  # lost or replaced while we waited
            raise Unreachable(f"node {self.node} does not answer: its agent was replaced")
        return EventBatch(epoch=answer["epoch"], events=tuple((number, event) for number, event in answer["events"]))

    async def ask(self, what: str, **arguments: Any) -> Any:
        return await self._engine.reach(self.node).ask(what, arguments)


class LocalEngine:
    """`make_agent(node)` builds an agent that is not started yet; `nodes` says which there are."""

    def __init__(self, nodes: Iterable[str], make_agent: Callable[[str], Any]):
        self.nodes = list(nodes)
        self._make_agent = make_agent
        self._agents: dict[str, Any] = {}
        self._silent: set[str] = set()

    async def start(self) -> None:
        await self.agents()

    async def agents(self) -> dict[str, AgentHandle]:
        for node in self.nodes:
            if node not in self._agents and node not in self._silent:
                agent = self._make_agent(node)
                await agent.start()
                self._agents[node] = agent
        return {node: LocalHandle(self, node) for node in self.nodes if node not in self._silent}

    async def stop(self, *, end_agents: bool = False) -> None:
        for agent in self._agents.values():
            await agent.stop(keep_ranks=not end_agents)
        self._agents.clear()

    async def replace(self, node: str) -> None:
        """End this node's agent but not its ranks; the next `agents()` makes another one."""
        await self._agents.pop(node).stop(keep_ranks=True)

    def lose(self, node: str) -> None:
        self._silent.add(node)

    def heal(self, node: str) -> None:
        self._silent.discard(node)

    def reach(self, node: str) -> Any:
        """The agent itself. Raises Unreachable when the node is silent or has none."""
        if node in self._silent or node not in self._agents:
            raise Unreachable(f"node {node} does not answer")
        return self._agents[node]
