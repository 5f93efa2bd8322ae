"""The gates of this node's devices, as the agent keeps them: armed while several jobs are on a device, and watched.

Who holds a device for longer than its lease is alive but stuck (an endless loop, a job that never waits, a process that a person
stopped). It is never simply overtaken: it is stopped first (SIGSTOP) and seen to be, then its grant is void and the next one is let
in; when its turn comes it is continued. A process that somebody else stopped is passed over until it is continued.
Without an agent the gates go on as they are, first come first served.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from restow.agent.workers import Worker
from restow.errors import RestowError
from restow.gate import FREE, INTERLEAVE, ORDINARY, TIME_SLICE, Keeper, Seat, View
from restow.job import Sharing

log = logging.getLogger(__name__)

MODES = {"free": FREE, "interleave": INTERLEAVE, "time-slice": TIME_SLICE}
LEASE_S = 10.0  # a phase of computing takes milliseconds to a few seconds; a step of a big model is cut by its collectives
SLICE_LEASES = 3.0  # a time slice may last so many quanta before somebody steps in
STOPS_S = 1.0  # for a process to be seen stopped after SIGSTOP
DRAIN_S = 1.0  # a GPU may still run what a stopped process gave it: one stretch between two yield points
WATCH_S = 0.05
FencedCallback = Callable[[str, int, int, float, str], None]


class Gates:
    """`on_fenced(job, rank, device, held_s, reason)` is told of each holder that is fenced."""

    def __init__(self, folder: Path, devices: Iterable[int], *, drains: bool, on_fenced: FencedCallback):
        self._folder, self._drains, self._on_fenced = folder, drains, on_fenced
        self._devices = list(devices)
        self._keepers: dict[int, Keeper] = {}
        self._sharing: dict[str, Sharing] = {}  # job → what the controller said
        self._jobs: dict[int, frozenset[str]] = {}  # device → jobs that have processes there
        self._stopped: dict[tuple[int, int], str] = {}  # (device, seat) → who stopped it: "us" or "somebody"

    def open(self) -> None:
        """Make or find every page. Raises SetupError when shared memory is full."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for device in self._devices:
            self._keepers[device] = Keeper(self._folder, device)

    def close(self) -> None:
        for keeper in self._keepers.values():
            keeper.close()

    # ------------------------------------------------------------ who is where, and how they share

    def share(self, job: str, sharing: Sharing, workers: Iterable[Worker]) -> None:
        """The controller said how this job shares its devices. What concerns its turns stands on the ranks' own pages."""
        self._sharing[job] = sharing
        for worker in workers:
            if worker.job == job:
                _write_turns(worker, sharing)
        for device, jobs in self._jobs.items():
            if job in jobs:
                self._set(device)

    def forget(self, job: str) -> None:
        self._sharing.pop(job, None)

    def update(self, workers: Iterable[Worker]) -> None:
        """Processes came or went. A device with one job has a free gate."""
        found: dict[int, set[str]] = {device: set() for device in self._devices}
        for worker in workers:
            if worker.device in found:
                found[worker.device].add(worker.job)
            if worker.job in self._sharing:
                _write_turns(worker, self._sharing[worker.job])
        for device, jobs in found.items():
            if jobs != self._jobs.get(device, frozenset()):
                self._jobs[device] = frozenset(jobs)
                self._set(device)

    def _set(self, device: int) -> None:
        jobs, keeper = self._jobs[device], self._keepers[device]
        said = {job: self._sharing[job] for job in jobs if job in self._sharing}
        modes = {sharing.mode for sharing in said.values()}
        if len(jobs) < 2 or modes == {"free"}:
            mode = FREE
        else:
            mode = TIME_SLICE if "time-slice" in modes else INTERLEAVE
        try:
            for job in jobs:
                keeper.set_level(job, said[job].level if job in said else ORDINARY)
                keeper.set_share(job, said[job].part if job in said and len(jobs) > 1 else 1.0)
            if keeper.look().mode != mode:
                keeper.set_mode(mode, turn=min(jobs) if mode == TIME_SLICE else None)
        except RestowError as error:  # somebody stopped a process inside the page's mutex: tried again at the next look
            log.warning("gate of device %d: %s", device, error)
            self._jobs[device] = frozenset()

    # ------------------------------------------------------------ the watch

    async def watch(self) -> None:
        """For as long as the agent lives."""
        while True:
            for device, keeper in self._keepers.items():
                if len(self._jobs.get(device, ())) > 1 or any(key[0] == device for key in self._stopped):
                    try:
                        await self._look(device, keeper)
                    except RestowError as error:
                        log.warning("gate of device %d: %s", device, error)
            await asyncio.sleep(WATCH_S)

    async def _look(self, device: int, keeper: Keeper) -> None:
        view = keeper.look()
        self._settle_members(device, view)
        for seat in view.seats:
            key = (device, seat.number)
            if seat.holding and not seat.fenced and seat.alive:
                await self._check(device, keeper, view, seat)
            elif seat.fenced and self._stopped.get(key) == "us" and seat.holding:
                if keeper.readmit(seat.number):
                    self._stopped.pop(key, None)
                    _signal(seat.pid, signal.SIGCONT)
            elif seat.fenced and self._stopped.get(key, "us") != "us" and not is_stopped(seat.pid):
                _signal(seat.pid, signal.SIGSTOP)  # a person continued it: it waits for its turn like everybody
                self._stopped[key] = "us"
                keeper.requeue(seat.number)
            elif seat.fenced and key not in self._stopped:  # fenced by an agent before us
                self._stopped[key] = "us"
                keeper.requeue(seat.number)
        alive = {(device, seat.number) for seat in view.seats}
        for key in [key for key in self._stopped if key[0] == device and key not in alive]:
            del self._stopped[key]

    def _settle_members(self, device: int, view: View) -> None:
        for seat in view.seats:
            said = self._sharing.get(seat.job)
            if said and (seat.level != said.level or abs(seat.share - said.part) > 1e-9) and len(self._jobs[device]) > 1:
                self._set(device)
                return

    async def _check(self, device: int, keeper: Keeper, view: View, seat: Seat) -> None:
        """Is this holder stuck while others wait?"""
        others = any(other.waiting for other in view.seats)
        held_s = (time.monotonic_ns() - seat.held_since_ns) / 1e9 if seat.held_since_ns else 0.0
        was_stopped = is_stopped(seat.pid)
        if not others or (held_s < self._lease_s(seat, view) and not (was_stopped and held_s > WATCH_S)):
            return
        if not was_stopped:
            _signal(seat.pid, signal.SIGSTOP)
            until_s = time.monotonic() + STOPS_S
            while not is_stopped(seat.pid) and time.monotonic() < until_s:
                await asyncio.sleep(0.002)
            if not is_stopped(seat.pid):
                _signal(seat.pid, signal.SIGCONT)
                return  # in the kernel, where no signal reaches it; looked at again soon
        if self._drains:
            await asyncio.sleep(DRAIN_S)
        reason = "stopped by somebody" if was_stopped else f"held it for {held_s:.1f} s"
        done = False
        with contextlib.suppress(RestowError):
            done = keeper.revoke(seat.number, reason, queue=not was_stopped)
        if done:
            self._stopped[device, seat.number] = "somebody" if was_stopped else "us"
            self._on_fenced(seat.job, seat.rank, device, held_s, reason)
        elif not was_stopped:
            _signal(seat.pid, signal.SIGCONT)  # it let go by itself meanwhile, or was inside the mutex

    def _lease_s(self, seat: Seat, view: View) -> float:
        said = self._sharing.get(seat.job)
        if view.mode == TIME_SLICE:
            return max(LEASE_S, SLICE_LEASES * (said.quantum_s if said else 0.0))
        return LEASE_S


def _write_turns(worker: Worker, sharing: Sharing) -> None:
    if worker.shared:
        worker.shared.set("quantum_s", sharing.quantum_s)
        worker.shared.set("swap_bytes", sharing.swap_bytes)


def is_stopped(pid: int) -> bool:
    """Is every thread of this process stopped by a signal?"""
    try:
        states = [
            (task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()
        ]
    except OSError:
        return False
    return bool(states) and all(state in "Tt" for state in states)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
