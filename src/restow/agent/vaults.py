"""What this node keeps of suspended jobs: folders in shared memory and on disk, and the processes that give them out.

The ranks write them (sdk/vault.py). As soon as they are gone, what they left is copied to disk, so that it outlives a reboot, and
memory that is short is freed of what is on disk. Knows nothing of what is in a state.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from restow import stripes, vault
from restow.agent.client import NurseryClient, NurseryRefused
from restow.agent.events import EventLog
from restow.agent.folders import Folders
from restow.agent.tasks import Tasks
from restow.agent.vault_keeper import Orders
from restow.agent.workers import now_s
from restow.errors import RestowError
from restow.messages import Discard, OpenVault, SwitchFailed, VaultNotOnDisk

log = logging.getLogger(__name__)


class Vaults:
    """Of one node."""

    def __init__(self, node: str, address: str, folders: Folders, events: EventLog, tasks: Tasks):
        self._node, self._address, self._folders, self._events, self._tasks = node, address, folders, events, tasks
        self._opened: dict[tuple[str, int], int] = {}  # job, generation that is served → pid of the keeper
        self._gives: dict[int, int] = {}  # pid of a keeper → generation in whose vault is what it gives out
        self._copying: dict[Path, asyncio.Task[None]] = {}
        self._arriving: set[Path] = set()  # folders that a taker (vault_mover.py) may be filling

    # ------------------------------------------------------------ going

    def left(self, job: str, generation: int, rank: int) -> dict[str, Any] | None:
        """What this rank said when it left with its state kept; None: it did not."""
        path = self._folders.vault(job, generation) / f"rank{rank}.left"
        try:
            return dict(json.loads(path.read_text()))
        except (OSError, ValueError):
            return None

    def left_in_any(self, job: str, after: int, rank: int) -> dict[str, Any] | None:
        """The same for the newest generation above `after`."""
        folder = self._folders.vaults / job
        generations = [int(path.name[1:]) for path in folder.glob("g*") if path.name[1:].isdigit()] if folder.is_dir() else []
        for generation in sorted(generations, reverse=True):
            said = self.left(job, generation, rank) if generation > after else None
            if said:
                return said
        return None

    def write_for_lost(self, job: str, generation: int, rank: int, step: int, blob: bytes) -> None:
        """What a lost rank left in shared memory goes into the vault. Raises OSError."""
        vault.write_blob(
            self._folders.vault(job, generation), vault.of_rank(rank), blob, job=job, generation=generation, step=step
        )

    def write_copied(self, job: str, generation: int, as_generation: int, step: int) -> None:
        """What all ranks of this gang held alike after `step` steps goes into the vault, from the stripes that those of this node
        have left. Raises OSError, and KeyError where one is missing."""
        entries, views = stripes.gather(self._folders.shm, job, generation, step)
        folder = self._folders.vault(job, as_generation)
        vault.write(folder, vault.REPLICA, views, entries, job=job, generation=as_generation, step=step)

    def copy_later(self, job: str, generation: int) -> None:
        """Its ranks here are gone: what they left goes to disk, beside whatever else happens."""
        source = self._folders.vault(job, generation)
        if source not in self._copying and source not in self._arriving and source.is_dir():
            self._copying[source] = self._tasks.spawn(self._copy(job, generation))

    async def _copy(self, job: str, generation: int) -> None:
        source, target = self._folders.vault(job, generation), self._folders.vault_on_disk(job, generation)
        try:
            await asyncio.to_thread(vault.copy_whole, source, target)
            if not source.is_dir():  # discarded meanwhile
                await asyncio.to_thread(shutil.rmtree, target, True)
            elif _free_part(source) < vault.FREE_PART_MIN:
                await asyncio.to_thread(shutil.rmtree, source, True)
        except OSError as error:
            log.warning("the state of %s stays in memory only: %s: %s", job, target, error.strerror)
            about: dict[str, Any] = {"job": job, "generation": generation, "node": self._node}
            self._events.put(VaultNotOnDisk(time_s=now_s(), reason=f"{target}: {error.strerror}", **about))
        finally:
            self._copying.pop(source, None)

    async def close(self) -> None:
        """Before shared memory is removed: everything is on disk, or it is said that it is not."""
        for path in sorted(self._folders.vaults.glob("*/g*")):
            job, generation = path.parent.name, int(path.name[1:])
            if path in self._copying:
                with contextlib.suppress(asyncio.CancelledError):
                    await self._copying[path]
            elif not self._folders.vault_on_disk(job, generation).is_dir():
                await self._copy(job, generation)

    # ------------------------------------------------------------ moving to another node

    async def expect(self, job: str, generation: int) -> None:
        """More of it is going to arrive: nothing of it is copied to disk from now on. Returns when nothing is."""
        source = self._folders.vault(job, generation)
        self._arriving.add(source)
        if source in self._copying:
            await asyncio.wait([self._copying[source]])

    def expect_no_more(self, job: str, generation: int) -> None:
        self._arriving.discard(self._folders.vault(job, generation))

    async def put_on_disk(self, job: str, generation: int) -> None:
        """Returns when what lies here of it is on disk, or cannot be."""
        self.copy_later(job, generation)
        if copying := self._copying.get(self._folders.vault(job, generation)):
            await asyncio.wait([copying])

    # ------------------------------------------------------------ coming back

    async def open(self, command: OpenVault, nursery: NurseryClient) -> None:
        """Serve what is kept to the twins of this generation; SwitchFailed when it is not there or damaged."""
        job, kept = command.job, command.kept
        if (job, command.generation) in self._opened:
            return
        self._opened[job, command.generation] = 0
        refusals = []
        folders = self._folders.vault(job, kept.generation), self._folders.vault_on_disk(job, kept.generation)
        for folder in folders if not kept.checkpoint else (kept.checkpoint,):
            if isinstance(folder, Path) and not folder.is_dir():
                continue
            orders = Orders(
                folder=str(folder), node=self._node, address=self._address, secret=command.secret, store=command.store,
                kept=kept.placement, replicas=kept.replicas, step=kept.step,
                checkpoint=kept.checkpoint, checkpoint_secret=command.checkpoint_secret,
            )  # fmt: skip
            try:
                label = {"kind": "vault", "job": job, "generation": command.generation, "kept": kept.generation}
                opened = await nursery.open_vault(orders.to_wire(), label)
                self._opened[job, command.generation] = opened["pid"]
                self._gives[opened["pid"]] = kept.generation
                return
            except (NurseryRefused, RestowError) as error:
                refusals.append(str(error))
        reason = "; ".join(refusals) or f"its state of generation {kept.generation} is not in the vault of {self._node} any more"
        del self._opened[job, command.generation]
        self._events.put(SwitchFailed(
            time_s=now_s(), job=job, generation=command.generation, node=self._node, rank=-1, reason=reason
        ))  # fmt: skip

    def gone(self, pid: int) -> None:
        self._opened = {key: keeper for key, keeper in self._opened.items() if keeper != pid}
        self._gives.pop(pid, None)

    def adopt(self, pid: int, label: dict[str, Any]) -> None:
        """One that an earlier agent opened."""
        self._opened[label["job"], label["generation"]] = pid
        self._gives[pid] = label.get("kept", 0)

    async def discard(self, command: Discard, nursery: NurseryClient) -> None:
        await self._end(command.job, nursery, command.generation)
        for parent in (self._folders.vaults / command.job, self._folders.vaults_on_disk / command.job):
            for path in parent.glob("g*"):
                if path.name[1:].isdigit() and int(path.name[1:]) <= command.generation:
                    await asyncio.to_thread(shutil.rmtree, path, True)

    def undo(self, job: str, generation: int) -> None:
        """This suspension did not happen."""
        shutil.rmtree(self._folders.vault(job, generation), ignore_errors=True)

    async def forget(self, job: str, nursery: NurseryClient) -> None:
        await self._end(job, nursery)
        for parent in (self._folders.vaults / job, self._folders.vaults_on_disk / job):
            await asyncio.to_thread(shutil.rmtree, parent, True)

    async def _end(self, job: str, nursery: NurseryClient, most: int | None = None) -> None:
        """All keepers of this job; with `most` those of a vault of this generation, or of one before: what is repeated late must
        not end one that is in use."""
        for (name, _), pid in list(self._opened.items()):
            if name == job and pid and (most is None or self._gives.get(pid, 0) <= most):
                await nursery.end(pid, 0.0)


def _free_part(path: Path) -> float:
    usage = shutil.disk_usage(path)
    return usage.free / usage.total if usage.total else 1.0
