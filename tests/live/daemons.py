"""The processes of a cluster for tests: the real controller and one real agent per node, each to be killed with `kill -9`.

    python -m tests.live.daemons controller FOLDER
    python -m tests.live.daemons agent FOLDER NODE

What Ray does in earnest is played by `ProcessEngine`: it starts an agent as a process of its own where none answers, and
talks to it through a Unix socket. A command whose name is a file in FOLDER/held waits until the file is gone, as behind a
slow network, so that a test has time at every stage of a switch; what was delivered is written to FOLDER/told.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from restow import config, errors
from restow.agent.loop import Agent, AgentConfig
from restow.cluster import Snapshot
from restow.codec import to_json
from restow.controller import daemon
from restow.core.config import CoreConfig
from restow.engine.base import AgentHandle, EventBatch
from restow.errors import RestowError, Unreachable
from restow.messages import Command
from restow.placement import Schedule, parse_placement
from restow.policies.board import Board, why_not_back
from restow.policies.consolidate import Consolidate
from restow.policies.sizing import Sizing

MODULE = "tests.live.daemons"
CLUSTER = "0123abcd"
LINE_BYTES_MAX = 1 << 24
LOOK_S = 0.005
START_S = 60.0
# K comes right after the step at which the script is held
QUICK = CoreConfig(propose_ahead_s=0.001, progress_age_s_max=0.0)


class Placed(Consolidate):
    """Jobs start where the test wants them (PLACEMENT in their environment, BACK when they come back); wishes are granted."""

    def plan(self, snapshot: Snapshot) -> Schedule:
        schedule = super().plan(snapshot)
        Sizing(self).plan(snapshot, schedule)
        return schedule

    def _place_pending(self, snapshot: Snapshot, schedule: Schedule, board: Board) -> None:
        for job in snapshot.jobs:
            why_not = why_not_back(job, snapshot)
            if why_not:
                schedule.explain(job.id, why_not)
            elif job.waits and not schedule.placement(job.id):
                wanted = dict(job.spec.env)
                placement = parse_placement(wanted["BACK" if job.kept and wanted.get("BACK") else "PLACEMENT"])
                if any(slot[:2] in board.taken for slot in placement) or not set(placement) <= set(snapshot.slots):
                    schedule.explain(job.id, "waits for its slots")
                    continue
                schedule.put(job.id, placement, "starts where the test wants it")
                board.take(job.id, placement)


# ---------------------------------------------------------------- the engine, in the controller

class ProcessHandle:
    def __init__(self, node: str, folder: Path):
        self.node, self._folder = node, folder

    async def tell(self, command: Command) -> None:
        kind = type(command).__name__
        while (self._folder / "held" / kind).exists():
            await asyncio.sleep(LOOK_S)
        await self._call("tell", to_json(command))
        with open(self._folder / "told", "a") as told:
            told.write(f"{command.job} {command.generation} {kind} {self.node}\n")

    async def events(self, after: int, wait_s: float) -> EventBatch:
        answer = await self._call("events", after, wait_s)
        return EventBatch(epoch=answer["epoch"], events=tuple((number, event) for number, event in answer["events"]))

    async def ask(self, what: str, **arguments: Any) -> Any:
        return await self._call("ask", what, arguments)

    async def _call(self, do: str, *arguments: Any) -> Any:
        if (self._folder / "lost" / self.node).exists():
            raise Unreachable(f"node {self.node} does not answer: it is lost")
        try:
            reader, writer = await asyncio.open_unix_connection(
                str(self._folder / self.node / "engine.sock"), limit=LINE_BYTES_MAX
            )
        except OSError as error:
            raise Unreachable(f"node {self.node} does not answer: {error}") from None
        try:
            writer.write(json.dumps([do, *arguments]).encode() + b"\n")
            line = await reader.readline()
        except ConnectionError:
            line = b""
        finally:
            writer.close()
        if not line:
            raise Unreachable(f"node {self.node} does not answer: it ended while it was asked")
        kind, answer = json.loads(line)
        if kind:
            raise getattr(errors, kind)(answer)
        return answer


class ProcessEngine:
    def __init__(self, folder: Path):
        self._folder = folder
        self._nodes: dict[str, dict[str, Any]] = json.loads((folder / "nodes.json").read_text())
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    async def start(self) -> None:
        await self.agents()

    async def agents(self) -> dict[str, AgentHandle]:
        await asyncio.gather(*map(self._raise, filter(self._is_there, self._nodes)))
        return {node: ProcessHandle(node, self._folder) for node in self._nodes}

    def _is_there(self, node: str) -> bool:
        return not (self._folder / "lost" / node).exists()

    async def _raise(self, node: str) -> None:
        """Start the node's agent if none answers; returns when it does."""
        handle = ProcessHandle(node, self._folder)
        async with asyncio.timeout(START_S):
            while True:
                try:
                    await handle.ask("status")
                    return
                except Unreachable:
                    process = self._started.get(node)
                    if process is None or process.poll() is not None:
                        command = [*self._nodes[node]["enter"], sys.executable, "-m", MODULE, "agent", str(self._folder), node]
                        with open(self._folder / f"{node}.agent.log", "ab") as log:
                            self._started[node] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
                    await asyncio.sleep(0.05)

    async def stop(self, *, end_agents: bool = False) -> None:
        for node in filter(self._is_there, self._nodes) if end_agents else ():
            await ProcessHandle(node, self._folder)._call("stop")
            if node in self._started:
                await asyncio.to_thread(self._started[node].wait, START_S)


# ---------------------------------------------------------------- the processes

async def serve_agent(folder: Path, node: str) -> None:
    about = json.loads((folder / "nodes.json").read_text())[node]
    agent = Agent(
        AgentConfig(
            node=node, address=about["address"], cluster_id=CLUSTER, node_dir=folder / node, shm_dir=Path(about["shm"]),
            devices_file=folder / f"{node}.devices.json",
        )
    )  # fmt: skip
    stopped = asyncio.Event()
    await agent.start()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        if not line:
            writer.close()
            return
        do, *arguments = json.loads(line)
        try:
            reply = [None, await getattr(agent, do)(*arguments)]
        except RestowError as error:
            reply = [type(error).__name__, str(error)]
        if not writer.is_closing():
            writer.write(json.dumps(reply).encode() + b"\n")
        writer.close()
        if do == "stop":
            stopped.set()

    path = folder / node / "engine.sock"
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(answer, str(path), limit=LINE_BYTES_MAX)
    await stopped.wait()
    server.close()
    path.unlink(missing_ok=True)


def serve_controller(folder: Path) -> None:
    home = config.Home(path=folder / "home")
    home.make()
    core = replace(QUICK, **json.loads((folder / "core.json").read_text()))
    with daemon.locked(home.lock):
        asyncio.run(
            daemon.serve(
                home, ProcessEngine(folder), cluster_secret="5e" * 16, about={"cluster_id": CLUSTER}, policy=Placed(), core=core
            )
        )


def main(role: str, folder: str, node: str = "") -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    if role == "agent":
        asyncio.run(serve_agent(Path(folder), node))
    else:
        serve_controller(Path(folder))


if __name__ == "__main__":
    os.umask(0o077)
    main(*sys.argv[1:])
