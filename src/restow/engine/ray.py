"""The engine on Ray: one detached agent actor per node, found by name, so that a new controller finds the old agents.

Ray brings membership, placing and calls. It does not know our devices, carries no training state and never restarts a
job. An actor that was killed is started again by Ray on the same node; its nursery and ranks have gone on meanwhile,
since they are in sessions of their own. Whether a node is lost is not Ray's word (its default takes about a minute) but
the controller's, by the silence of the agent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Any

from restow import config, errors
from restow.codec import to_json
from restow.engine.base import AgentHandle, EventBatch
from restow.engine.ray_node import LABEL, authentication
from restow.errors import SetupError, Unreachable
from restow.messages import Command

log = logging.getLogger(__name__)

NAMESPACE = "restow"
ANSWER_S_MAX = (
    10.0  # a call takes milliseconds; an actor that Ray starts again needs about 2 s, more on a loaded machine
)
CALLS_MAX = 1000  # at once in one agent; each waiting `events` and each follower of a log holds one


class RayHandle:
    """The agent actor of one node."""

    def __init__(self, node: str, actor: Any):
        self.node = node
        self._actor = actor

    async def tell(self, command: Command) -> None:
        await self._call("tell", ANSWER_S_MAX, to_json(command))

    async def events(self, after: int, wait_s: float) -> EventBatch:
        answer = await self._call("events", ANSWER_S_MAX + wait_s, after, wait_s)
        return EventBatch(epoch=answer["epoch"], events=tuple((number, event) for number, event in answer["events"]))

    async def ask(self, what: str, **arguments: Any) -> Any:
        return await self._call("ask", ANSWER_S_MAX, what, arguments)

    async def end(self, *, leave: bool) -> None:
        """End the agent and everything it runs, then the actor; with `leave` also Ray on its node."""
        import ray

        try:
            await self._call("stop", 30.0)
        finally:
            if leave:
                await self._call("leave", ANSWER_S_MAX)
            else:
                ray.kill(self._actor, no_restart=True)

    async def _call(self, method: str, limit_s: float, *arguments: Any) -> Any:
        from ray.exceptions import RayError

        try:
            async with asyncio.timeout(limit_s):
                answer = await getattr(self._actor, method).remote(*arguments)
        except TimeoutError:
            raise Unreachable(f"node {self.node} does not answer within {limit_s:.0f} s") from None
        except (RayError, RuntimeError, ValueError, OSError) as error:  # Ray raises some that are not its own
            raise Unreachable(f"node {self.node} does not answer: {type(error).__name__}") from None
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["line"])
        return answer["value"]


class RayEngine:
    """`gcs` is host:port of the Ray head; `token_file` opens it. `factory` names what makes a node's agent, there."""

    def __init__(
        self, *, gcs: str, token_file: Path, cluster_id: str, factory: str = "restow.engine.ray_agent:make_agent"
    ):
        self._gcs = gcs
        self._token_file = token_file
        self._cluster_id = cluster_id
        self._factory = factory
        self._handles: dict[str, tuple[str, RayHandle]] = {}  # name → Ray's id of the node, handle

    async def start(self) -> None:
        """Connect to Ray. Raises SetupError when it does not let us in."""
        os.environ.update(authentication(self._token_file))
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._connect)
        except (ConnectionError, RuntimeError, ValueError) as error:
            line = str(error).strip().splitlines() or [type(error).__name__]
            raise SetupError(f"Ray at {self._gcs} does not let us in: {line[0][:200]}") from None

    def _connect(self) -> None:
        """A head that has just started may refuse for a moment, on a busy machine: once in about fifteen starts here."""
        import ray

        for is_last in (False, False, True):
            try:
                ray.init(
                    address=self._gcs,
                    namespace=NAMESPACE,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    configure_logging=False,
                )
                return
            except ConnectionError:
                if is_last:
                    raise
                ray.shutdown()
                time.sleep(1.0)

    async def agents(self) -> dict[str, AgentHandle]:
        """One handle per node that Ray believes alive; the actor is created where it is missing.

        A machine that left and came back is another node to Ray, and so gets another actor.
        """
        loop = asyncio.get_running_loop()
        alive = await loop.run_in_executor(None, self._alive)
        self._handles = {name: held for name, held in self._handles.items() if alive.get(name) == held[0]}
        for name, ray_id in alive.items():
            if name not in self._handles:
                actor = await loop.run_in_executor(None, self._actor, name, ray_id)
                self._handles[name] = (ray_id, RayHandle(name, actor))
        return {name: handle for name, (_, handle) in self._handles.items()}

    async def stop(self, *, end_agents: bool = False) -> None:
        import ray

        if end_agents:
            here = config.node().name  # the head's Ray is ended by whoever started it
            endings = [handle.end(leave=name != here) for name, (_, handle) in self._handles.items()]
            for outcome in await asyncio.gather(*endings, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    log.error("%s", outcome)
        self._handles.clear()
        await asyncio.get_running_loop().run_in_executor(None, ray.shutdown)

    def _alive(self) -> dict[str, str]:
        """Our name → Ray's id, for live nodes."""
        import ray

        return {
            node["Labels"][LABEL]: node["NodeID"]
            for node in ray.nodes()
            if node["Alive"] and LABEL in node.get("Labels", {})
        }

    def _actor(self, name: str, ray_id: str) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from restow.engine.ray_agent import AgentActor

        # The id is part of the name: a machine that left and came back is another Ray node, and the actor of the old
        # one can never be scheduled again.
        return (
            ray.remote(AgentActor)
            .options(
                name=f"agent:{name}:{ray_id[:8]}", namespace=NAMESPACE, lifetime="detached", get_if_exists=True,
                max_restarts=-1, max_task_retries=0, num_cpus=0, max_concurrency=CALLS_MAX,
                scheduling_strategy=NodeAffinitySchedulingStrategy(ray_id, soft=False),
            )
            .remote(self._cluster_id, self._factory)
        )  # fmt: skip
