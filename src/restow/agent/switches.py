"""This node's part in switches: what ranks say becomes events, what the controller says reaches ranks and pages.

Decides nothing: a switch is decided in its store, and a process that does not know which way it went is never ended for it.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from restow.agent.events import EventLog
from restow.agent.facts import event_of
from restow.agent.folders import Folders
from restow.agent.proposals import propose
from restow.agent.ranks import Ranks
from restow.agent.workers import Worker, now_s
from restow.codec import to_json
from restow.errors import SpecError
from restow.messages import Abandon, Connect, Decide, Guard, Propose, StepAccepted, StepRefused

log = logging.getLogger(__name__)


class Switches:
    """At most one switch of a job is under way; a later one has a higher generation."""

    def __init__(self, node: str, folders: Folders, events: EventLog):
        self._node, self._folders, self._events = node, folders, events
        self._connects: dict[str, dict[str, Any]] = {}  # job → what its processes were told, for those that come later
        self._abandons: dict[str, dict[str, Any]] = {}
        self._came_from: dict[int, int] = {}  # pid of a staying rank that switched → its generation before
        self.ranks: Ranks  # set by the agent; the two need each other

    def recall(self) -> None:
        """What an earlier agent had told."""
        for path in self._folders.run.glob("*.connect"):
            try:
                self._connects[path.name.removesuffix(".connect")] = json.loads(path.read_text())
            except ValueError:  # cut off when its writer was killed; the controller gives the switch up
                path.unlink()

    def is_under_way(self, job: str) -> bool:
        return job in self._connects

    # ------------------------------------------------------------ from the ranks

    def hello(self, worker: Worker, hello: dict[str, Any]) -> None:
        """A process (again) listens: tell it what it may have missed."""
        generation = hello.get("generation")
        generation = generation if isinstance(generation, int) else worker.generation
        match worker.role, hello.get("role"):
            case "sleeper", "twin":  # it was woken by the agent before us
                self.ranks.relabel(worker, role="twin", generation=generation, parked=False)
            case "twin", "rank" if generation < worker.generation:  # it sleeps: the agent before us could not wake it any more
                self.ranks.call(worker)
            case _, "rank" if generation > worker.generation:  # it switched while no agent was there
                self.ranks.relabel(worker, generation=generation, role="rank")
        if not worker.greeted:
            self.ranks.relabel(worker, greeted=True)
        for message in (self._connects.get(worker.job), self._abandons.get(worker.job)):
            if message and worker.channel and _concerns(worker, message["generation"]):
                worker.channel.send(message)

    def said(self, worker: Worker, message: dict[str, Any]) -> None:
        kind = message["type"]
        try:
            event = event_of(
                message, job=worker.job, generation=worker.generation, rank=worker.rank, role=worker.role,
                node=self._node, time_s=now_s(),
            )  # fmt: skip
        except SpecError as error:
            log.warning("channel: %s rank %d: %s", worker.job, worker.rank, error)
            return
        generation = event.generation if event else worker.generation
        is_its = generation == worker.generation and worker.role == "twin"  # not one of a life before, which it repeats
        if kind == "switched" and (generation > worker.generation or is_its):
            if worker.role == "rank":
                self._came_from[worker.pid] = worker.generation
            self.ranks.relabel(worker, generation=generation, role="rank")
        elif kind == "rolled_back" and generation == worker.generation and worker.pid in self._came_from:
            self.ranks.relabel(worker, generation=self._came_from[worker.pid])  # its twin neighbour died in its first step
        elif kind == "parked" and not worker.parked:
            self.ranks.relabel(worker, parked=True)
        elif kind == "retired" or (kind == "kept" and message.get("sleeps") is not True):
            self.ranks.relabel(worker, role="leaver")
            self.ranks.end_later(worker)
        is_over = kind == "switched" or (kind == "rolled_back" and message.get("may_retry") is not True)
        if is_over and kind == "rolled_back" and generation > worker.generation:
            self.ranks.vaults.undo(worker.job, generation)
        if is_over:
            self._is_over(worker.job, generation)
        if event:
            self._events.put(event)
        if kind == "kept" and message.get("sleeps") is True and worker.role != "twin":  # nor woken since
            self.ranks.fell_asleep(worker, generation)

    # ------------------------------------------------------------ from the controller

    def arm(self, job: str, armed: bool = True) -> None:
        """From now on old ranks keep their private state where it survives them (or no longer)."""
        for worker in self.ranks.workers.of(job):
            if worker.shared:
                worker.shared.set("armed", int(armed))

    def guard(self, command: Guard) -> None:
        if command.generation > self._abandons.get(command.job, {}).get("generation", 0):
            self._send(command.job, _terms("guard", command))

    def connect(self, command: Connect) -> None:
        if command.generation <= self._abandons.get(command.job, {}).get("generation", 0):
            return  # late
        message = _terms("connect", command)
        if command.kept:
            names = ("generation", "placement", "replicas", "muted", "step")
            message["kept"] = {name: to_json(getattr(command.kept, name)) for name in names}
        if not command.then:
            message["vault"] = str(self._folders.vault(command.job, command.generation))
        self._connects[command.job] = message
        self._folders.connect(command.job).write_text(json.dumps(message))
        self.arm(command.job)
        self._send(command.job, message)

    def propose(self, command: Propose) -> None:
        """StepAccepted or StepRefused."""
        connect = self._connects.get(command.job, {})
        now = connect["now"] if connect.get("generation") == command.generation else []
        expected = [rank for rank, (node, _, _) in enumerate(now) if node == self._node]
        old = self.ranks.workers.old_ranks(command.job, command.generation)
        refusal = propose(old, expected, command.generation, command.step)
        about: dict[str, Any] = {"time_s": now_s(), "job": command.job, "generation": command.generation, "node": self._node}
        if refusal is None:
            self._events.put(StepAccepted(step=command.step, **about))
        else:
            self._events.put(StepRefused(step=command.step, at=refusal.at, **about))

    async def decide(self, command: Decide) -> None:
        word = "go" if command.go else "abort"
        key = f"decision/{command.step}"
        found = await self.ranks.stores.write(command.job, command.generation, key, word)
        if found != word:
            log.warning("job %s, generation %d: %s is %r, not %r", command.job, command.generation, key, found, word)

    async def abandon(self, command: Abandon) -> None:
        """Tell all. A twin that has never spoken cannot have switched, so it is ended at once; one that has, knows."""
        message = {"type": "abandon", "generation": command.generation, "reason": command.reason}
        if command.generation >= self._abandons.get(command.job, {}).get("generation", 0):
            self._abandons[command.job] = message
        self._send(command.job, message)
        for twin in self.ranks.workers.twins(command.job, command.generation):
            if twin.abandoned:
                continue
            twin.abandoned = True
            if twin.greeted:
                self.ranks.end_later(twin)
            else:
                await self.ranks.end(twin)
        self._is_over(command.job, command.generation)
        self.ranks.vaults.undo(command.job, command.generation)

    def forget(self, job: str) -> None:
        self._connects.pop(job, None)
        self._abandons.pop(job, None)
        self._folders.connect(job).unlink(missing_ok=True)

    def _send(self, job: str, message: dict[str, Any]) -> None:
        for worker in self.ranks.workers.of(job):
            if worker.channel and _concerns(worker, message["generation"]):
                worker.channel.send(message)

    def _is_over(self, job: str, generation: int) -> None:
        """Decided or given up: whoever comes later need not be told of it."""
        connect = self._connects.get(job)
        if connect is None or connect["generation"] <= generation:
            self.arm(job, False)
        if connect and connect["generation"] <= generation:
            del self._connects[job]
            self._folders.connect(job).unlink(missing_ok=True)
            self.ranks.sweep(job)


def _terms(kind: str, command: Guard | Connect) -> dict[str, Any]:
    """What ranks are told of the terms of a switch."""
    return {
        "type": kind,
        "generation": command.generation,
        "present": command.present,
        "now": to_json(command.now),
        "then": to_json(command.then),
        "store": list(command.store),
        "fill": command.fill,
    }


def _concerns(worker: Worker, generation: int) -> bool:
    """Is it one of the processes that a switch to `generation` is about?"""
    return worker.generation == generation if worker.role == "twin" else worker.generation < generation
