"""The gates of this node's devices, as the agent keeps them: armed while several ranks, of whatever jobs, are on a device, and
watched.

Who holds a device for longer than its lease is alive but stuck (an endless loop, a job that never waits, a process that a person
stopped). It is never simply overtaken: it is stopped first (SIGSTOP) and seen to be, then its grant is void and the next one is let
in; when its turn comes it is continued. A process that somebody else stopped is passed over until it is continued. In time slices
the others of its gang, on other devices, then wait for it within a step, and their turn is given on, too: else each of two gangs
could have the turn on one device, and wait for the other.
Without an agent the gates go on as they are, first come first served.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from restow.agent.workers import Worker
from restow.errors import RestowError, SetupError
from restow.gate import FREE, INTERLEAVE, TIME_SLICE, Keeper, Seat, View
from restow.job import Sharing

log = logging.getLogger(__name__)

MODES = {"free": FREE, "interleave": INTERLEAVE, "time-slice": TIME_SLICE}
LEASE_S = 10.0  # a phase of computing takes milliseconds to a few seconds; a step of a big model is cut by its collectives
SLICE_LEASES = 3.0  # a time slice may last so many quanta before somebody steps in
STOPS_S = 1.0  # for a process to be seen stopped after SIGSTOP
DRAIN_S = 1.0  # a GPU may still run what a stopped process gave it: one stretch between two yield points
WATCH_S = 0.05
QUIET_S = 0.25  # while no device is shared: the cores may be those that jobs compute on
OUT_S = 0.05  # for a process to leave the page's mutex
IDLE_S = 0.5  # in a time slice: a turn that nobody uses while a rank of that gang is stopped is over
US, SOMEBODY = "us", "somebody"  # who stopped a process
BY_SOMEBODY = "stopped by somebody"  # why a seat is fenced, as it stands on the page
FencedCallback = Callable[[str, int, int, float, str], None]
GivenOnCallback = Callable[[str, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Idle:
    """A turn of a time slice that nobody uses, since when, and until when that may be."""

    job: str
    grants: int
    since_s: float
    until_s: float


class Gates:
    """`on_fenced(job, rank, device, held_s, reason)` is told of each holder that is fenced, `on_given_on(job, device, reason)` of
    each turn that was not used."""

    def __init__(
        self, folder: Path, devices: Iterable[int], *, drains: bool, on_fenced: FencedCallback,
        on_given_on: GivenOnCallback, lease_s: float = LEASE_S,
    ):  # fmt: skip
        self._folder, self._drains, self._on_fenced, self._lease_s = folder, drains, on_fenced, lease_s
        self._on_given_on = on_given_on
        self._devices = list(devices)
        self._keepers: dict[int, Keeper] = {}
        self._sharing: dict[str, Sharing] = {}  # job → what the controller said
        self._ranks: dict[int, frozenset[tuple[str, int]]] = {}  # device → (job, rank) of the processes there
        self._stopped: dict[tuple[int, int], str] = {}  # (device, seat) of fenced ones → who stopped it
        self._idle: dict[int, _Idle] = {}  # device → whose turn nobody uses
        self._unsaid: set[int] = set()  # devices whose gate could not be told
        self._complaints: dict[int, str] = {}  # device → what was logged last

    def open(self) -> None:
        """Make or find every page, and who was fenced by an agent before us. Raises SetupError when shared memory is full."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise SetupError(f"folder {self._folder} cannot be made: {error.strerror}; set RESTOW_SHM to one that can") from None
        for device in self._devices:
            keeper = self._keepers[device] = Keeper(self._folder, device)
            self._adopt_fenced(device, keeper.look())
        for mark in self._folder.glob("stopping.*"):  # an agent before us was killed before it could say why it had stopped it
            _signal(int(mark.suffix[1:]), signal.SIGCONT)
            mark.unlink()

    def close(self) -> None:
        for keeper in self._keepers.values():
            keeper.close()

    # ------------------------------------------------------------ who is where, and how they share

    def share(self, job: str, sharing: Sharing, workers: Iterable[Worker]) -> None:
        """The controller said how this job shares its devices. What concerns its turns stands on the ranks' own pages."""
        self._sharing[job] = sharing
        for worker in workers:
            if worker.job == job:
                _tell(worker, sharing)
        for device in self._ranks:
            if job in self._jobs_on(device):
                self._set(device)

    def forget(self, job: str) -> None:
        self._sharing.pop(job, None)

    def update(self, workers: Iterable[Worker]) -> None:
        """Processes came or went. A device with one rank has a free gate."""
        found: dict[int, set[tuple[str, int]]] = {device: set() for device in self._devices}
        for worker in workers:
            if worker.device in found:
                found[worker.device].add((worker.job, worker.rank))
            if worker.job in self._sharing:
                _tell(worker, self._sharing[worker.job])
        for device, ranks in found.items():
            if ranks != self._ranks.get(device, frozenset()):
                self._ranks[device] = frozenset(ranks)
                self._set(device)

    def _jobs_on(self, device: int) -> frozenset[str]:
        return frozenset(job for job, _ in self._ranks.get(device, ()))

    def _is_shared(self, device: int) -> bool:
        return len(self._ranks.get(device, ())) > 1

    def _set(self, device: int) -> None:
        """Who has not been said to share in some way keeps its class: an agent that is new has not heard it yet."""
        jobs, keeper = self._jobs_on(device), self._keepers[device]
        said = {job: self._sharing[job] for job in jobs if job in self._sharing}
        try:
            for job, sharing in said.items():
                keeper.set_level(job, sharing.level)
                keeper.set_share(job, sharing.part if len(jobs) > 1 else 1.0)
            before = keeper.look().mode
            mode = self._mode(device, before)
            if mode != before:
                keeper.set_mode(mode, turn=min(jobs) if mode == TIME_SLICE else None)
            self._unsaid.discard(device)
        except RestowError as error:  # somebody stopped a process inside the page's mutex: tried again at the next look
            self._unsaid.add(device)
            self._complain(device, error)

    def _mode(self, device: int, before: int) -> int:
        """What the gate of this device is to do. It is not free before everybody whom we stopped has had its turn and goes on."""
        jobs = self._jobs_on(device)
        modes = {MODES[self._sharing[job].mode] for job in jobs if job in self._sharing}
        if self._is_shared(device) and len(jobs) == 1:
            return INTERLEAVE  # ranks of one job, whatever it last shared with others
        if not self._is_shared(device) or modes == {FREE}:
            return INTERLEAVE if US in [who for (place, _), who in self._stopped.items() if place == device] else FREE
        if not modes:
            return before or INTERLEAVE
        return TIME_SLICE if TIME_SLICE in modes else INTERLEAVE

    def _complain(self, device: int, error: RestowError) -> None:
        """Once, although it is tried again all the time."""
        if self._complaints.get(device) != str(error):
            log.warning("gate of device %d: %s", device, error)
        self._complaints[device] = str(error)

    # ------------------------------------------------------------ the watch

    async def watch(self) -> None:
        """For as long as the agent lives."""
        while True:
            busy = [device for device in self._keepers if self._is_busy(device)]
            for device in busy:
                try:
                    await self._look(device, self._keepers[device])
                except RestowError as error:
                    self._complain(device, error)
            await asyncio.sleep(WATCH_S if busy else QUIET_S)

    def _is_busy(self, device: int) -> bool:
        """Has its gate anything to watch over?"""
        return self._is_shared(device) or device in self._unsaid or any(key[0] == device for key in self._stopped)

    async def _look(self, device: int, keeper: Keeper) -> None:
        inside = keeper.inside()
        if inside and is_stopped(inside):
            await self._let_out(keeper, inside)
        view = keeper.look()
        self._adopt_fenced(device, view)
        self._settle_members(device, view)
        for seat in view.seats:
            key = (device, seat.number)
            if seat.holding and not seat.fenced and seat.alive:
                await self._check(device, keeper, view, seat)
            elif seat.fenced and seat.holding and self._stopped.get(key) == US:
                if keeper.readmit(seat.number):
                    del self._stopped[key]
                    _signal(seat.pid, signal.SIGCONT)
            elif seat.fenced and not is_stopped(seat.pid):
                await self._stop_again(device, keeper, seat)
            elif seat.fenced and self._stopped.get(key) == US:
                keeper.requeue(seat.number)
        view = keeper.look()
        fenced = {(device, seat.number) for seat in view.seats if seat.fenced}
        for key in [key for key in self._stopped if key[0] == device and key not in fenced]:
            del self._stopped[key]
        self._settle_members(device, view)
        self._mind_turn(device, keeper, view)

    async def _let_out(self, keeper: Keeper, pid: int) -> None:
        """A process that a person stopped inside the page's mutex, where everybody would wait for it, runs on until it has left it,
        some microseconds, and is stopped again: whoever continues it in these has to say so once more."""
        _signal(pid, signal.SIGCONT)
        until_s = time.monotonic() + OUT_S
        while keeper.inside() == pid and time.monotonic() < until_s:
            await asyncio.sleep(0)
        _signal(pid, signal.SIGSTOP)

    def _mind_turn(self, device: int, keeper: Keeper, view: View) -> None:
        """Does the job whose turn it is let it pass, while another waits? It may for a while, since its next batch may take long;
        not always for the same one, since turns that are crossed on two devices must not both be given on at the same moment."""
        turn = view.turn or ""
        may_use = view.owner is not None or any(seat.waiting for seat in view.seats if seat.job == turn)
        waits = any(seat.waiting and seat.alive for seat in view.seats if seat.job != turn)
        if view.mode != TIME_SLICE or may_use or not waits or self._needs_memory(device):
            self._idle.pop(device, None)
            return
        now_s, idle = time.monotonic(), self._idle.get(device)
        grants = sum(seat.grants for seat in view.seats if seat.job == turn)  # it may have used it between two looks
        if idle is None or (idle.job, idle.grants) != (turn, grants):
            until_s = now_s + self._lease_s * random.uniform(1.0, 2.0)
            idle = self._idle[device] = _Idle(job=turn, grants=grants, since_s=now_s, until_s=until_s)
        held_up = self._held_up(turn)
        if now_s >= (min(idle.until_s, idle.since_s + IDLE_S) if held_up else idle.until_s):
            del self._idle[device]
            if keeper.pass_on(turn):
                self._on_given_on(turn, device, held_up or f"nobody computed for {now_s - idle.since_s:.0f} s")

    def _needs_memory(self, device: int) -> bool:
        """Do jobs here swap out for each other? Who is stopped within a step cannot."""
        return any(self._sharing[job].swap_bytes > 0 for job in self._jobs_on(device) if job in self._sharing)

    def _held_up(self, job: str) -> str:
        """Which rank of it is fenced, or stopped, on some device of this node; empty: none."""
        seats = (seat for keeper in self._keepers.values() for seat in keeper.look().seats)
        ranks = [seat.rank for seat in seats if seat.job == job and (seat.fenced or is_stopped(seat.pid))]
        return f"rank {min(ranks)} is stopped" if ranks else ""

    async def _stop_again(self, device: int, keeper: Keeper, seat: Seat) -> None:
        """A person continued it before its turn: it waits like everybody, unless it does so by itself already."""
        if not await self._stop(seat.pid):
            return
        now = keeper.look().seat(seat.number)
        if now and now.pid == seat.pid and now.fenced:
            self._stopped[device, seat.number] = US
            keeper.requeue(seat.number)
        else:
            _signal(seat.pid, signal.SIGCONT)
        self._is_said(seat.pid)

    async def _stop(self, pid: int) -> bool:
        """Stop a process and see that it is; else it goes on. `_is_said` follows, once the page says what becomes of it."""
        with contextlib.suppress(OSError):  # a full disk: then only a killed agent would be missed
            self._mark(pid).touch()
        _signal(pid, signal.SIGSTOP)
        until_s = time.monotonic() + STOPS_S
        while not is_stopped(pid) and time.monotonic() < until_s:
            await asyncio.sleep(0.002)
        if is_stopped(pid):
            return True
        _signal(pid, signal.SIGCONT)
        self._is_said(pid)
        return False

    def _is_said(self, pid: int) -> None:
        self._mark(pid).unlink(missing_ok=True)

    def _mark(self, pid: int) -> Path:
        return self._folder / f"stopping.{pid}"

    def _adopt_fenced(self, device: int, view: View) -> None:
        """Whoever was fenced by an agent before us. Who was stopped by a person stays so until a person continues it."""
        for seat in view.seats:
            if seat.fenced and (device, seat.number) not in self._stopped:
                self._stopped[device, seat.number] = SOMEBODY if seat.fenced == BY_SOMEBODY else US

    def _settle_members(self, device: int, view: View) -> None:
        """Members that came later, and a page that had to be made anew, have not heard what was said."""
        is_shared = len(self._jobs_on(device)) > 1
        for seat in view.seats:
            said = self._sharing.get(seat.job)
            if is_shared and said and (seat.level != said.level or abs(seat.share - said.part) > 1e-9):
                self._unsaid.add(device)
        if view.mode != self._mode(device, view.mode) or device in self._unsaid:
            self._set(device)

    async def _check(self, device: int, keeper: Keeper, view: View, seat: Seat) -> None:
        """Is this holder stuck while others wait?"""
        others = any(other.waiting for other in view.seats)
        held_s = (time.monotonic_ns() - seat.held_since_ns) / 1e9 if seat.held_since_ns else 0.0
        was_stopped = is_stopped(seat.pid)
        if not others or (held_s < self._lease_of(seat, view) and not (was_stopped and held_s > WATCH_S)):
            return
        if not was_stopped and not await self._stop(seat.pid):
            return  # in the kernel, where no signal reaches it; looked at again soon
        if self._drains:
            await asyncio.sleep(DRAIN_S)
        reason = BY_SOMEBODY if was_stopped else f"held it for {held_s:.1f} s"
        done = False
        with contextlib.suppress(RestowError):
            done = keeper.revoke(seat.number, reason, queue=not was_stopped)
        if done:
            self._stopped[device, seat.number] = SOMEBODY if was_stopped else US
            self._on_fenced(seat.job, seat.rank, device, held_s, reason)
        elif not was_stopped:
            _signal(seat.pid, signal.SIGCONT)  # it let go by itself meanwhile, or was inside the mutex
        self._is_said(seat.pid)

    def _lease_of(self, seat: Seat, view: View) -> float:
        said = self._sharing.get(seat.job)
        if view.mode == TIME_SLICE:
            return max(self._lease_s, SLICE_LEASES * (said.quantum_s if said else 0.0))
        return self._lease_s


def _tell(worker: Worker, sharing: Sharing) -> None:
    if worker.shared:
        worker.shared.set("quantum_s", sharing.quantum_s)
        worker.shared.set("swap_bytes", sharing.swap_bytes)
        worker.shared.set("is_tight", int(sharing.is_tight))


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
