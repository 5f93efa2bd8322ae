"""What makes a job outlive its ranks: each keeps what it alone holds where that outlives it, and stands still when another is lost.

At every save point a rank's private state goes into shared memory (slots.py), and what all hold alike is copied there before each
update, while ranks wait for others (copies.py): a rank that is lost in its update leaves private state of the step before it. When
a collective fails, the script does not hear of it at once: the failure waits for the word of the controller. If a rank was lost,
that word is `halt`: this process finishes an update that has begun, changes its state no more, and says which steps it holds. Then
comes `keep`: it writes the state of the step that was chosen into the vault and leaves; the job comes back from there. Without a
word in time the script gets its error, as without us.

Only where collectives fail by themselves when a peer dies: gloo on the CPU.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from restow import stripes, vault
from restow.sdk import group as group_module
from restow.sdk.boxes import StateTable
from restow.sdk.channel import Channel
from restow.sdk.copies import Copies
from restow.sdk.replicas import Replicas
from restow.sdk.vault import write_tensors
from restow.slots import Slots

log = logging.getLogger(__name__)

WORD_S_MAX = 60.0  # a controller that was killed is back by then
UPDATE_S_MAX = 20.0  # of an update that has begun, to the save point after it
TAIL_S = 0.5  # and two steps: the same where a copier has a copy, and so need not hold the step after it


class Sentinel:
    """Of one rank. `job` and `rank` name it in the vault. `step_s()`: seconds of a step."""

    def __init__(
        self, *, job: str, rank: int, slots: str, table: StateTable, channel: Channel, replicas: Replicas,
        step_s: Callable[[], float], leave: Callable[[], NoReturn],
    ):  # fmt: skip
        own = Path(slots)
        self._job, self._rank, self._table, self._channel, self._leave = job, rank, table, channel, leave
        self._replicas = replicas
        self._slots: Slots | None = Slots(own)
        self._changed = threading.Condition()
        self._step = -1  # finished steps, as of the last save point
        self._since = -1  # ... and the earliest save point since which nothing of what all hold alike has changed
        self._versions = 0  # of it, where steps without an update are known to happen
        self._skips_updates = False
        self._privates: dict[int, bytes] = {}  # of the last two save points
        self._step_s = step_s
        self._copies = Copies(table, rank, own.with_suffix(stripes.SUFFIX), lambda of: stripes.files(own.parent, job, of), step_s)
        self._is_updating = False  # from the first update of a step to its save point
        self._is_halted = self._is_over = self._is_let_go = self._is_kept = False

    def join(self, generation: int, nodes: Sequence[str]) -> None:
        """A rank of this generation from now on, where rank r is on `nodes[r]`."""
        self._copies.join(generation, nodes)

    # ------------------------------------------------------------ the training thread

    def at_save_point(self, step: int, capture: Callable[[], bytes]) -> None:
        blob = capture()
        if self._slots:
            try:
                self._slots.write(step, blob)
            except OSError as error:
                self._slots = None
                print(f"restow: rank {self._rank} cannot be replaced if it is lost: {error.strerror}", file=sys.stderr, flush=True)
        self._replicas.put(step, blob)
        with self._changed:
            self._since = self._since if self._is_unchanged(step) else step
            self._privates = {step: blob} | {old: self._privates[old] for old in self._privates if old == step - 1}
            self._step, self._is_updating = step, False
            self._changed.notify_all()
            self._stand_still()

    def _is_unchanged(self, step: int) -> bool:
        """Is what all ranks hold alike as it was at the save point before? (Gradients are added up over several steps.)"""
        if self._is_updating or self._step < 0 or step != self._step + 1:
            self._versions = self._table.version() if self._skips_updates else -1
            return False
        self._skips_updates, before = True, self._versions
        self._versions = self._table.version()
        return self._versions == before

    def _held(self) -> set[int]:
        """Steps whose state the live tensors are."""
        if self._is_updating or self._is_over:
            return set()
        return {step for step in self._privates if self._since <= step} | {self._step}

    def before_update(self) -> None:
        """An optimizer is about to run: from here to the save point, what is held is of no step."""
        with self._changed:
            self._stand_still()
            if self._is_updating:
                return
        if self._step >= 0:
            self._copies.finish(self._step, lambda: self._is_halted)
        with self._changed:
            self._stand_still()
            self._is_updating = True

    def end_loop(self) -> None:
        """No save point comes any more."""
        with self._changed:
            self._is_over = True

    def _stand_still(self) -> None:
        while self._is_halted:
            self._changed.wait()

    # ------------------------------------------------------------ collectives

    def carry(self, start: Callable[[], dist.Work], operation: str) -> dist.Work:
        """The Work that the script is to get for what `start` launches."""
        if operation != "broadcast" and self._step >= 0 and not self._is_updating:
            self._copies.begin(self._step)  # not yet at DDP's broadcast of buffers, before a step
        return WatchedWork(self, start())

    def failed(self, error: Exception) -> NoReturn:
        """A collective failed. Raises `error` unless there is a word that a rank was lost; then it does not return."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_halted or self._is_let_go, 0.0 if self._is_over else WORD_S_MAX)
            self._stand_still()
        raise error

    # ------------------------------------------------------------ the agent's words, each on a thread of its own

    def halt(self) -> None:
        with self._changed:
            self._is_halted = True
            has_copy = self._step in self._copies.whole()[1] or not self._copies.is_made
            tail_s = min(UPDATE_S_MAX, TAIL_S + 2 * self._step_s()) if has_copy else UPDATE_S_MAX
            self._changed.wait_for(lambda: not self._is_updating, tail_s)  # a script may do much between update and save point
            stripe, copied = self._copies.whole()
            word = {
                "step": self._step, "holds": sorted(self._held()), "privates": sorted(self._privates),
                "stripe": list(stripe), "copied": sorted(copied),
            }  # fmt: skip
        self._channel.tell(type="halted", **word)

    def keep(self, message: dict[str, Any]) -> None:
        """Write what is asked for and leave. What cannot be written is told, and the job ends. May be asked again meanwhile."""
        with self._changed:
            if self._is_kept:
                return
            self._is_kept = True
        folder, step = Path(message["vault"]), int(message["step"])
        about: dict[str, Any] = {"job": self._job, "generation": int(message["generation"]), "step": step}
        try:
            written = vault.write_blob(folder, vault.of_rank(self._rank), self._privates[step], **about)
            if message["replica"]:
                written += write_tensors(folder, vault.REPLICA, self._table.tensors(), **about)
            said = {"generation": about["generation"], "step": step, "bytes": written, "pause_s": 0.0}
            (folder / f"{vault.of_rank(self._rank)}.left").write_text(json.dumps(said))
        except (OSError, KeyError) as error:
            reason = f"its state could not be kept: {getattr(error, 'strerror', None) or error}"
            self._channel.tell(type="failed", generation=about["generation"], reason=reason)
            return
        self._channel.tell(type="kept", **said)
        self._leave()

    def let_go(self) -> None:
        """The job ends: whoever waits for a word hears its error."""
        with self._changed:
            self._is_let_go = True
            self._changed.notify_all()


class WatchedWork(dist.Work):
    """A collective whose failure is first told to the sentinel."""

    def __init__(self, sentinel: Sentinel, work: dist.Work):
        super().__init__()
        self._sentinel, self._inner = sentinel, work
        self._future: torch.futures.Future[Any] | None = None

    def wait(self, timeout: timedelta | None = None) -> bool:
        began_s = time.perf_counter()
        try:
            return self._inner.wait(timeout) if timeout is not None else self._inner.wait()
        except RuntimeError as error:  # what gloo raises; time-outs are subclasses of it
            self._sentinel.failed(error)
        finally:
            group_module.waited_s += time.perf_counter() - began_s

    def is_completed(self) -> bool:
        return self._inner.is_completed()

    def is_success(self) -> bool:
        return self._inner.is_success()

    def get_future(self) -> torch.futures.Future[Any]:
        if self._future is None:
            self._future = self._inner.get_future().then(self._passed)
        return self._future

    def _passed(self, future: torch.futures.Future[Any]) -> Any:
        try:
            return future.value()
        except RuntimeError as error:
            self._sentinel.failed(error)
