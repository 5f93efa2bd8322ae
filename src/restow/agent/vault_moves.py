"""This node's part when the state of a suspended job moves to another node's vault: processes that the nursery forks give it out
here, or fetch it (vault_mover.py). Decides nothing; see core/evacuating.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from restow import vault
from restow.agent.client import NurseryClient, twice
from restow.agent.events import EventLog
from restow.agent.folders import Folders
from restow.agent.tasks import Tasks
from restow.agent.vault_mover import ARRIVED, Orders
from restow.agent.vaults import Vaults
from restow.agent.workers import now_s
from restow.errors import RestowError, Unreachable
from restow.job import Kept
from restow.messages import Event, OfferVault, TakeVault, VaultMoved, VaultMoveFailed, VaultOffered

ENDS_S = 5.0  # a process that was killed is gone by then

Key = tuple[str, int]
"""Job, and generation by which the vaults know its state."""


class VaultMoves:
    """Of one node. One giver and one taker at most for each state."""

    def __init__(
        self, node: str, address: str, folders: Folders, events: EventLog, tasks: Tasks, vaults: Vaults, nursery: NurseryClient
    ):  # fmt: skip
        self._node, self._address, self._folders, self._events, self._tasks = node, address, folders, events, tasks
        self._vaults, self._nursery = vaults, nursery
        self._givers: dict[Key, tuple[int, dict[str, Any]]] = {}  # pid and label
        self._takers: dict[Key, tuple[int, dict[str, Any]]] = {}  # likewise; pid 0: on its way
        self._doomed: set[int] = set()  # pids of those that were ended
        self._gone = asyncio.Event()  # set when one of them is gone

    # ------------------------------------------------------------ giving

    async def offer(self, command: OfferVault) -> None:
        """VaultOffered, by whoever gives it out already, or by a new process."""
        key, label = (command.job, command.generation), {"kind": "giver", **self._about(command)}
        pid, known = self._givers.get(key, (0, {}))

        def born(child: dict[str, Any]) -> None:
            label["port"] = child["port"]
            self._givers[key] = (child["pid"], label)

        try:
            if "port" in known:
                born({"pid": pid, "port": known["port"]})
            else:
                await self._end([pid] if pid else [])  # nobody knows where it listens, since a kill came in between
                orders = self._orders(command, _states_on(self._node, command.kept), self._address).to_wire()
                await twice(self._nursery, lambda: self._nursery.move_vault("give", orders, label, born))
            if giver := self._givers.get(key):
                await twice(self._nursery, lambda: self._nursery.label(giver[0], label))
        except RestowError as error:
            self._fail(command, str(error))
        else:
            self._events.put(VaultOffered(
                time_s=now_s(), job=command.job, generation=command.generation, node=self._node, attempt=command.attempt,
                host=self._address, port=label["port"],
            ))  # fmt: skip

    # ------------------------------------------------------------ taking

    def take(self, command: TakeVault) -> None:
        """Begin to fetch it, beside whatever else happens, unless that is being done."""
        key = (command.job, command.generation)
        before, known = self._takers.get(key, (0, {}))
        if known.get("attempt") == command.attempt:
            return
        whole = sorted({*_states_on(self._node, command.kept), *_states_on(command.source, command.kept)})
        label = {"kind": "taker", "source": command.source, "whole": whole, **self._about(command)}
        self._takers[key] = (0, label)
        self._tasks.spawn(self._take(command, label, before))

    async def _take(self, command: TakeVault, label: dict[str, Any], before: int) -> None:
        """`before`: a taker of an earlier attempt, which would write into the same files."""
        key = (command.job, command.generation)

        def born(child: dict[str, Any]) -> None:
            if self._takers.get(key) == (0, label):
                self._takers[key] = (child["pid"], label)
            else:  # it was discarded before it was born
                self._tasks.spawn(self._end([child["pid"]]))

        try:
            await self._end([before] if before else [])
            await self._vaults.expect(*key)
            orders = self._orders(command, _states_on(command.source, command.kept), *command.address).to_wire()
            try:
                await self._nursery.move_vault("take", orders, label, born)
            except Unreachable:  # killed in between: its successor may have found the process, else it is asked again
                await self._nursery.listed.wait()
                if self._takers.get(key) == (0, label):
                    await self._nursery.move_vault("take", orders, label, born)
        except RestowError as error:
            if self._takers.get(key) == (0, label):
                del self._takers[key]
            self._vaults.expect_no_more(*key)
            self._fail(command, str(error))
            await self._vaults.put_on_disk(*key)

    async def _moved(self, label: Mapping[str, Any], reason: str) -> Event:
        """What a taker that is gone has done: it counts when it is on disk, too."""
        key, about = (label["job"], label["generation"]), {name: label[name] for name in ("job", "generation", "node", "attempt")}
        said = self._said(*key, label["attempt"])
        self._vaults.expect_no_more(*key)
        await self._vaults.put_on_disk(*key)
        if said and any(set(label["whole"]) <= vault.names_in(folder) for folder in self._folders_of(*key)):
            return VaultMoved(time_s=now_s(), **about, source=label["source"], bytes=said["bytes"], copy_s=said["copy_s"])
        return VaultMoveFailed(time_s=now_s(), **about, reason=reason or "what it had fetched is not there any more")

    def _said(self, job: str, generation: int, attempt: int) -> dict[str, Any] | None:
        for folder in self._folders_of(job, generation):
            with contextlib.suppress(OSError, ValueError):
                said: dict[str, Any] = json.loads((folder / ARRIVED).read_text())
                if said["attempt"] == attempt:
                    return said
        return None

    # ------------------------------------------------------------ both

    def adopt(self, pid: int, label: dict[str, Any]) -> None:
        """One that lived when we came."""
        key = (label["job"], label["generation"])
        if label["kind"] == "giver":
            self._givers[key] = (pid, label)
        else:
            self._takers[key] = (pid, label)
            self._tasks.spawn(self._vaults.expect(*key))

    async def ended(self, pid: int, label: Mapping[str, Any], code: int, reason: str) -> Event | None:
        """This one is gone: what is to be told of it, if it was not we who ended it."""
        key, known = (label["job"], label["generation"]), self._givers if label["kind"] == "giver" else self._takers
        label = known.pop(key)[1] if key in known and known[key][0] == pid else label
        if pid in self._doomed:
            self._doomed.discard(pid)
            self._gone.set()
            return None
        if label["kind"] == "taker":
            return await self._moved(label, reason)
        if code == -signal.SIGALRM:  # it was not needed for long
            return None
        about = {name: label[name] for name in ("job", "generation", "node", "attempt")}
        return VaultMoveFailed(time_s=now_s(), **about, reason=reason)

    async def end(self, job: str, most: int | None = None) -> None:
        """Those of this job; with `most` of a state of this generation, or of one before. Returns when they are gone."""
        pids = []
        for known in (self._givers, self._takers):
            for key in [key for key in known if key[0] == job and (most is None or key[1] <= most)]:
                pids.append(known.pop(key)[0])
                self._vaults.expect_no_more(*key)
        await self._end([pid for pid in pids if pid])

    async def _end(self, pids: list[int]) -> None:
        self._doomed.update(pids)
        for pid in pids:
            await self._nursery.end(pid, 0.0)
        with contextlib.suppress(TimeoutError):  # the nursery was killed meanwhile: its successor ends them
            async with asyncio.timeout(ENDS_S):
                while self._doomed.intersection(pids):
                    self._gone.clear()
                    await self._gone.wait()

    def _orders(self, command: OfferVault | TakeVault, names: list[str], host: str, port: int = 0) -> Orders:
        memory, disk = self._folders_of(command.job, command.generation)
        return Orders(
            job=command.job, generation=command.generation, step=command.kept.step, names=tuple(names), memory=str(memory),
            disk=str(disk), host=host, port=port, attempt=command.attempt, secret=command.secret,
        )  # fmt: skip

    def _about(self, command: OfferVault | TakeVault) -> dict[str, Any]:
        return {"job": command.job, "generation": command.generation, "node": self._node, "attempt": command.attempt}

    def _folders_of(self, job: str, generation: int) -> tuple[Path, Path]:
        return self._folders.vault(job, generation), self._folders.vault_on_disk(job, generation)

    def _fail(self, command: OfferVault | TakeVault, reason: str) -> None:
        self._events.put(VaultMoveFailed(time_s=now_s(), **self._about(command), reason=reason))


def _states_on(node: str, kept: Kept) -> list[str]:
    """The states of it that lie on this node, by name."""
    own = [vault.of_rank(rank) for rank, slot in enumerate(kept.placement) if slot.node == node]
    return [vault.REPLICA, *own] if node in kept.replicas else own
