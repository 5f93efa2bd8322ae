"""What all ranks hold alike, as of the last two save points, copied beside the training: while a rank waits for others anyway.

The ranks of a node divide the state among themselves, whole tensors each, and copy their stripe into shared memory, where it
outlives them (restow/stripes.py). What is small is copied as a whole, by few ranks; and what is small against a step by the
training thread itself: that is quicker than to wake another one.

A rank that is lost in its update leaves private state of the step before, when the others have made that update already; it shows
when the first collective of the next step fails. So the copy of the step before stays until another one is whole. And nobody
updates while another rank of the node is behind with its stripe: were that one lost, nobody would have the step it was lost in.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from restow import stripes
from restow.sdk.boxes import StateTable
from restow.sdk.spans import describe
from restow.stripes import Division, Head, Piece, Stripe

COPY_BYTES_MAX = 1 << 30  # of one stripe; two copies of it are held
SMALL_BYTES_MAX = 1 << 20  # some tenths of a millisecond between two steps, which leave none of it in the caches
BLOCKED_PART_MAX = 0.01  # of a step: what takes longer is not copied by the training thread; updates that wait longer for their ...
TRY_EVERY = 64  # ... copy are made without one, but for one in so many, to see whether that has changed
LEARNING_RATE = 0.1
OTHERS_S_MAX = 1.0  # for the stripes of other ranks: whoever is lost is known to be lost by then
POLL_S = 0.0002

Tensors = Mapping[str, torch.Tensor]


class Copies:
    """Of the process that is `rank`; `files(rank)` finds where ranks of this node have, or had, their stripes, and `own` is ours.
    `step_s()`: seconds of a step."""

    def __init__(
        self, table: StateTable, rank: int, own: Path, files: Callable[[int], list[Path]], step_s: Callable[[], float],
    ):  # fmt: skip
        self._table, self._rank, self._own, self._files, self._step_s = table, rank, own, files, step_s
        self._blocked_s = 0.0  # how long an update waits for its copy, smoothed
        self._own_s = 0.0  # what a copy by the training thread takes, smoothed
        self._changed = threading.Condition()
        self._gang: tuple[int, tuple[str, ...]] | None = None  # generation, and the node of each rank
        self._division: Division | None = None  # ours; None: not known yet, or nothing to do
        self._is_divided = False
        self._is_off = False  # there was no room
        self._bytes = 0
        self._stripe: Stripe | None = None
        self._pieces: list[torch.Tensor] = []  # live, of our stripe
        self._rooms: list[list[torch.Tensor]] = []  # where the two copies of them go
        self._live: Tensors | None = None  # what `_pieces` are of: the same dict until a tensor is replaced
        self._others: dict[int, Head] = {}
        self._asked_step = -1
        self._is_by_trainer = False  # the copy of that step is the training thread's
        self._is_copying = False
        self._thread: threading.Thread | None = None

    def join(self, generation: int, nodes: Sequence[str]) -> None:
        """A member of this generation from now on, whose rank r is on `nodes[r]`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_copying)
            self._gang, self._is_divided, self._asked_step = (generation, tuple(nodes)), False, -1
            if self._stripe:
                self._stripe.set("generation", stripes.NOTHING)
            self._division, self._stripe, self._others = None, None, {}

    # ------------------------------------------------------------ the training thread

    def begin(self, step: int) -> None:
        """The state of `step` does not change before `finish` has returned: copy it, if that costs little. May be asked often, and
        is before a collective goes off, so that nobody who has its result finds us without a word of our copy."""
        if self._asked_step == step:
            return
        self._asked_step = step
        self._is_by_trainer = False
        if not self._is_ready():
            return
        is_small = self._is_small()
        is_by_trainer = is_small and not self._is_better_beside()
        if not (is_by_trainer or is_small or self._is_cheap()):
            return
        assert self._stripe
        self._stripe.set("asked", step)
        self._is_by_trainer = is_by_trainer
        if is_by_trainer:
            return
        with self._changed:
            self._is_copying = True
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="restow-copies", daemon=True)
            self._thread.start()

    def finish(self, step: int, is_over: Callable[[], bool] = lambda: False) -> None:
        """The state of `step` may change afterwards: what was begun is whole, here and on this node's other ranks. `is_over()`: is
        there no need to wait for those?"""
        began_s = time.perf_counter()
        if self._asked_step != step:  # no collective came before this update
            self._asked_step = step
            self._is_by_trainer = self._is_ready() and self._is_small()
        if self._is_by_trainer:
            self._copy(step)
            self._own_s += LEARNING_RATE * (time.perf_counter() - began_s - self._own_s)
            return
        if self._is_copying:
            with self._changed:
                self._changed.wait_for(lambda: not self._is_copying)
        self._blocked_s += LEARNING_RATE * (time.perf_counter() - began_s - self._blocked_s)
        self._wait_for_others(step, is_over)

    def _wait_for_others(self, step: int, is_over: Callable[[], bool]) -> None:
        stripe = self._stripe
        if stripe is None or step not in stripe.whole():  # then no copy of it will be whole, whatever the others do
            return
        heads, give_up_s = self._other_heads(), time.monotonic() + OTHERS_S_MAX
        while stripe is self._stripe and any(head.is_behind(step) for head in heads):
            if is_over() or time.monotonic() > give_up_s:
                return
            time.sleep(POLL_S)

    def _other_heads(self) -> list[Head]:
        """Of those that have a file."""
        division = self._division
        if division is None:
            return []
        for rank in division.ranks:
            head = self._others.get(rank)
            if rank != self._rank and (head is None or not head.is_of(division, rank)):
                self._others.pop(rank, None)
                found = self._head_of(division, rank)
                if found:
                    self._others[rank] = found
        return list(self._others.values())

    # ------------------------------------------------------------ what there is

    @property
    def is_made(self) -> bool:
        """Is it for us to make copies?"""
        return self._stripe is not None

    def whole(self) -> tuple[tuple[int, int], set[int]]:
        """Which stripe of how many is ours, and the steps of which it is whole. (0, 0): none is."""
        stripe = self._stripe
        return ((stripe.get("index"), stripe.get("count")), set(stripe.whole())) if stripe else ((0, 0), set())

    def _head_of(self, division: Division, rank: int) -> Head | None:
        for path in self._files(rank):
            try:
                head = Head(path)
                if head.is_of(division, rank):
                    return head
            except OSError:
                continue  # it was just replaced
        return None

    # ------------------------------------------------------------ the decision

    def _is_ready(self) -> bool:
        """Have we a stripe, and room for it?"""
        if self._gang and not (self._is_off or self._is_divided):
            self._divide(self._gang, self._table.tensors())
        return self._stripe is not None

    def _divide(self, gang: tuple[int, tuple[str, ...]], live: Tensors) -> None:
        self._is_divided, self._live, self._stripe = True, live, None
        self._bytes = sum(tensor.nbytes for tensor in live.values())
        division = stripes.divide(*gang, self._rank, self._is_small())
        self._division = division
        if division is None:
            return
        names = _names_of(live, len(division.ranks))[division.index(self._rank)]
        pieces = [_piece(number, name, live[name]) for number, name in enumerate(live) if name in names]
        if stripes.size_of(pieces) > COPY_BYTES_MAX:
            return
        try:
            self._stripe = Stripe(self._own, division, self._rank, pieces, spare=self._bytes)
        except OSError as error:  # none is made any more
            self._is_off = True
            print(f"restow: rank {self._rank} keeps no copy of the step before: {error.strerror}; a rank that is lost in its update"
                  " costs the steps since the last checkpoint", file=sys.stderr, flush=True)  # fmt: skip
            return
        self._pieces = [live[piece.name] for piece in pieces]
        self._rooms = [_room(self._stripe, number, self._pieces) for number in (0, 1)]

    def _is_small(self) -> bool:
        return self._bytes <= SMALL_BYTES_MAX

    def _is_better_beside(self) -> bool:
        """Is there time to wake another thread for what is small, and does an update then wait for less than its own copy takes?"""
        return self._own_s > BLOCKED_PART_MAX * self._step_s() and self._blocked_s < self._own_s

    def _is_cheap(self) -> bool:
        return self._blocked_s <= BLOCKED_PART_MAX * self._step_s() or self._asked_step % TRY_EVERY == 0

    # ------------------------------------------------------------ copying

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_copying)
            self._copy(self._asked_step)
            with self._changed:
                self._is_copying = False
                self._changed.notify_all()

    def _copy(self, step: int) -> None:
        gang, live = self._gang, self._table.tensors()
        if gang and live is not self._live:
            self._divide(gang, live)
        stripe = self._stripe
        if stripe is None:
            return
        number = stripe.begin()
        if self._pieces:
            torch._foreach_copy_(self._rooms[number], self._pieces)
        stripe.finish(step)


# ---------------------------------------------------------------- stripes of a state


def _names_of(live: Tensors, count: int) -> list[set[str]]:
    """Which tensors each stripe has: the greatest first, to whoever has the least. The same on all ranks."""
    loads, names = [0] * count, list[set[str]](set() for _ in range(count))
    for name in sorted(live, key=lambda name: -live[name].nbytes):  # stable
        least = loads.index(min(loads))
        loads[least] += live[name].nbytes
        names[least].add(name)
    return names


def _piece(number: int, name: str, tensor: torch.Tensor) -> Piece:
    strides = list(_strides(tensor))
    return Piece(number=number, name=name, shape=describe(tensor), strides=strides, bytes=tensor.nbytes)


def _strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """Of a copy: dense, in the order of the tensor where it has one."""
    return torch.empty_like(tensor, device="meta").stride()


def _room(stripe: Stripe, copy: int, pieces: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors like these, on the CPU, in that copy of the file."""
    at, found = stripes.where(copy, stripe.get("size")), []
    for piece in pieces:
        if piece.nbytes:
            flat = torch.frombuffer(stripe.memory, dtype=torch.uint8, count=piece.nbytes, offset=at).view(piece.dtype)
            found.append(flat.as_strided(piece.shape, _strides(piece)))
        else:
            found.append(torch.empty_like(piece, device="cpu"))
        at += stripes.padded(piece.nbytes)
    return found
