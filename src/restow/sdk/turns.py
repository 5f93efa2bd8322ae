"""Time slices: a gang gives its devices away at a save point that is the same on every rank, and gets them back later.

If ranks stopped wherever each of them is, some would wait inside a step for others that have stopped, with their memory in use.
So a rank that has had the device for a quantum, and at whose gate another job waits, proposes a step a little ahead in the
store of the generation; every rank answers whether it can still stop there (it writes the step where its training thread looks,
then looks how far that is); if all can, it is decided. At that step each rank swaps out what does not fit, passes the turn on at
its own gate, and waits until it comes back. Neither an agent nor the controller takes part. First writer wins, as at a switch.

Whoever takes part in a switch forgets what was proposed before it (`void`), at the same step on every rank; afterwards turns
begin anew with keys of their own (`begin`), whichever generation goes on. A turn that ends at the switch step itself ends first.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from restow.gate import TIME_SLICE
from restow.sdk.passage import Passage
from restow.sdk.swap import StorageSwap, Swap, quantum_s

log = logging.getLogger(__name__)

AHEAD_S = 0.05  # a proposal reaches every rank within that; the switch allows 0.3 s, since agents are in its way
AHEAD_STEPS_MIN = 2
DECISION_S = 5.0  # a rank at the proposed step waits so long for the others' answers, then nothing was decided
SWAP_BUDGET = 0.05  # of the time that swapping may take
FOR_EVER = timedelta(days=365)


class Turns:
    """One rank's part. `save_point` is called on the training thread; answers are given on a thread of our own."""

    def __init__(
        self, passage: Passage, *, world_size: int, open_store: Callable[[], dist.Store], quantum: Callable[[], float],
        swap: Swap, swap_bytes: Callable[[], int], on_swapped: Callable[[int], None] = lambda _: None,
    ):  # fmt: skip
        """`quantum()` in seconds and `swap_bytes()` as the agent says them now; `open_store` gives keys of this gang alone, used
        until the next switch."""
        self._passage, self._world_size = passage, world_size
        self._open_store: Callable[[], dist.Store] | None = open_store  # None: a switch is under way
        self._quantum, self._swap, self._swap_bytes, self._on_swapped = quantum, swap, swap_bytes, on_swapped
        self._refusal = ""  # why nothing was swapped out, as last said
        self._changed = threading.Condition()
        self._life = 0  # counts generations: an answering thread of an earlier one finds itself out of date
        self._number = 0  # of the next proposal
        self._step = 0  # steps finished
        self._stop_at = -1  # the proposed step
        self._decision: bool | None = None
        self._is_proposed = False
        self._is_answering = False
        self._since_s = time.perf_counter()  # when this turn began
        self._swap_s = 0.0  # what the last turn's end and beginning took
        self._store: dist.Store | None = None

    def void(self) -> None:
        """A switch is being made: what was proposed is forgotten, and nothing is proposed until `begin`."""
        self._reset(None)

    def begin(self, open_store: Callable[[], dist.Store]) -> None:
        """The switch is over: keys that nobody has used, and no proposal."""
        self._reset(open_store)

    def _reset(self, open_store: Callable[[], dist.Store] | None) -> None:
        with self._changed:
            self._life += 1
            self._open_store, self._store = open_store, None
            self._number, self._stop_at, self._decision = 0, -1, None
            self._is_proposed = self._is_answering = False
            self._changed.notify_all()

    # ------------------------------------------------------------ the training thread

    def save_point(self, step: int, step_s: float) -> None:
        """`step` steps are done. Returns when the device is ours for the next one."""
        is_sliced = self._passage.gate.mode == TIME_SLICE
        self._step = step  # before we look for a proposal: who proposes looks the other way round
        if 0 <= self._stop_at <= step:
            if is_sliced and self._stop_at == step and self._await_decision():
                self._pause()
            self._forget()
        elif is_sliced:
            self._mind_quantum(step, step_s)

    @property
    def is_idle(self) -> bool:
        """Is no proposal under way, of which a save point must know although there are no time slices any more?"""
        return self._stop_at < 0 and not self._is_proposed

    def _mind_quantum(self, step: int, step_s: float) -> None:
        if self._world_size == 1:
            if self._is_over():
                self._pause()
            return
        if self._open_store is None:
            return
        if not self._is_answering:
            self._start_answering(self._open_store)
        if not self._is_proposed and self._is_over():
            ahead = max(AHEAD_STEPS_MIN, math.ceil(AHEAD_S / max(step_s, 1e-4)))
            self._is_proposed = True
            self._own_store().compare_set(f"{self._number}/step", "", str(step + ahead))

    def _is_over(self) -> bool:
        lasts_s = max(self._quantum(), quantum_s(self._swap_s, SWAP_BUDGET))
        return time.perf_counter() - self._since_s >= lasts_s and self._passage.gate.turn_wanted()

    def _pause(self) -> None:
        """Swap out, pass the turn on, wait for it, swap in."""
        passage, began_s = self._passage, time.perf_counter()
        passage.settle()
        overflow = self._swap_bytes()
        swaps = overflow > 0 and self._can_swap()
        if overflow > 0:
            self._on_swapped(self._swap.out(overflow) if swaps else 0)
        out_s = time.perf_counter() - began_s
        passage.pass_turn()
        back_s = time.perf_counter()
        if swaps:
            self._swap.back()
        self._since_s = time.perf_counter()
        self._swap_s = out_s + self._since_s - back_s if swaps else 0.0

    def _can_swap(self) -> bool:
        why_not = self._swap.why_not()
        if why_not and why_not != self._refusal:
            log.warning("time slices: nothing is swapped out between turns: %s", why_not)
        self._refusal = why_not
        return not why_not

    def _await_decision(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._decision is not None, timeout=DECISION_S)
            if self._decision is None:  # nobody knows: whoever writes first decides for all
                word = self._own_store().compare_set(f"{self._number}/word", "", "no")
                self._decision = word == b"go"
            return self._decision

    def _forget(self) -> None:
        with self._changed:
            self._number += 1
            self._stop_at, self._decision, self._is_proposed = -1, None, False
            self._changed.notify_all()

    def _own_store(self) -> dist.Store:
        if self._store is None:
            assert self._open_store
            self._store = self._open_store()
        return self._store

    # ------------------------------------------------------------ the answering thread

    def _start_answering(self, open_store: Callable[[], dist.Store]) -> None:
        self._is_answering = True
        threading.Thread(target=self._answer, args=(self._life, open_store), name="restow-turns", daemon=True).start()

    def _answer(self, life: int, open_store: Callable[[], dist.Store]) -> None:
        try:
            store = open_store()
            while life == self._life:
                number = self._number
                store.wait([f"{number}/step"], FOR_EVER)
                self._take_part(store, life, number)
        except dist.DistError as error:
            if life == self._life:  # the store is gone: turns end, the training goes on
                log.warning("time slices: %s", error)

    def _take_part(self, store: dist.Store, life: int, number: int) -> None:
        step = int(store.get(f"{number}/step"))
        with self._changed:
            if life != self._life:
                return
            self._stop_at = step  # the training thread forgets it at its first save point from there on
            can_stop = self._step < step
        if can_stop:
            if store.add(f"{number}/can", 1) == self._world_size:
                store.compare_set(f"{number}/word", "", "go")
        else:
            store.compare_set(f"{number}/word", "", "no")
        store.wait([f"{number}/word"], FOR_EVER)
        goes = store.get(f"{number}/word") == b"go"
        with self._changed:
            if life == self._life and number == self._number:  # the training thread may be past it, and have forgotten it
                self._decision = goes
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._number != number or life != self._life)


def make_swap(table: object) -> Swap:
    """The portable back end; a job whose state cannot be swapped takes its turns without (`why_not` says why)."""
    return StorageSwap(table)  # type: ignore[arg-type]
