"""This node's part in checkpoints: ranks are told the step of a snapshot, and what rank 0 put together is written by a process that
the nursery forks. Decides nothing; see core/checkpoints.py."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from restow.agent.checkpoint_writer import DONE, Orders
from restow.agent.client import NurseryClient, NurseryRefused
from restow.agent.events import EventLog
from restow.agent.folders import Folders
from restow.agent.tasks import Tasks
from restow.agent.workers import Worker, Workers, now_s
from restow.errors import RestowError
from restow.messages import CheckpointAsked, CheckpointFailed, CheckpointWritten, Snapshot, SnapshotRefused

log = logging.getLogger(__name__)

KINDS = ("checkpoint_asked", "snapshot_refused", "snapshot_failed", "snapshotted")  # what ranks say of it


class Checkpoints:
    """Of one node."""

    def __init__(self, node: str, folders: Folders, events: EventLog, tasks: Tasks, workers: Workers, nursery: NurseryClient):
        self._node, self._folders, self._events, self._tasks = node, folders, events, tasks
        self._workers, self._nursery = workers, nursery
        self._asked: dict[str, Snapshot] = {}  # job → the snapshot that its ranks were told of last

    def ask(self, command: Snapshot) -> None:
        """Tell the ranks of this generation here."""
        self._asked[command.job] = command
        for worker in self._workers.of(command.job):
            self._tell(worker, command)

    def hello(self, worker: Worker) -> None:
        """A rank (again) listens: it may have missed what was said."""
        command = self._asked.get(worker.job)
        if command:
            self._tell(worker, command)

    def _tell(self, worker: Worker, command: Snapshot) -> None:
        if worker.role == "rank" and worker.channel and worker.generation == command.generation:
            folder = str(self._folders.snapshot(command.job))
            message = {"type": "snapshot", "generation": command.generation, "step": command.step, "folder": folder}
            worker.channel.send(message)

    def said(self, worker: Worker, message: Mapping[str, Any]) -> None:
        """One of KINDS, from a rank here. What is malformed is logged and left."""
        about: dict[str, Any] = {"time_s": now_s(), "job": worker.job, "generation": worker.generation, "node": self._node}
        try:
            if message["type"] == "checkpoint_asked":
                self._events.put(CheckpointAsked(time_s=now_s(), job=worker.job))
                return
            about |= {"rank": worker.rank, "step": int(message["step"])}
            if message["type"] == "snapshot_refused":
                self._events.put(SnapshotRefused(**about, at=int(message["at"])))
            elif message["type"] == "snapshot_failed":
                self._events.put(CheckpointFailed(**about, reason=str(message["reason"])[:200]))
            else:
                blocked_s = float(message["blocked_s"])
                command = self._asked.get(worker.job)
                if command and command.step == about["step"] and self._folders.snapshot(worker.job).is_dir():
                    self._tasks.spawn(self._write(command, about, blocked_s))
        except (KeyError, ValueError, TypeError) as error:
            log.warning("channel: %s rank %d said %s: %s", worker.job, worker.rank, message["type"], error)

    async def _write(self, command: Snapshot, about: dict[str, Any], blocked_s: float) -> None:
        source = self._folders.snapshot(command.job)
        target = source.with_name(f"{command.job}.{command.step}")  # the next snapshot may begin
        try:
            shutil.rmtree(target, ignore_errors=True)
            source.rename(target)
            orders = Orders(
                snapshot=str(target), folder=command.folder, job=command.job, step=command.step, workers=command.workers,
                keep=command.keep, signatures=command.signatures, secret=command.secret,
            )  # fmt: skip
            label = {"kind": "checkpoint", "snapshot": str(target), "blocked_s": blocked_s, "folder": command.folder, **about}
            await self._nursery.write_checkpoint(orders.to_wire(), label)
        except (NurseryRefused, RestowError, OSError) as error:
            shutil.rmtree(target, ignore_errors=True)
            self._events.put(CheckpointFailed(**about, reason=str(error)))

    def exited(self, label: Mapping[str, Any], reason: str) -> None:
        """A writer is gone: what came of it."""
        about = {name: label[name] for name in ("job", "generation", "node", "rank", "step")}
        try:
            said = json.loads((Path(label["snapshot"]) / DONE).read_text())
        except (OSError, ValueError):
            self._events.put(CheckpointFailed(time_s=now_s(), **about, reason=reason or "its writer was killed"))
        else:
            self._events.put(CheckpointWritten(
                time_s=now_s(), **about, path=said["path"], bytes=said["bytes"], write_s=said["write_s"],
                blocked_s=label["blocked_s"],
            ))  # fmt: skip
        shutil.rmtree(label["snapshot"], ignore_errors=True)

    def forget(self, job: str) -> None:
        self._asked.pop(job, None)
        shutil.rmtree(self._folders.snapshot(job), ignore_errors=True)
