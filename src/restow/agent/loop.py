"""The agent of one node: commands in, events out, questions answered.

It starts ranks, twins and stores through the nursery, passes on what ranks say, writes switch steps into their pages, and tells
how they ended. It decides nothing, and what must survive it lives elsewhere: processes and their labels in the nursery, logs in
files, the decision of a switch in the store. So a new agent goes on where a killed one was.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restow.agent import logs
from restow.agent.channel import ChannelServer
from restow.agent.checkpoints import KINDS, Checkpoints
from restow.agent.devices import find_devices
from restow.agent.events import EventLog
from restow.agent.folders import JOB_NAME, Folders
from restow.agent.gates import Gates
from restow.agent.hangs import Hangs
from restow.agent.leases import Leases, pulse_of
from restow.agent.link import LinkGate
from restow.agent.network import interface_of
from restow.agent.proposals import progress_of
from restow.agent.ranks import Ranks
from restow.agent.rescues import Rescues
from restow.agent.sleepers import Sleepers
from restow.agent.switches import Switches
from restow.agent.tasks import Tasks
from restow.agent.workers import Worker, now_s
from restow.cluster import Link
from restow.codec import arguments_of, from_json, to_json
from restow.errors import NotFound, SetupError, SpecError
from restow.messages import (
    Abandon,
    Command,
    Connect,
    Decide,
    DeviceFenced,
    Discard,
    Forget,
    Guard,
    Halt,
    Keep,
    Kill,
    Launch,
    LetGo,
    LinkMeasured,
    OfferVault,
    OpenStore,
    OpenVault,
    Prepare,
    Propose,
    Share,
    Snapshot,
    Stop,
    TakeVault,
    TurnGivenOn,
)

PROGRESS_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """What an agent is told about its node."""

    node: str
    address: str  # where other nodes reach this one
    cluster_id: str
    node_dir: Path  # sockets, logs
    shm_dir: Path  # pages, states in memory
    vault_dir: Path | None = None  # states on disk; None: in node_dir
    devices_file: Path | None = None  # None: GPUs if there are some, else CPU cores
    warm: bool = True  # the nursery imports torch; without it every rank starts as a new interpreter
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))  # what ranks inherit


class Agent:
    """One node's agent. Make it, `start` it and use it in one event loop."""

    def __init__(self, config: AgentConfig):
        self.config = config
        disk = config.vault_dir.absolute() if config.vault_dir else None
        self.folders = Folders(node=config.node_dir.absolute(), shm=config.shm_dir.absolute(), disk=disk)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # one job's commands in order
        self._lock_descriptor = -1

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Adopt what runs here already, or begin anew. Raises SetupError."""
        config = self.config
        interface, devices = interface_of(config.address), find_devices(config.devices_file)
        self.folders.make()
        self._lock()
        self._tasks = Tasks()
        self._events = EventLog(lambda number: self._ranks.acknowledged(number))
        self._switches = Switches(config.node, self.folders, self._events)
        self._ranks = Ranks(config, self.folders, self._events, self._tasks, self._switches.is_under_way)
        self._ranks.devices, self._ranks.interface = devices, interface
        self._switches.ranks = self._ranks
        self._rescues = Rescues(config.node, self.folders, self._events, self._ranks, self._tasks)
        self._checkpoints = Checkpoints(
            config.node, self.folders, self._events, self._tasks, self._ranks.workers, self._ranks.nursery
        )
        self._hangs = Hangs(config.node, self._events, self._ranks.workers)
        self._ranks.on_checkpoint = self._checkpoints.exited
        self._gates = Gates(
            self.folders.gates, devices, drains=any(local.is_gpu for local in devices.values()), on_fenced=self._fenced,
            on_given_on=self._given_on,
        )
        self._link = LinkGate(self.folders.gates, config.node)
        self._channel = ChannelServer(
            self.folders.agent_socket,
            find=self._ranks.workers.by_pid.get, settled=self._ranks.settled.wait,
            on_hello=self._hello, on_message=self._said,
        )  # fmt: skip
        try:
            self._gates.open()
            self._link.open()
            self._ranks.on_changed = lambda: self._gates.update(w for w in self._ranks.workers if w.role != "sleeper")
            self._switches.recall()
            await self._ranks.nursery.start()
            await self._channel.start()
            about = {"node": config.node, "address": config.address, "cluster": config.cluster_id, "pid": os.getpid()}
            (self.folders.node / "node.json").write_text(json.dumps(about) + "\n")
        except BaseException:
            await self._let_go()
            raise
        rate = self._ranks.nursery.local_bytes_per_s
        if rate:
            self._events.put(LinkMeasured(time_s=now_s(), a=config.node, b=config.node, link=Link(bytes_per_s=rate)))
        self._tasks.spawn(self._watch_progress())
        self._tasks.spawn(self._gates.watch())
        self._tasks.spawn(self._link.watch())
        self._tasks.spawn(self._hangs.watch())
        self._tasks.spawn(Sleepers(self._ranks, time.monotonic).watch())
        self._tasks.spawn(Leases(self.folders, self._ranks, self._switches.is_under_way).watch())

    async def stop(self, keep_ranks: bool = False) -> None:
        """Let go of this node; without `keep_ranks` end everything that runs on it, and remove all but its logs."""
        if not keep_ranks:
            await self._ranks.end_all()
            await self._ranks.vaults.close()
            await self._ranks.nursery.quit()
        await self._let_go()
        if not keep_ranks:
            self.folders.remove()

    async def _let_go(self) -> None:
        await self._tasks.close()
        await self._channel.close()
        await self._ranks.nursery.close()
        self._gates.close()
        self._link.close()
        for worker in self._ranks.workers:
            worker.close()
        os.close(self._lock_descriptor)

    def _lock(self) -> None:
        self._lock_descriptor = os.open(self.folders.agent_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_descriptor)
            raise SetupError(
                f"another agent lives in {self.folders.node}; stop it first, or give this node another name (RESTOW_NODE_NAME)"
            ) from None

    async def _watch_progress(self) -> None:
        while True:
            for worker in self._ranks.workers:
                progress = progress_of(worker, self.config.node, now_s())
                if progress:
                    self._events.put(progress)
            await asyncio.sleep(PROGRESS_S)

    # ------------------------------------------------------------ the controller's side

    async def tell(self, command: dict[str, Any]) -> None:
        """Do it; what comes of it is an event. A command that was done already is not done again. Raises SpecError."""
        message = from_json(command)
        if not isinstance(message, Command):
            raise SpecError(f"{command['type']} is an event; an agent takes commands")
        if not JOB_NAME.fullmatch(message.job):
            raise SpecError(f"job id is {message.job!r}; use letters, digits, '.', '_' and '-'")
        async with self._locks[message.job]:
            await self._do(message)
        if isinstance(message, Forget):
            self._locks.pop(message.job, None)

    async def _do(self, command: Command) -> None:
        match command:
            case OpenStore():
                await self._ranks.open_store(command)
            case Launch():
                for rank, slot in enumerate(command.placement):
                    if slot.node == self.config.node:
                        await self._ranks.bear(command, rank)
            case Prepare():
                self._switches.arm(command.job)
                for rank in command.ranks:
                    await self._ranks.bear(command, rank)
            case Guard():
                self._switches.guard(command)
            case Connect():
                self._switches.connect(command)
            case Propose():
                self._switches.propose(command)
            case Decide():
                await self._switches.decide(command)
            case Abandon():
                await self._switches.abandon(command)
            case Stop():
                await self._stop_ranks(command)
            case Kill():
                for worker in self._ranks.workers.of(command.job):
                    if (worker.role, worker.generation, worker.rank) == ("rank", command.generation, command.rank):
                        await self._ranks.end(worker, 0.0)
            case Halt():
                self._rescues.halt(command)
            case Keep():
                self._rescues.keep(command)
            case LetGo():
                self._rescues.let_go(command)
            case Snapshot():
                self._checkpoints.ask(command)
            case OpenVault():
                await self._ranks.vaults.open(command, self._ranks.nursery)
            case OfferVault():
                await self._ranks.vault_moves.offer(command)
            case TakeVault():
                self._ranks.vault_moves.take(command)
            case Discard():
                self._rescues.forget(command.job)
                self._ranks.end_sleepers(command.job, command.generation)
                await self._ranks.vault_moves.end(command.job, command.generation)
                await self._ranks.vaults.discard(command, self._ranks.nursery)
            case Share():
                self._gates.share(command.job, command.sharing, self._ranks.workers)
                self._link.share(command.job, command.sharing)
            case Forget():
                self._gates.forget(command.job)
                self._link.forget(command.job)
                self._switches.forget(command.job)
                self._rescues.forget(command.job)
                self._checkpoints.forget(command.job)
                await self._ranks.forget(command.job)

    def _hello(self, worker: Worker, hello: dict[str, Any]) -> None:
        self._switches.hello(worker, hello)
        self._rescues.hello(worker)
        self._checkpoints.hello(worker)

    def _said(self, worker: Worker, message: dict[str, Any]) -> None:
        if message["type"] == "where":
            self._hangs.said(worker, message)
        elif message["type"] in KINDS:
            self._checkpoints.said(worker, message)
        else:
            self._switches.said(worker, message)

    def _fenced(self, job: str, rank: int, device: int, held_s: float, reason: str) -> None:
        worker = next((w for w in self._ranks.workers.of(job) if w.rank == rank and w.device == device), None)
        generation = worker.generation if worker else 0
        self._events.put(DeviceFenced(
            time_s=now_s(), job=job, generation=generation, node=self.config.node, rank=rank, device=device, held_s=held_s,
            reason=reason,
        ))  # fmt: skip

    def _given_on(self, job: str, device: int, reason: str) -> None:
        generation = max((worker.generation for worker in self._ranks.workers.of(job)), default=0)
        self._events.put(TurnGivenOn(
            time_s=now_s(), job=job, generation=generation, node=self.config.node, device=device, reason=reason,
        ))  # fmt: skip

    async def _stop_ranks(self, command: Stop) -> None:
        """Ranks of the generation and earlier ones, which the controller has left behind; twins of just this one."""
        for worker in self._ranks.workers.of(command.job):
            is_meant = worker.generation == command.generation if worker.role == "twin" else worker.generation <= command.generation
            if is_meant:
                if worker.channel:
                    worker.channel.send({"type": "let_go"})  # a collective that failed may be waiting for a word of ours
                await self._ranks.end(worker, command.grace_s)

    async def events(self, after: int, wait_s: float) -> dict[str, Any]:
        """{"epoch", "events": [[number, event], ...]} above `after`; what is not above it is acknowledged."""
        return await self._events.read(after, wait_s)

    # ------------------------------------------------------------ questions

    async def ask(self, what: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """`status`; `logs` (job, and more, see there); `page` (job, rank). Raises NotFound."""
        questions: dict[str, Callable[..., Any]] = {"status": self._status, "logs": self._logs, "page": self._page}
        if what not in questions:
            raise NotFound(f"question is {what!r}; an agent answers {', '.join(questions)}")
        return questions[what](**arguments_of(questions[what], arguments or {}))

    def _status(self) -> dict[str, Any]:
        """Who this node is, and what is alive on it."""
        return {
            "node": self.config.node,
            "address": self.config.address,
            "cluster": self.config.cluster_id,
            "epoch": self._events.epoch,
            "pid": os.getpid(),
            "devices": [to_json(local.device) for local in self._ranks.devices.values()],
            "processes": [
                {name: getattr(worker, name) for name in ("job", "generation", "rank", "role", "pid", "parked", "greeted")}
                | {"step": worker.step()}
                for worker in self._ranks.workers
            ],
            "stores": self._ranks.stores.status(),
            "pulse": pulse_of(self.folders),
        }

    def _logs(
        self, job: str, rank: int | None = None, generation: int | None = None, offset: int = 0, max_bytes: int = 1 << 16,
        rehearsal: bool = False, tail: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """{"logs": [...]} without a generation, with a tail {"offset", "lines"}, else {"text", "offset"}; see logs.py."""
        if not JOB_NAME.fullmatch(job):
            raise NotFound(f"there is no job {job!r}")
        if rank is None or generation is None:
            return {"logs": logs.list_logs(self.folders.logs / job, rank, rehearsal=rehearsal)}
        path = self.folders.log(job, rank, generation, rehearsal=rehearsal)
        if tail is not None:
            return logs.tail_of(path, tail)
        is_growing = (job, generation, rank) in {worker.key for worker in self._ranks.workers}
        return logs.read_log(path, offset, max_bytes, is_growing=is_growing)

    def _page(self, job: str, rank: int) -> dict[str, Any]:
        for worker in reversed(self._ranks.workers.of(job)):
            if worker.rank == rank and worker.shared:
                words = {name: worker.shared.get(name) for name in worker.shared.words}
                return {"generation": worker.generation, "role": worker.role, "words": words, "text": worker.shared.read_text()}
        raise NotFound(f"job {job} has no rank {rank} with a page on node {self.config.node}")
