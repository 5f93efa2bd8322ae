"""Filling a twin before the switch: a fuzzy read of a neighbour's memory, then every update repeated.

State changes at every step, so copying ahead never ends by itself. But an optimizer is deterministic, so a copy that is given
each step's final gradients stays exact. The *leader* (a staying rank on the twin's node) puts the gradients of each update into
shared memory, just before its own optimizer runs; the *shadow* (the twin) reads parameters and moments between two updates,
piece by piece and without stopping the leader (a piece torn by an update is read again), and runs the same update on every piece
that it holds. At the switch step only the last update can be outstanding. Same idea: redo logs of databases; GoCkpt (2025).

Exact for optimizers that treat each parameter by itself (SGD, Adam, AdamW, RMSprop, Adagrad …). CPU tensors of one machine.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import struct
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from restow.placement import Placement
from restow.sdk.boxes import StateTable
from restow.sdk.environment import Environment
from restow.sdk.memory import allow_reading, read_process_memory

if TYPE_CHECKING:
    from restow.sdk.attempt import Attempt

DEPTH = 2  # updates that the leader may be ahead before it waits
LAG_S_MAX = 2.0  # a shadow that keeps the leader waiting longer than this is dropped
PIECE_BYTES = 8 << 20  # read between two looks at the leader's counters
POLL_S = 0.0003
_HEADER_BYTES, _META_BYTES = 4096, 1 << 16
# words of the header, all written by the leader but the last: updates begun, logged, ended (counted since the log was opened);
# 1 when the leader has left; updates of the job when `_FINISHED` was written; from _CONSUMED on, one per follower: its next update
_STARTED, _LOGGED, _FINISHED, _CLOSED, _UPDATES, _CONSUMED = 0, 1, 2, 3, 4, 8
_IDLE = -1


def leader_of(now: Placement, then: Placement, rank: int) -> int | None:
    """The staying rank whose memory a twin of `rank` reads: the lowest one on the destination's node. None: there is none."""
    staying = (r for r, slot in enumerate(then) if slot[:2] == now[r][:2] and slot.node == then[rank].node)
    return next(staying, None)


def followers_of(now: Placement, then: Placement, leader: int) -> list[int]:
    moved = (r for r, slot in enumerate(then) if slot[:2] != now[r][:2])
    return [rank for rank in moved if leader_of(now, then, rank) == leader]


class _Log:
    """The shared file: counters, then DEPTH slots of (sequence, meta, gradients)."""

    def __init__(self, path: Path, table: StateTable, create: bool):
        self.path = path
        self.parameters = [
            p for optimizer in table.optimizers() for group in optimizer.param_groups for p in group["params"]
        ]
        offsets, end = [], 0
        for parameter in self.parameters:
            offsets.append(end)
            end += (parameter.numel() * parameter.element_size() + 63) // 64 * 64
        slot_bytes = _META_BYTES + end
        total = _HEADER_BYTES + DEPTH * slot_bytes
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
        try:
            if create:
                os.posix_fallocate(descriptor, 0, total)
            self.memory = mmap.mmap(
                descriptor, total, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE
            )  # no page faults later
        except OSError:
            if create:
                path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        self.words = memoryview(self.memory)[:_HEADER_BYTES].cast("q")
        self.meta_offsets = [_HEADER_BYTES + n * slot_bytes for n in range(DEPTH)]
        self.gradients = [
            [
                torch.frombuffer(self.memory, dtype=p.dtype, count=p.numel(), offset=meta + _META_BYTES + offset).view(
                    p.shape
                )
                for p, offset in zip(self.parameters, offsets, strict=True)
            ]
            for meta in self.meta_offsets
        ]

    def write_meta(self, slot: int, sequence: int, meta: Any) -> None:
        raw = pickle.dumps(meta)
        if len(raw) > _META_BYTES - 16:
            raise OSError(f"the optimizer's settings take {len(raw)} bytes, more than {_META_BYTES - 16}")
        at = self.meta_offsets[slot]
        struct.pack_into("<qq", self.memory, at, sequence, len(raw))
        self.memory[at + 16 : at + 16 + len(raw)] = raw

    def read_meta(self, slot: int) -> tuple[int, Any]:
        at = self.meta_offsets[slot]
        sequence, length = struct.unpack_from("<qq", self.memory, at)
        return sequence, pickle.loads(self.memory[at + 16 : at + 16 + length])


class Leader:
    """In a staying rank: writes each update's gradients for the twins of its node. The worker's optimizer hooks call
    `before` and `after` on the training thread."""

    def __init__(self, attempt: Attempt, table: StateTable, environment: Environment, updates: Callable[[], int]):
        """Raises OSError when there is no room in shared memory. `updates` counts the job's finished updates."""
        followers = followers_of(attempt.terms.now, attempt.terms.then, environment.rank)
        # named after this process like its page, so that the agent removes it when we are gone, however that came
        path = Path(environment.page).with_suffix(f".shadow{attempt.terms.generation}")
        self._log = _Log(path, table, create=True)
        self._words = self._log.words
        self._words[_STARTED] = 1  # see follow_now
        self._followers = [_CONSUMED + index for index in range(len(followers))]
        for word in self._followers:
            self._words[word] = _IDLE
        self._updates = updates
        self._count = 0  # updates ended since the log was opened
        self._is_inside = False  # between `before` and `after`
        self._lock = threading.Lock()  # of its change to True
        self._is_open = True
        self._first: dict[int, tuple[int, int]] = {}  # id of an optimizer → (its index, index of its first parameter)
        at = 0
        for index, optimizer in enumerate(table.optimizers()):
            self._first[id(optimizer)] = (index, at)
            at += sum(len(group["params"]) for group in optimizer.param_groups)
        allow_reading()
        ticket = {
            "path": str(path),
            "pid": os.getpid(),
            "followers": followers,
            "tensors": [[name, t.data_ptr(), t.numel() * t.element_size()] for name, t in table.tensors().items()],
        }
        attempt.open_store().set(f"shadow/{environment.rank}", json.dumps(ticket))

    def follow_now(self) -> None:
        """No update is under way that we were not told of: we may be followed at once. Otherwise nobody follows before we have seen
        a whole one."""
        with self._lock:
            if not self._is_inside and not self._count:
                self._words[_UPDATES] = self._updates()
                self._words[_STARTED] = 0

    def before(self, optimizer: torch.optim.Optimizer) -> None:
        """An update begins: its gradients are final."""
        if not self._is_open:
            return
        with self._lock:
            self._is_inside = True
            self._words[_STARTED] = self._count + 1  # before we look for followers: a follower looks the other way round
        if any(self._words[word] != _IDLE for word in self._followers):
            if self._await_followers():
                self._write(optimizer)
                self._words[_LOGGED] = self._count + 1
            else:
                self.close()

    def after(self) -> None:
        """The update has ended."""
        if self._is_open and self._is_inside:
            self._is_inside = False
            self._count += 1
            self._words[_UPDATES] = self._updates()
            self._words[_FINISHED] = self._count

    def _write(self, optimizer: torch.optim.Optimizer) -> None:
        slot = self._count % DEPTH
        index, first = self._first[id(optimizer)]
        scalars, present, at = [], [], first
        for group in optimizer.param_groups:
            scalars.append({key: value for key, value in group.items() if key != "params"})
            for parameter in group["params"]:
                present.append(parameter.grad is not None)
                if parameter.grad is not None:
                    self._log.gradients[slot][at].copy_(parameter.grad)
                at += 1
        self._log.write_meta(slot, self._count, (index, first, scalars, present, self._updates() + 1))

    def _await_followers(self) -> bool:
        """Wait until the slot to be written is free. False: a follower is too slow (or dead); it is dropped."""
        give_up_s = time.perf_counter() + LAG_S_MAX
        words = self._words
        while any(words[word] != _IDLE and words[word] <= self._count - DEPTH for word in self._followers):
            if time.perf_counter() > give_up_s:
                return False
            time.sleep(POLL_S)
        return True

    def close(self) -> None:
        self._is_open = False
        self._words[_CLOSED] = 1
        self._log.path.unlink(missing_ok=True)


class Shadow:
    """In a twin: reads, follows, and says when it holds everything."""

    def __init__(self, attempt: Attempt, table: StateTable, environment: Environment, on_ready: Callable[[], None]):
        self._attempt, self._table, self._on_ready = attempt, table, on_ready
        self._rank = environment.rank
        self._leader = leader_of(attempt.terms.now, attempt.terms.then, self._rank)
        if self._leader is None:
            raise OSError(f"no staying rank on {attempt.terms.then[self._rank].node} to shadow")
        self._is_open = True
        self._updates = -1  # of the job, as of the last update that we repeated
        self._caught_up = threading.Condition()
        self._error = ""
        self._whole = False
        self._log: _Log | None = None
        self._own_gradients = {  # of the rehearsal: the same memory is used in the first step
            parameter: parameter.grad
            for optimizer in table.optimizers()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        table.watch.pause()
        self._thread = threading.Thread(target=self._run, name="restow-shadow", daemon=True)
        self._thread.start()

    def finish(self, updates: int, patience_s: float) -> None:
        """Block until the update numbered `updates` (of the job) is repeated. Raises RuntimeError if that cannot be."""
        with self._caught_up:
            done = self._caught_up.wait_for(
                lambda: self._error or (self._whole and self._updates >= updates), timeout=patience_s
            )
        if self._error or not done:
            raise RuntimeError(self._error or f"the shadow stands at update {self._updates}, not {updates}")
        self.stop()

    def stop(self) -> None:
        """When this returns nobody but the caller writes into the twin's tensors any more."""
        self.close()
        self._thread.join()
        self._table.watch.resume()

    def close(self) -> None:
        self._is_open = False

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:  # a lost leader, a torn log: the switch must hear of it
            with self._caught_up:
                self._error = f"shadow: {type(error).__name__}: {error}"
                self._caught_up.notify_all()

    def _follow(self) -> None:
        store = self._attempt.open_store()
        store.wait([f"shadow/{self._leader}"], timedelta(seconds=60))
        ticket = json.loads(store.get(f"shadow/{self._leader}"))
        log = _Log(Path(ticket["path"]), self._table, create=False)
        self._log = log  # kept: to unmap it takes some milliseconds, which the switch step has not
        own = _CONSUMED + ticket["followers"].index(self._rank)
        words = log.words
        next_update = self._attach(words, own)
        self._updates = words[_UPDATES]
        pieces = self._pieces(ticket["tensors"])
        held: set[int] = set()  # indices of parameters that we have read
        announced = False
        while self._is_open:
            if words[_CLOSED]:
                raise RuntimeError("the leader closed its log")
            if words[_LOGGED] > next_update:
                self._repeat(log, next_update, held)
                next_update += 1
                words[own] = next_update
            elif pieces and words[_FINISHED] == next_update:
                if self._read(ticket["pid"], pieces[-1][1], words, next_update):
                    held |= pieces.pop()[0]
            elif not pieces and not announced:
                announced = True
                with self._caught_up:
                    self._whole = True
                    self._caught_up.notify_all()
                self._on_ready()
            else:
                time.sleep(POLL_S)
        words[own] = _IDLE

    def _attach(self, words: Any, own: int) -> int:
        """The first update that will surely be in the log: between two updates the leader has seen that we follow."""
        while True:
            started = words[_STARTED]
            words[own] = started
            if words[_STARTED] == started == words[_FINISHED]:
                return started
            time.sleep(POLL_S)

    def _pieces(self, tensors: list[list[Any]]) -> list[tuple[set[int], list[tuple[int, int, int]]]]:
        """What to read, in pieces of about PIECE_BYTES: (parameters completed by it, [(address, bytes, own address)])."""
        own = self._table.tensors()
        if [name for name, _, _ in tensors] != list(own):
            raise RuntimeError("the leader holds other tensors than this twin")
        theirs = {name: (address, nbytes) for name, address, nbytes in tensors}
        names_of = {t.data_ptr(): name for name, t in own.items()}
        units: list[tuple[int, list[str]]] = []
        taken: set[str] = set()
        index = 0
        for optimizer in self._table.optimizers():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    mine = [parameter, *(v for v in optimizer.state.get(parameter, {}).values() if torch.is_tensor(v))]
                    names = [names_of[t.data_ptr()] for t in mine if t.data_ptr() in names_of]
                    units.append((index, [name for name in names if name not in taken]))
                    taken |= set(names)
                    index += 1
        units.extend((-1, [name]) for name in own if name not in taken)
        pieces: list[tuple[set[int], list[tuple[int, int, int]]]] = []
        size = PIECE_BYTES
        for number, names in units:
            if size >= PIECE_BYTES:
                pieces.append((set(), []))
                size = 0
            pieces[-1][0].add(number)
            for name in names:
                address, nbytes = theirs[name]
                if nbytes != own[name].numel() * own[name].element_size():
                    raise RuntimeError(f"{name} has {nbytes} bytes at the leader")
                pieces[-1][1].append((address, nbytes, own[name].data_ptr()))
                size += nbytes
        return pieces

    def _read(self, pid: int, spans: list[tuple[int, int, int]], words: Any, at_update: int) -> bool:
        """Read one piece; True if no update touched it meanwhile."""
        read_process_memory(pid, spans)
        return words[_STARTED] == at_update

    def _repeat(self, log: _Log, number: int, held: set[int]) -> None:
        """Run update `number` on every parameter that we hold. Gradients are used where they lie, in the log."""
        slot = number % DEPTH
        sequence, (index, first, scalars, present, updates) = log.read_meta(slot)
        if sequence != number:
            raise RuntimeError(f"update {number} is no longer in the log (found {sequence})")
        optimizer = self._table.optimizers()[index]
        at = 0
        for group, values in zip(optimizer.param_groups, scalars, strict=True):
            group.update(values)
            for parameter in group["params"]:
                is_ours = present[at] and first + at in held
                parameter.grad = log.gradients[slot][first + at] if is_ours else None
                at += 1
        optimizer.step()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = self._own_gradients[parameter]
        with self._caught_up:
            self._updates = updates
            self._caught_up.notify_all()
