"""What the controller needs from whatever joins the machines: one handle per node, and nothing else.

Two implementations pass the same contract tests (tests/engine): local.py, in this process, and ray.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from restow.messages import Command


@dataclass(frozen=True, slots=True, kw_only=True)
class EventBatch:
    """Numbered events of one life of an agent. Another `epoch` means: this is another agent, numbers start again."""

    epoch: str
    events: tuple[tuple[int, dict[str, Any]], ...]  # ascending numbers; each event in its wire form


class AgentHandle(Protocol):
    """One node's agent. Every method raises Unreachable when it does not answer in time."""

    node: str

    async def tell(self, command: Command) -> None:
        """Deliver at most once, in order."""
        ...

    async def events(self, after: int, wait_s: float) -> EventBatch:
        """Events numbered above `after`, at once if there are some, else when one comes or `wait_s` is over.

        The agent keeps each until it is acknowledged by an `after` that is not below its number.
        """
        ...

    async def ask(self, what: str, **arguments: Any) -> Any:
        """A question ("status", "logs", "page"): JSON in, JSON out."""
        ...


class Engine(Protocol):
    async def start(self) -> None: ...

    async def agents(self) -> dict[str, AgentHandle]:
        """One handle per live node, by name; starts the agent where it is missing."""
        ...

    async def stop(self, *, end_agents: bool = False) -> None:
        """Let go of the agents; with `end_agents` end them and everything they run."""
        ...
