"""This node's part when a gang has lost ranks: those that are left are halted and told what to keep; for the lost, what they left
in shared memory is found and kept. Decides nothing; see core/recovery.py."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from restow import slots
from restow.agent.events import EventLog
from restow.agent.folders import Folders
from restow.agent.ranks import Ranks
from restow.agent.tasks import Tasks
from restow.agent.workers import Worker, now_s
from restow.messages import Halt, Keep, LetGo, RankHalted, RankKept, SwitchFailed

log = logging.getLogger(__name__)


class Rescues:
    def __init__(self, node: str, folders: Folders, events: EventLog, ranks: Ranks, tasks: Tasks):
        self._node, self._folders, self._events, self._ranks, self._tasks = node, folders, events, ranks, tasks
        self._halts: dict[str, Halt] = {}  # job → for ranks that come back to us after an agent was killed
        self._keeps: dict[str, Keep] = {}
        self._let_gos: dict[str, LetGo] = {}
        self._copying: dict[tuple[str, int], asyncio.Task[None]] = {}  # (job, vault) → who keeps the copies of this node's ranks

    def halt(self, command: Halt) -> None:
        self._halts[command.job] = command
        for worker in self._ranks.workers.of(command.job):
            if worker.role == "rank" and worker.channel and worker.generation == command.generation:
                worker.channel.send({"type": "halt", "generation": command.generation})
        for rank in command.lost:
            left = self._left(command.job, rank)
            stripe, copied = self._folders.stripe_of(command.job, rank, command.generation)
            self._events.put(RankHalted(
                time_s=now_s(), job=command.job, generation=command.generation, node=self._node, rank=rank,
                step=max(left, default=-1), holds=(), privates=tuple(sorted(left)),
                stripe=stripe, copied=tuple(sorted(copied)),
            ))  # fmt: skip

    def keep(self, command: Keep) -> None:
        """Written first is what the ranks of this node have copied: whoever hears of all of them can rely on it."""
        self._keeps[command.job] = command
        key = command.job, command.vault
        if command.copied and key not in self._copying:
            self._copying[key] = self._tasks.spawn(self._keep_copied(command))
        elif not command.copied or self._copying[key].done():
            self._keep_own(command)

    async def _keep_copied(self, command: Keep) -> None:
        generations = command.generation, command.vault
        try:
            await asyncio.to_thread(self._ranks.vaults.write_copied, command.job, *generations, command.step)
        except (OSError, KeyError) as error:
            reason = f"its state could not be kept: {getattr(error, 'strerror', None) or error.args[0]}"
            about: dict[str, Any] = {"job": command.job, "generation": command.vault, "node": self._node}
            self._events.put(SwitchFailed(time_s=now_s(), rank=-1, reason=reason, **about))
            del self._copying[command.job, command.vault]
        else:
            self._keep_own(self._keeps.get(command.job, command))

    def _keep_own(self, command: Keep) -> None:
        for worker in self._ranks.workers.of(command.job):
            if worker.role == "rank" and worker.channel and worker.generation == command.generation:
                folder = str(self._folders.vault(command.job, command.vault))
                about = {"type": "keep", "generation": command.vault, "step": command.step, "vault": folder}
                worker.channel.send({**about, "replica": worker.rank in command.replicas})
        for rank in command.lost:
            self._keep_lost(command, rank, self._left(command.job, rank).get(command.step, b""))

    def let_go(self, command: LetGo) -> None:
        self._let_gos[command.job] = command
        for worker in self._ranks.workers.of(command.job):
            if worker.channel and worker.generation == command.generation:
                worker.channel.send({"type": "let_go"})

    def _keep_lost(self, command: Keep, rank: int, blob: bytes) -> None:
        about: dict[str, Any] = {"time_s": now_s(), "node": self._node, "rank": rank}
        about |= {"job": command.job, "generation": command.vault}
        if not blob:
            why = f"nothing is left of rank {rank} for step {command.step}"
            self._events.put(SwitchFailed(**about, reason=f"its state could not be kept: {why}"))
            return
        try:
            self._ranks.vaults.write_for_lost(command.job, command.vault, rank, command.step, blob)
        except OSError as error:
            self._events.put(SwitchFailed(**about, reason=f"its state could not be kept: {error.strerror}"))
        else:
            self._events.put(RankKept(**about, step=command.step, bytes=len(blob)))

    def hello(self, worker: Worker) -> None:
        """A rank (again) listens: it may have missed what was said."""
        halt, keep, let_go = self._halts.get(worker.job), self._keeps.get(worker.job), self._let_gos.get(worker.job)
        if halt and worker.generation == halt.generation:
            self.halt(halt)
        if keep and worker.generation == keep.generation:
            self.keep(keep)
        if let_go and worker.generation == let_go.generation:
            self.let_go(let_go)

    def forget(self, job: str) -> None:
        self._halts.pop(job, None)
        self._keeps.pop(job, None)
        self._let_gos.pop(job, None)
        self._copying = {key: task for key, task in self._copying.items() if key[0] != job}

    def _left(self, job: str, rank: int) -> dict[int, bytes]:
        """Step → what is left here of what this rank alone held then: its own slots, or a replica of another node's."""
        left: dict[int, bytes] = {}
        for path in self._folders.slots_of(job, rank):
            left |= slots.read(path)
        return left
