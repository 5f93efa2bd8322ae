"""A snapshot of the whole job at one step, taken while it trains, from which a checkpoint is written.

Every rank is told the step ahead of time. At that save point each takes what it alone holds; rank 0 copies what all hold alike
beside the forward and backward of the next step (nothing changes it before the next update, which waits for the copy), collects
what the others hold through the store of the generation, and puts everything into a vault's folder in shared memory. Files and
formats of checkpoints are the agent's (agent/checkpoint_writer.py).
"""

from __future__ import annotations

import functools
import hmac
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from restow import vault
from restow.sdk.blob import dump
from restow.sdk.boxes import StateTable
from restow.sdk.channel import Channel
from restow.sdk.vault import write_tensors

KEEPER = 0  # the rank that puts it together
PART_BYTES = 4 << 20  # of private state in one value of the store
OTHERS_S_MAX = 60.0  # for the others' private state
_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Wanted:
    step: int
    folder: Path


class Snapshots:
    """Of one rank. `store()`: where the store of the present generation is, and its number; `finished()`: finished steps."""

    def __init__(
        self, *, job: str, rank: int, world_size: int, secret: bytes, table: StateTable, channel: Channel,
        store: Callable[[], tuple[int, tuple[str, int]]], finished: Callable[[], int],
    ):  # fmt: skip
        self._job, self._rank, self._world_size, self._secret = job, rank, world_size, secret
        self._table, self._channel, self._store = table, channel, store
        self._lock = threading.Lock()
        self._wanted: Wanted | None = None
        self._wanted_step = _NEVER
        self._finished = finished
        self._copied = threading.Event()
        self._copied.set()
        self._blocked_s = 0.0
        self._room_lock = threading.Lock()
        self._tensors: dict[str, torch.Tensor] = {}  # memory of the last copy, touched and so quick to write

    # ------------------------------------------------------------ the agent's word

    def ask(self, step: int, folder: Path, call: Callable[[], None]) -> None:
        """Take one at the save point after `step` steps; refused when that has passed. `call()`: see to it that each save point
        from here on asks `is_due`."""
        with self._lock:
            self._wanted, self._wanted_step = Wanted(step, folder), step  # before the look; the training thread looks after
            call()
            if (at := self._finished()) < step:
                if self._rank == KEEPER:
                    threading.Thread(target=self._make_room, name="restow-snapshot", daemon=True).start()
                return
            self._forget()
        self._channel.tell(type="snapshot_refused", step=step, at=at)

    # ------------------------------------------------------------ the training thread

    @property
    def is_busy(self) -> bool:
        """Is one asked for, or being copied?"""
        return self._wanted_step != _NEVER or not self._copied.is_set()

    def is_due(self, step: int) -> bool:
        """At every save point while one is asked for. True: call `take`."""
        return step >= self._wanted_step

    def take(self, step: int, capture: Callable[[], bytes]) -> None:
        with self._lock:
            wanted = self._wanted
            self._forget()
        if wanted is None:
            return
        if wanted.step != step:
            self._channel.tell(type="snapshot_refused", step=wanted.step, at=step)
            return
        began_s = time.perf_counter()
        blob = capture()
        if self._rank == KEEPER:
            export = dump(self._table.export())
            self._copied.clear()
            self._blocked_s = time.perf_counter() - began_s
            work = functools.partial(self._keep, wanted, blob, export, _mark(self._table.device()))
        else:
            work = functools.partial(self._give, wanted, blob)
        threading.Thread(target=self._try, args=(wanted, work), name="restow-snapshot", daemon=True).start()

    def before_update(self) -> None:
        """Nothing changes before the copy is whole."""
        if not self._copied.is_set():
            began_s = time.perf_counter()
            self._copied.wait()
            self._blocked_s += time.perf_counter() - began_s

    def cancel(self) -> None:
        """None is taken any more of this generation."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._wanted, self._wanted_step = None, _NEVER

    # ------------------------------------------------------------ beside it

    def _try(self, wanted: Wanted, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, RuntimeError, MemoryError, ValueError) as error:  # RuntimeError: the store is gone, or silent
            reason = str(getattr(error, "strerror", None) or error).strip().splitlines()[0]
            print(f"restow: no checkpoint of step {wanted.step}: {reason}", file=sys.stderr, flush=True)
            shutil.rmtree(wanted.folder, ignore_errors=True)
            self._channel.tell(type="snapshot_failed", step=wanted.step, reason=f"rank {self._rank}: {reason}")
        finally:
            self._copied.set()

    def _give(self, wanted: Wanted, blob: bytes) -> None:
        store = self._open_store(wanted.step)
        parts = [blob[at : at + PART_BYTES] for at in range(0, len(blob), PART_BYTES)]
        for number, part in enumerate(parts):
            store.set(f"{self._rank}/{number}", part)  # type: ignore[arg-type]
        store.set(str(self._rank), len(parts).to_bytes(8, "big") + self._signed(wanted.step, self._rank, blob))  # type: ignore[arg-type]

    def _make_room(self) -> None:
        """Memory for the copy, touched while there is time: before the step for which it was asked."""
        with self._room_lock:
            live = self._table.tensors()
            if _shapes(self._tensors) != _shapes(live):
                self._tensors = {name: _room_for(tensor) for name, tensor in live.items()}

    def _keep(self, wanted: Wanted, blob: bytes, export: bytes, ready: torch.cuda.Event | None) -> None:
        self._make_room()
        live = self._table.tensors()
        with _beside(ready):
            for name, tensor in live.items():
                self._tensors[name].copy_(tensor, non_blocking=True)
        self._copied.set()
        about: dict[str, Any] = {"job": self._job, "generation": 0, "step": wanted.step}
        shutil.rmtree(wanted.folder, ignore_errors=True)
        written = write_tensors(wanted.folder, vault.REPLICA, self._tensors, **about)
        written += vault.write_blob(wanted.folder, "export", export, **about)
        written += vault.write_blob(wanted.folder, vault.of_rank(KEEPER), blob, **about)
        if self._world_size > 1:
            store = self._open_store(wanted.step)
            for rank in range(self._world_size):
                if rank != KEEPER:
                    written += vault.write_blob(wanted.folder, vault.of_rank(rank), self._taken(store, wanted.step, rank), **about)
        self._channel.tell(type="snapshotted", step=wanted.step, bytes=written, blocked_s=self._blocked_s)

    def _taken(self, store: dist.Store, step: int, rank: int) -> bytes:
        head = store.get(str(rank))
        count, proof = int.from_bytes(head[:8], "big"), head[8:]
        blob = b"".join(store.get(f"{rank}/{number}") for number in range(count))
        if not hmac.compare_digest(proof, self._signed(step, rank, blob)):
            raise ValueError(f"the state of rank {rank} is not signed by this job")
        for key in (str(rank), *(f"{rank}/{number}" for number in range(count))):
            store.delete_key(key)
        return blob

    def _open_store(self, step: int) -> dist.Store:
        generation, (host, port) = self._store()
        timeout = timedelta(seconds=OTHERS_S_MAX)
        store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
        return dist.PrefixStore(f"snapshot/{generation}/{step}", store)

    def _signed(self, step: int, rank: int, blob: bytes) -> bytes:
        return hmac.digest(self._secret, b"snapshot/%d/%d/" % (step, rank) + blob, "sha256")


def _room_for(tensor: torch.Tensor) -> torch.Tensor:
    """Host memory for a copy of it, touched; pinned where it comes from a GPU."""
    room = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).zero_()
    return room.pin_memory() if tensor.is_cuda else room


def _mark(device: torch.device) -> torch.cuda.Event | None:
    """On a GPU: when everything that was given to it so far is done."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


@contextmanager
def _beside(ready: torch.cuda.Event | None) -> Iterator[None]:
    """On a GPU: on a stream of our own, after `ready`; all that was begun inside is done at the end."""
    if ready is None:
        yield
        return
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        stream.wait_event(ready)
        yield
    stream.synchronize()


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype, tensor.stride()) for name, tensor in tensors.items()}
