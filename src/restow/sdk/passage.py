"""Where a training process passes its device's gate: it holds the device while it computes and lends it while it waits.

Three waits are known without the user's help: for the next batch, for a collective whose Work is waited for from Python, and
for the collectives that are left when a backward has computed its last gradient (DDP waits for those inside C++). The last
one works so: the autograd engine runs our callback when all gradients are there, which gives the device away; and the last
outstanding collective is not reported as done before the device is ours again.

What follows it, the optimizer's update, is often short. Then it passes without the gate, until the next forward or batch: it
disturbs the holder for a moment, where waiting for the holder's whole phase, or making the holder wait for ours, costs more.

Where the device is a processor core, a best-effort job's class is the kernel's, too (priority.py): a protected job then need not
wait for it at the gate, it goes over its head.

While the gate is free (the job is alone on its device) a collective's own Work is handed out and nothing of this is in the way.
Knows nothing of who else is there; see gate/. Not for two threads that compute at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from restow.gate import BEST_EFFORT, FREE, INTERLEAVE, ORDINARY, PROTECTED, TIME_SLICE, Gate
from restow.sdk.device import Device
from restow.sdk.priority import Priority, is_background

LOADER_WAIT_S_MIN = 0.001  # a fetch that leaves the device idle for less is not worth two hand-overs of 0.1 ms
RECENT = 15  # fetches and updates of which the median is taken
PASSING_PART_MAX = 0.1  # an update that takes at most this part of what its step computes may pass without the gate


class Passage:
    """One process's way through one gate. Its methods are called on the training thread, but `_arrived` (see the module)."""

    def __init__(
        self, gate: Gate, device: Device, modules: Sequence[torch.nn.Module] = (), *,
        is_tight: Callable[[], bool] = lambda: False, priority: Priority | None = None,
    ):  # fmt: skip
        """`modules` get yield points while the job is best effort. `is_tight`: must updates hold the gate, for memory's sake?"""
        self.gate = gate
        self._is_tight = is_tight
        self._priority = priority or Priority()
        self._modules = list(modules)
        self._device = device
        self._lock = threading.Lock()
        self._is_over = False  # computing over the head of a holder that the kernel puts aside for us
        self._outstanding = 0  # collectives that were launched and are not done
        self._is_lent = False  # the device was given away until the last of them is done
        self._is_in_backward = False  # our callback is queued in the engine
        self._has_lent = False  # at least once since the last save point
        self.waited_s = self.held_s = 0.0  # at the gate, and with it, since the process started
        self._since_s = 0.0
        self.fetched_s = 0.0  # what the last batch took
        self._fetches_s: deque[float] = deque(maxlen=RECENT)
        self._updates_s: deque[float] = deque(maxlen=RECENT)
        self._held_of_step_s: deque[float] = deque(maxlen=RECENT)
        self._held_before_s = 0.0  # at the last save point
        self._update_since_s = 0.0  # an update is under way since; 0: none is
        self._hooks: list[Any] = []
        self._watches: list[Any] = []
        self.watch_forward(True)

    @property
    def is_open(self) -> bool:
        """Nobody else is here: nothing needs to be done."""
        return self.gate.is_free and not self.holds and not self._priority.is_background

    @property
    def holds(self) -> bool:
        """Is the device ours, as far as we know?"""
        return self._is_over or self.gate.held

    # ------------------------------------------------------------ the device

    def take(self) -> None:
        self._end_update()
        if self.gate.is_free or self.holds:
            return
        began_s = time.perf_counter()
        self._is_over = self._may_go_over()
        if not self._is_over:
            self.gate.acquire()
        self._since_s = time.perf_counter()
        self.waited_s += self._since_s - began_s

    def _may_go_over(self) -> bool:
        """Is the holder a best-effort job's process that the kernel puts aside as soon as we compute?"""
        gate = self.gate
        if not self._device.is_core or gate.level != PROTECTED or gate.mode != INTERLEAVE or self._is_tight():
            return False
        pid = gate.lesser_holder()
        return pid != 0 and is_background(pid)

    def _give(self) -> None:
        """Release what is held, and count it."""
        if self._is_over:
            self._is_over = False
        else:
            self.gate.release()
        self.held_s += time.perf_counter() - self._since_s

    def lend(self) -> None:
        """Give the device away once it has finished what we gave it to do. In a time slice of ours nobody else is let in, but who
        held it through a wait would still hold it when the slices end, and two gangs could wait for each other."""
        if self.holds:
            self._device.settle()
            self._has_lent = True
            self._give()

    def settle(self) -> None:
        self._device.settle()

    def pass_turn(self) -> None:
        """The end of a time slice, and the wait for the next one."""
        self.held_s += time.perf_counter() - self._since_s
        if self.gate.pass_turn() is None:
            self.gate.release()
        self.take()

    @contextmanager
    def held(self) -> Iterator[None]:
        """The device is ours inside; afterwards it is as it was before."""
        was_held = self.holds
        self.take()
        try:
            yield
        finally:
            if not was_held:
                self.lend()

    def give_way(self) -> None:
        """A yield point of a best-effort job: whoever is of a better class goes first."""
        self._device.bound_run_ahead()
        if self.gate.poll() and self.gate.held:
            self._device.settle()
            self._give()
            self.take()

    # ------------------------------------------------------------ the loop

    def save_point(self) -> None:
        """Between two steps. A job that never waited in this step lets the next one in; others have done so where they wait."""
        self._follow_level()
        self._end_update()
        if self.gate.is_free:  # disarmed while we held it
            self.lend()
        if self.held_s > self._held_before_s:
            self._held_of_step_s.append(self.held_s - self._held_before_s)
            self._held_before_s = self.held_s
        mode = self.gate.mode
        if (mode == INTERLEAVE and not self._has_lent and self.gate.crowded()) or (
            mode == TIME_SLICE and self.gate.held and not self.gate.has_turn()
        ):
            self._device.settle()
            self._give()
            self.take()
        self._has_lent = False

    def fetch(self, batches: Iterator[Any], end: Any) -> Any:
        """The next batch; the device is lent meanwhile if that usually takes long enough."""
        idles = len(self._fetches_s) == RECENT and sorted(self._fetches_s)[RECENT // 2] > LOADER_WAIT_S_MIN
        if idles:
            self.lend()
        began_s, busy_s = time.perf_counter(), time.thread_time()
        batch = next(batches, end)
        self.fetched_s = elapsed_s = time.perf_counter() - began_s
        # where the device is this core, only the time that we really slept is idle
        self._fetches_s.append(elapsed_s - (time.thread_time() - busy_s if self._device.is_core else 0.0))
        self.take()
        return batch

    # ------------------------------------------------------------ collectives

    def carry(self, work: dist.Work) -> dist.Work:
        """A collective was launched: the Work that the script is to get."""
        if self.gate.mode == FREE and not self.holds:  # held from before it was disarmed: lent like any other
            return work
        with self._lock:
            self._outstanding += 1
        if not self._is_in_backward:
            try:
                torch.autograd.Variable._execution_engine.queue_callback(self._backward_is_over)
                self._is_in_backward = True
            except RuntimeError:
                pass  # no backward is under way: whoever launched it waits by itself
        return GatedWork(self, work)

    def _backward_is_over(self) -> None:
        """All gradients are computed. DDP queues its own callback, which waits for the collectives, after ours."""
        self._is_in_backward = False
        with self._lock:  # over the release: who finishes the last collective must find the device given away
            if self._outstanding:
                self._is_lent = True
                self.lend()

    def _arrived(self) -> None:
        """A collective is done; on the communicator's thread. If it was the last one waited for, the device comes first."""
        with self._lock:
            self._outstanding -= 1
            comes_back = self._is_lent and not self._outstanding
            if comes_back:
                self._is_lent = False
        if comes_back:
            if not self._passes():
                self.take()
            self._update_since_s = time.perf_counter()

    # ------------------------------------------------------------ updates

    def _passes(self) -> bool:
        """May the update that begins now do without the gate? A protected job's does not: who is in its gaps must stop."""
        if self.gate.mode != INTERLEAVE or self.gate.level != ORDINARY or len(self._updates_s) < RECENT or self._is_tight():
            return False
        return median(self._updates_s) <= PASSING_PART_MAX * median(self._held_of_step_s)

    def _end_update(self) -> None:
        """At the save point, or where the script computes on before it."""
        since_s, self._update_since_s = self._update_since_s, 0.0
        if since_s:
            elapsed_s = time.perf_counter() - since_s
            self._updates_s.append(elapsed_s)
            if not self.holds:
                self.held_s += elapsed_s  # the device was used all the same

    def watch_forward(self, wanted: bool) -> None:
        """A forward after an update that passed without the gate waits for it; where the gate is free there is none."""
        if wanted and not self._watches:
            self._watches = [module.register_forward_pre_hook(self._before_forward) for module in self._modules]
        elif not wanted and self._watches:
            for watch in self._watches:
                watch.remove()
            self._watches = []

    def _before_forward(self, *_: Any) -> None:
        if self._update_since_s:
            self.take()

    # ------------------------------------------------------------ yield points

    def set_yield_points(self, wanted: bool) -> None:
        """At each leaf module in forward and each parameter's gradient in backward, where a best-effort job may have to wait."""
        if bool(self._hooks) == wanted:
            return
        if not wanted:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []
            return
        for module in self._modules:
            for leaf in module.modules():
                if not any(True for _ in leaf.children()):
                    self._hooks.append(leaf.register_forward_pre_hook(lambda *_: self.give_way()))
            for parameter in module.parameters():
                if parameter.requires_grad:
                    self._hooks.append(parameter.register_post_accumulate_grad_hook(lambda _: self.give_way()))

    def _follow_level(self) -> None:
        is_background = self.gate.level == BEST_EFFORT and self.gate.mode == INTERLEAVE
        self.set_yield_points(is_background)
        if self._device.is_core:
            self._priority.set_background(is_background)

    def close(self) -> None:
        self.set_yield_points(False)
        self.watch_forward(False)
        self._priority.set_background(False)
        self.gate.leave()


class GatedWork(dist.Work):
    """A collective beside which the device is lent, by whoever waits for it."""

    def __init__(self, passage: Passage, work: dist.Work):
        super().__init__()
        self._passage, self._work = passage, work
        self._future = work.get_future().then(self._arrived)

    def _arrived(self, future: torch.futures.Future[Any]) -> Any:
        self._passage._arrived()
        return future.value()  # raises what the collective failed with

    def wait(self, timeout: timedelta | None = None) -> bool:
        passage = self._passage
        if self._future.done() or not passage.holds:
            self._future.wait()
            return True
        passage.lend()
        try:
            self._future.wait()
        finally:
            passage.take()
        return True

    def is_completed(self) -> bool:
        return self._future.done()

    def is_success(self) -> bool:
        return self._future.done() and self._work.is_success()

    def get_future(self) -> torch.futures.Future[Any]:
        return self._future
