"""The agent's end of the gate: it makes the page, says how it is used, looks on, and fences who does not let go.

Not a member: it never holds the gate, and the members go on without it. Its own life is a record lock too, since a fenced
process is let in only while somebody is there to continue it. Does not stop or continue processes; its caller does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from restow.errors import Refused, Unreachable
from restow.gate import file as files
from restow.gate import native
from restow.gate.file import KEEPER, GateFile
from restow.gate.order import MutexBusy, Order, PageLost, following
from restow.gate.record import (
    BEST_EFFORT,
    FREE,
    INTERLEAVE,
    MOVED,
    NO_SEAT,
    PROTECTED,
    SEATS,
    TIME_SLICE,
    job_key,
    job_name,
)

Answer = TypeVar("Answer")

_MUTEX_S = 0.25  # held for microseconds; who has it longer was stopped inside


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One member as the page shows it. Times are those of `time.monotonic_ns`."""

    number: int
    job: str
    rank: int
    pid: int
    alive: bool  # False only for a dead holder that nobody has buried yet
    level: int  # 0 protected, 1 ordinary, 2 best effort
    waiting: bool
    waiting_since_ns: int  # 0: does not wait
    holding: bool
    held_since_ns: int  # 0: does not hold
    held_ns_total: int  # all holds, the present one too
    waited_ns_total: int  # until it was let in, without the present wait
    grants: int
    share: float  # 1: stays away from nothing
    fenced: str  # why its grant was made void; empty: it was not


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The gate at one moment, taken without the mutex: words may be some microseconds apart."""

    number: int  # of the page; when it has changed, classes and shares are to be said again: the old page may have lost them
    mode: int  # 0 free, 1 interleave, 2 time slice
    owner: int | None  # the seat that holds the gate
    turn: str | None  # the job whose turn it is; means something in time slices only
    seats: tuple[Seat, ...]

    def seat(self, number: int | None) -> Seat | None:
        return next((seat for seat in self.seats if seat.number == number), None)


class Keeper:
    """The agent's hold on the gate of one device. A page that it has to make is disarmed.

    Every change takes the page's mutex. If that is not to be had in 0.25 s, because somebody stopped a process while it
    was inside, Unreachable is raised and names the process: it must be continued or killed, members wait for that too.
    """

    def __init__(self, folder: Path, device: int):
        """Open the newest page, or make page 1. Raises SetupError when shared memory is full."""
        self.folder, self.device = folder, device
        self._file: GateFile | None = None
        self._watches = False
        self._open(FREE)
        files.add_member(self)

    def set_mode(self, mode: int, *, turn: str | None = None) -> None:
        """FREE, INTERLEAVE or TIME_SLICE, from now on. Who waits is let go (FREE) or in.

        `turn` names the job that begins when time slices begin, the same on all devices of a gang; without it that is the first
        of the seated ones in the order of ids. Said when every member is seated everywhere, or devices begin with different jobs.
        """
        if not FREE <= mode <= TIME_SLICE:
            raise ValueError(f"mode is {mode}; it is 0 (free), 1 (interleave) or 2 (time slice)")
        self._inside(self._set_mode, mode, turn)

    def set_level(self, job: str, level: int) -> int:
        """The class of all seats that this job has now; their number."""
        if not PROTECTED <= level <= BEST_EFFORT:
            raise ValueError(f"level is {level}; it is 0 (protected), 1 (ordinary) or 2 (best effort)")
        return self._inside(self._set_level, job_key(job), level)

    def set_share(self, job: str, share: float) -> int:
        """How much of its time each of the job's seats may hold the device, 0 to 1: after a hold of h seconds it stays away for
        h x (1/share - 1), its last hold included; with 0 until there is another share. The number of its seats."""
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; it is between 0 and 1")
        return self._inside(self._set_share, job_key(job), float(share))

    def look(self) -> View:
        """What stands there now. Takes no mutex, except to let a fenced process in that nobody else would see the turn of."""
        file = self._newest()
        self._watch()
        record = file.record
        if self._proxy_is_forgotten():
            with contextlib.suppress(Unreachable):
                self._inside(self._order.mend)
        owner, now_ns = record.owner[0], time.monotonic_ns()
        seats = []
        for number in range(SEATS):
            alive = file.is_alive(number)
            if not record.taken[number] or not (alive or owner == number):
                continue
            holding, since_ns = owner == number, record.since_ns[number]
            waiting = not holding and record.ticket[number] != 0
            seats.append(
                Seat(
                    number=number,
                    job=job_name(record.job(number)),
                    rank=record.rank[number],
                    pid=record.pid[number],
                    alive=alive,
                    level=record.level[number],
                    waiting=waiting,
                    waiting_since_ns=record.waiting_since_ns[number] if waiting else 0,
                    holding=holding,
                    held_since_ns=since_ns if holding else 0,
                    held_ns_total=record.held_ns[number] + (max(0, now_ns - since_ns) if holding and since_ns else 0),
                    waited_ns_total=record.waited_ns[number],
                    grants=record.grants[number],
                    share=record.share[number],
                    fenced=(record.reason(number) or "fenced") if record.fenced[number] else "",
                )
            )
        turn = record.turn_job()
        return View(
            number=file.number,
            mode=record.mode[0] & ~MOVED,
            owner=owner if 0 <= owner < SEATS else None,
            turn=job_name(turn) if turn else None,
            seats=tuple(seats),
        )

    def revoke(self, seat: int, reason: str = "", *, queue: bool = True) -> bool:
        """Make void the grant of a holder that lives and does not let go; False if that seat does not hold the gate.

        The caller has stopped its process first (SIGSTOP) and seen that it *is* stopped: else two would compute. The seat is
        fenced and queues again by proxy, the next one is let in. When its turn comes, `look` shows it as owner and
        fenced still: then `readmit`, then continue it (SIGCONT). With `queue=False` it is passed over until `requeue`: for a
        process that a person stopped. In time slices the turn of its job on this device is over as well. `reason` is for
        people to read, 32 bytes.

        If Unreachable names this very process, it was stopped inside the mutex, in the middle of letting go perhaps: continue
        it, and see again later. Raises Refused if another process keeps this gate.
        """
        return self._inside(self._revoke, seat, reason, queue)

    def inside(self) -> int:
        """The process that is inside the page's mutex at this moment; 0: none. Takes no mutex."""
        return native.process_of(native.mutex_owner(self._newest().record.mutex_address))

    def pass_on(self, job: str) -> bool:
        """In a time slice: the turn of this job, none of whose members holds the device or waits for it, is the next one's who
        waits. False if that is not so (any more)."""
        return self._inside(self._pass_on, job_key(job))

    def requeue(self, seat: int) -> bool:
        """A fenced seat that was passed over waits by proxy from now on. False if it is not fenced, holds or waits already."""
        return self._inside(self._requeue, seat)

    def readmit(self, seat: int) -> bool:
        """Take the fence from a seat whose turn has come, before its process is continued. False if it is not fenced or does
        not hold the gate (yet): then the process must stay stopped."""
        return self._inside(self._readmit, seat)

    def close(self) -> None:
        """Let go of the page; the members go on, fenced ones are passed over."""
        file, self._file = self._file, None
        if file:
            if self._watches:
                file.give_back(KEEPER)
            self._watches = False
            files.detach(file)

    def remove(self) -> None:
        """Close, and remove all pages of this device. Raises Refused while a living member is seated."""
        self._inside(self._condemn)
        folder, device = self.folder, self.device
        files.remove_all(folder, device)
        self.close()

    def become_nobody(self) -> None:
        """In a forked child: closed, without touching the page."""
        self._file, self._watches = None, False

    # ---- the page

    def _proxy_is_forgotten(self) -> bool:
        """Whether a fenced seat waits and nobody living holds the gate: stopped as it is, it does not look by itself."""
        assert self._file
        record, owner = self._file.record, self._file.record.owner[0]
        waits = any(fenced and record.ticket[seat] for seat, fenced in enumerate(record.fenced.tolist()))
        return waits and self._watches and (owner == NO_SEAT or not self._file.is_alive(owner))

    def _open(self, mode: int) -> None:
        self._file = files.attach_newest(self.folder, self.device, mode=mode)
        self._order = Order(self._file)
        self._watch()

    def _watch(self) -> None:
        if self._file and not self._watches:
            self._watches = self._file.take(KEEPER)

    def _newest(self) -> GateFile:
        """Our page, after following everybody to a newer one."""
        file = self._file
        if file is None:
            raise Refused(f"the keeper of the gate of device {self.device} was closed")
        if not file.record.makes_sense():
            self._move()
        assert self._file
        return self._file

    def _move(self) -> None:
        self._order.abandon()
        self.close()
        self._open(INTERLEAVE)

    def _inside(self, do: Callable[..., Answer], *arguments: object) -> Answer:
        while True:
            self._newest()
            try:
                return self._order.inside(do, *arguments, until_s=time.monotonic() + _MUTEX_S)
            except PageLost:
                self._move()
            except MutexBusy as busy:
                raise Unreachable(
                    f"gate of device {self.device}: process {busy.pid} was stopped inside its mutex; continue it "
                    f"(kill -CONT {busy.pid}) or kill it"
                ) from None

    # ---- under the mutex

    def _set_mode(self, mode: int, turn: str | None) -> None:
        order, record = self._order, self._order.record
        if mode == TIME_SLICE and record.mode[0] != TIME_SLICE and (turn is not None or order.seated_jobs()):
            record.set_turn_job(order.seated_jobs()[0] if turn is None else job_key(turn))
        record.mode[0] = mode
        for seat in range(SEATS):
            if record.taken[seat]:
                order.news(seat)
        order.mend()

    def _seats_of(self, job: bytes) -> list[int]:
        record = self._order.record
        return [seat for seat in range(SEATS) if record.taken[seat] and record.job(seat) == job]

    def _set_level(self, job: bytes, level: int) -> int:
        seats = self._seats_of(job)
        for seat in seats:
            self._order.record.level[seat] = level
        self._order.tell()
        return len(seats)

    def _set_share(self, job: bytes, share: float) -> int:
        seats = self._seats_of(job)
        for seat in seats:
            self._order.record.share[seat] = share
            self._order.news(seat)
        return len(seats)

    def _revoke(self, seat: int, reason: str, queue: bool) -> bool:
        order, record = self._order, self._order.record
        self._watch()
        if not self._watches:
            raise Refused(
                f"the gate of device {self.device} is kept by another process; only one can fence its members"
            )
        if record.owner[0] != seat:
            return False
        record.set_reason(seat, reason)
        record.fenced[seat] = 1
        order.end_hold(seat)
        if queue:
            order.queue(seat)
        if record.mode[0] == TIME_SLICE and record.turn_job() == record.job(seat) and (jobs := order.seated_jobs()):
            record.set_turn_job(following(record.job(seat), jobs))
        order.hand_on()
        return True

    def _pass_on(self, job: bytes) -> bool:
        order, record = self._order, self._order.record
        if record.mode[0] != TIME_SLICE or record.turn_job() != job or record.owner[0] != NO_SEAT:
            return False
        waiting = {record.job(seat) for seat in range(SEATS) if record.taken[seat] and record.ticket[seat]}
        jobs = [other for other in order.seated_jobs() if other in waiting]
        if job in waiting or not jobs:
            return False
        record.set_turn_job(following(job, jobs))
        order.hand_on()
        return True

    def _requeue(self, seat: int) -> bool:
        order, record = self._order, self._order.record
        if not record.fenced[seat] or record.owner[0] == seat or record.ticket[seat]:
            return False
        order.queue(seat)
        order.mend()
        return True

    def _readmit(self, seat: int) -> bool:
        record = self._order.record
        if record.owner[0] != seat or not record.fenced[seat]:
            return False
        record.since_ns[seat] = time.monotonic_ns()  # the lease begins now
        record.fenced[seat] = 0
        return True

    def _condemn(self) -> None:
        order, record = self._order, self._order.record
        members = [seat for seat in range(SEATS) if record.taken[seat] and order.file.is_alive(seat)]
        if members:
            jobs = sorted({job_name(record.job(seat)) for seat in members})
            raise Refused(f"the gate of device {self.device} is in use by {', '.join(jobs)}; stop them first")
        record.mode[0] |= MOVED
        record.best[0] = -1
