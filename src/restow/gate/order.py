"""The order: who is next, and how the page is put right again. All of it happens under the page's mutex.

Nothing is linked: whoever is next is found by looking at all seats. Stores are so ordered that a process may be killed, or
thrown out by a signal handler's exception, after any of them, and what it leaves can be gone on with:

    grant       the owner word first, then the ticket is cleared: the ticket of an owner counts for nothing
    release     the account first, then the owner word; if nobody is let in after that, waiters who look find no owner
    queue       `best` last; a waiter whom it does not count finds that out when it looks

Waiters look every 20 ms (gate.py) and call `mend`, which makes everything derived anew from the owner word and the seats.
Does not know whose seat it works for, and does not wait except for the mutex.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from restow.errors import SetupError
from restow.gate import file as files
from restow.gate import native
from restow.gate.file import KEEPER, GateFile
from restow.gate.record import FREE, INTERLEAVE, MOVED, NO_SEAT, NOBODY, SEATS, TIME_SLICE, job_name

LOOK_S = 0.02  # how often a waiter looks whether the owner lives: a dead one is found well within 50 ms
_GRACE_S = 1.0  # a thread that waits this long for a mutex of its own has locked it itself; one of nobody is broken

Answer = TypeVar("Answer")


class PageLost(Exception):
    """This page makes no sense or was left: go to the newest."""


class MutexBusy(Exception):
    """The mutex was not to be had in time: some process was stopped while it held it (`pid`, 0 if unknown)."""

    def __init__(self, pid: int):
        super().__init__(f"process {pid} was stopped inside the gate")
        self.pid = pid


class Order:
    """The order of one page, as this process works on it."""

    __slots__ = ("file", "record")

    def __init__(self, file: GateFile):
        self.file = file
        self.record = file.record

    # ---- the mutex

    def inside(self, do: Callable[..., Answer], *arguments: object, until_s: float | None = None) -> Answer:
        """What `do(*arguments)` gives, done under the mutex.

        Raises PageLost, and MutexBusy when it was not to be had until then (`time.monotonic`). Whatever is raised inside, by
        a signal handler even, the mutex is unlocked.
        """
        record = self.record
        try:
            trouble = self._lock(until_s)
            if trouble is None:
                answer = do(*arguments)
                native.unlock(record.mutex)
        except BaseException:
            native.unlock(record.mutex)  # who has not locked a robust mutex is refused, so this is safe either way
            raise
        if trouble is not None:
            raise trouble
        return answer

    def recover(self) -> None:
        """Go on after `trylock` gave EOWNERDEAD: the mutex is ours, its last owner was killed inside; unlocks it."""
        try:
            native.make_consistent(self.record.mutex)
            self.mend()
        finally:
            native.unlock(self.record.mutex)

    def _lock(self, until_s: float | None) -> Exception | None:
        """None: locked, and the page makes sense. Else not locked, and why."""
        mutex = self.record.mutex
        if not self.record.makes_sense():
            return PageLost()
        code = native.trylock(mutex)
        if code in (native.EBUSY, native.EDEADLK):
            code, trouble = self._wait_for_mutex(until_s)
            if trouble is not None:
                return trouble
        if code == native.EOWNERDEAD:
            native.make_consistent(mutex)
        elif code:
            return PageLost()
        if not self.record.makes_sense():
            native.unlock(mutex)
            return PageLost()
        if code:
            self.mend()
        return None

    def _wait_for_mutex(self, until_s: float | None) -> tuple[int, Exception | None]:
        begin_s, orphan = time.monotonic(), 0
        while True:
            now_s = time.monotonic()
            code = native.lock_within(
                self.record.mutex, LOOK_S if until_s is None else min(LOOK_S, max(0.0, until_s - now_s))
            )
            if code == native.EDEADLK:
                # this thread's own? or of one with the same id in another PID namespace, which then will soon be done
                if now_s - begin_s > _GRACE_S:
                    return code, AssertionError("a signal handler uses the gate while it interrupts a use of the gate")
                time.sleep(0.001)
                continue
            if code != native.ETIMEDOUT:
                return code, None
            owner = native.mutex_owner(self.record.mutex_address)
            orphan = owner if owner and not _exists(owner) and orphan in (0, owner) else 0
            if not self.record.makes_sense() or (orphan and now_s - begin_s > _GRACE_S):
                return code, PageLost()
            if until_s is not None and now_s >= until_s:
                return code, MutexBusy(owner)

    # ---- who is next

    def next_ticket(self) -> int:
        given = max(0, self.record.tickets_given[0]) + 1
        self.record.tickets_given[0] = given
        return given

    def queue(self, seat: int) -> None:
        """The seat waits from now on, behind all of its class."""
        record = self.record
        record.waiting_since_ns[seat] = time.monotonic_ns()
        record.ticket[seat] = self.next_ticket()

    def waiting(self) -> list[tuple[int, int, int]]:
        """(level, ticket, seat) of those whom a release may let in, the best first."""
        record = self.record
        owner = record.owner[0]
        found = [
            (record.level[seat], ticket, seat)
            for seat, ticket in enumerate(record.ticket.tolist())
            if ticket and seat != owner
        ]
        if found and record.mode[0] == TIME_SLICE:
            turn = record.turn_job()
            found = [waiter for waiter in found if record.job(waiter[2]) == turn]
        found.sort()
        return found

    def tell(self) -> None:
        """Make the `best` word true."""
        record = self.record
        owner = record.owner[0]
        if owner != NO_SEAT and record.ticket[owner]:
            record.ticket[owner] = 0  # it was granted by somebody who was killed before this
        waiting = self.waiting()
        record.best[0] = waiting[0][0] if waiting else NOBODY

    def hand_on(self) -> None:
        """Nobody holds the gate: the best of those who wait and live gets it."""
        record = self.record
        if record.mode[0] != FREE and not self._former_holder_lives():  # while it is free, waiters leave by themselves
            if record.mode[0] == TIME_SLICE:
                self.turn_goes_on()
            for _, _, seat in self.waiting():
                if self.is_parked(seat):
                    continue
                self._grant(seat)
                if self.file.is_alive(seat):  # asked while it wakes up already
                    break
                self.bury(seat)
        self.tell()

    def is_parked(self, seat: int) -> bool:
        """Whether it is fenced and passed over: it does not wait by proxy, or nobody is there who would continue its process."""
        record = self.record
        return (
            record.fenced[seat] != 0
            and record.owner[0] != seat
            and (record.ticket[seat] == 0 or not self.file.is_alive(KEEPER))
        )

    def _grant(self, seat: int) -> None:
        record, now_ns = self.record, time.monotonic_ns()
        record.since_ns[seat] = now_ns
        record.owner[0] = seat
        record.ticket[seat] = 0
        self.news(seat)
        record.grants[seat] += 1
        record.waited_ns[seat] += max(0, now_ns - record.waiting_since_ns[seat])

    def news(self, seat: int) -> None:
        """Its process is to wake up and look. At once: who is let in does not need the mutex, and waking takes long."""
        self.record.signal[seat] = (self.record.signal[seat] + 1) & 0x7FFF_FFFF
        native.wake(self.record.signals[seat])

    def end_hold(self, seat: int) -> None:
        """Book the hold of the owner and take the gate from it. Nobody is let in yet."""
        record, now_ns = self.record, time.monotonic_ns()
        if record.since_ns[seat]:
            hold_ns = max(0, now_ns - record.since_ns[seat])
            record.held_ns[seat] += hold_ns
            record.hold_ns[seat] = hold_ns
        record.released_ns[seat] = now_ns
        record.ticket[seat] = 0  # still set if whoever granted it was interrupted after the owner word
        record.owner[0] = NO_SEAT
        record.since_ns[seat] = 0

    def _former_holder_lives(self) -> bool:
        """Whether somebody may still hold the device by the page before this one."""
        former = self.record.former[0]
        if former:
            number = self.file.number - 1
            path = files.path_of(self.file.path.parent, self.record.device[0], number)
            former = self.record.former[0] = files.still_alive(path, number, former)
        return former != 0

    # ---- putting right

    def mend(self) -> None:
        """Whatever was left half-done: a dead owner is buried, the next one let in, what is derived derived anew."""
        record = self.record
        owner = record.owner[0]
        if owner != NO_SEAT:
            if not record.taken[owner] or not self.file.is_alive(owner):
                self.bury(owner)
            elif record.fenced[owner] and not self.file.is_alive(KEEPER):
                self.end_hold(owner)  # stopped, and whoever was to continue it is gone
                self.queue(owner)
        if record.owner[0] == NO_SEAT:
            self.hand_on()
        else:
            self.tell()

    def bury(self, seat: int) -> None:
        """The seat's process is dead, or left: the seat is free, and so is the gate if it was held from there."""
        record = self.record
        if record.owner[0] == seat:
            self.end_hold(seat)
        record.ticket[seat] = record.fenced[seat] = record.since_ns[seat] = record.taken[seat] = 0

    def take_seat(self, job: bytes, rank: int, level: int, share: float) -> int:
        """A seat for this process. Raises SetupError when all are taken."""
        record = self.record
        self.mend()
        for seat in range(SEATS):
            if record.taken[seat] and self.file.is_alive(seat):
                continue
            if record.taken[seat]:
                self.bury(seat)
            if not self.file.take(seat):
                continue
            for word in (record.held_ns, record.grants, record.waited_ns, record.released_ns, record.hold_ns):
                word[seat] = 0
            record.ticket[seat] = record.fenced[seat] = record.since_ns[seat] = 0
            record.pid[seat], record.rank[seat], record.level[seat], record.share[seat] = (
                os.getpid(),
                rank,
                level,
                share,
            )
            record.set_job(seat, job)
            record.taken[seat] = 1
            self.tell()
            return seat
        jobs = sorted({job_name(record.job(seat)) for seat in range(SEATS)})
        raise SetupError(
            f"gate {self.file.path}: all {SEATS} seats are taken (by {', '.join(jobs)}); let fewer processes share the device"
        )

    # ---- turns of a time slice

    def seated_jobs(self) -> list[bytes]:
        """The jobs that have a living member here that is not parked, in the order of turns: the same on every device."""
        seats = [seat for seat, taken in enumerate(self.record.taken.tolist()) if taken]
        return sorted(
            {self.record.job(seat) for seat in seats if self.file.is_alive(seat) and not self.is_parked(seat)}
        )

    def turn_goes_on(self) -> None:
        """If the job whose turn it is has no member that could use it, it is the next one's."""
        jobs, turn = self.seated_jobs(), self.record.turn_job()
        if jobs and turn not in jobs:
            self.record.set_turn_job(following(turn, jobs))

    # ---- leaving the page

    def abandon(self) -> None:
        """Leave a page that makes no sense, for all: it is marked, and the next number made unless somebody was faster.

        Whoever may still hold the device by the old page is noted in the new one, where nobody is let in before it is gone.
        """
        record = self.record
        # the mutex excludes a grant just now; if the mutex is what is broken, nobody can grant anything
        code = native.lock_within(record.mutex, LOOK_S) if record.has_mutex() else native.ENOTRECOVERABLE
        try:
            mode = record.mode[0] & ~MOVED
            mode = mode if FREE <= mode <= TIME_SLICE else INTERLEAVE
            record.mode[0] = MOVED | mode
            record.best[0] = -1  # better than any class: everybody who comes by is made to look
        finally:
            if code in (0, native.EOWNERDEAD):
                native.make_consistent(record.mutex)
                native.unlock(record.mutex)
        folder, device = self.file.path.parent, int(self.file.path.name.split(".")[0].removeprefix("device"))
        if max(files.numbers(folder, device), default=0) <= self.file.number:
            since_ns, owner = record.since_ns.tolist(), record.owner[0]
            held = sum(1 << seat for seat in range(SEATS) if seat == owner or since_ns[seat])
            former = files.still_alive(self.file.path, self.file.number, held)
            files.create(folder, device, self.file.number + 1, mode=mode, former=former)
        for seat in range(SEATS):
            self.news(seat)


def following(job: bytes, jobs: list[bytes]) -> bytes:
    """The next job in cyclic order; `jobs` is sorted and not empty."""
    return next((other for other in jobs if other > job), jobs[0])


def _exists(thread: int) -> bool:
    try:
        os.kill(thread, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
