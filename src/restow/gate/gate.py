"""A member's end of the gate: the device is ours from `acquire` to `release`, whatever happens to anybody else.

    gate = Gate.join(folder, device=0, job="digits-1", rank=0)
    gate.acquire()
    ...                     # compute
    gate.release()          # before waiting for something else than the device

Ownership belongs to the process's seat, not to a thread: one thread may release what another acquired, but two must never
be in here at once. A child that this process forks is no member: for it the gate is disarmed, and the page is never touched.
A signal handler must not use the gate. Does not know what a device is; when it is idle is the caller's business.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from restow.gate import file as files
from restow.gate import native
from restow.gate.file import KEEPER, GateFile
from restow.gate.order import LOOK_S, MutexBusy, Order, PageLost, following
from restow.gate.record import (
    BEST_EFFORT,
    FREE,
    INTERLEAVE,
    MAGIC,
    NO_SEAT,
    NOBODY,
    ORDINARY,
    PROTECTED,
    TIME_SLICE,
    job_key,
    job_name,
)

_FOREVER_NS = 1 << 62
_LEAVE_S = 1.0  # after this, who leaves does not wait for the mutex any longer: its seat is found dead by the others

_trylock, _unlock, _now_ns = native.trylock, native.unlock, time.monotonic_ns


def _word(value: int) -> memoryview[int]:
    """A word of our own, for a gate that has left its page."""
    word = memoryview(bytearray(8)).cast("q")
    word[0] = value
    return word


class Gate:
    """One member's seat at the gate of one device. Made by `join`."""

    __slots__ = (
        "__weakref__", "_best", "_fenced", "_file", "_grants", "_held", "_hold", "_key", "_level", "_level_joined", "_mode",
        "_mutex", "_order", "_owner", "_released", "_seat", "_share", "_signal", "_since", "device", "folder", "job", "rank",
    )  # fmt: skip

    def __init__(self, folder: Path, device: int, job: str, rank: int, level: int):
        self.folder, self.device, self.job, self.rank = folder, device, job, rank
        self._key, self._level_joined = job_key(job), level
        self._file: GateFile | None = None
        self.become_nobody()

    @classmethod
    def join(cls, folder: Path, device: int, *, job: str, rank: int, level: int = ORDINARY) -> Gate:
        """Take a seat on the newest page of this device. If there is none, page 1 is made and members take turns on it
        (INTERLEAVE): nobody has said yet that they need not.

        `level` is the class, 0 protected, 1 ordinary, 2 best effort. Raises SetupError when shared memory is full or all
        16 seats are taken.
        """
        if not PROTECTED <= level <= BEST_EFFORT:
            raise ValueError(f"level is {level}; it is 0 (protected), 1 (ordinary) or 2 (best effort)")
        gate = cls(folder, device, job, rank, level)
        gate._sit_down(level, 1.0)
        files.add_member(gate)
        return gate

    # ---- what a member asks

    @property
    def held(self) -> bool:
        """Whether the device is ours."""
        return self._owner[0] == self._seat

    @property
    def mode(self) -> int:
        """0 free (nobody waits for anybody), 1 interleave, 2 time slice."""
        return self._mode[0] & (INTERLEAVE | TIME_SLICE)

    @property
    def is_free(self) -> bool:
        """Nobody waits for anybody, and this is still the page: who asks for the device otherwise goes to the new one."""
        return self._mode[0] == FREE

    @property
    def mode_word(self) -> memoryview:
        """0 while the gate is free, for who asks often; ask for the word again now and then."""
        return self._mode

    @property
    def level(self) -> int:
        """Our class: 0 protected, 1 ordinary, 2 best effort."""
        return self._level[0]

    @property
    def seat(self) -> int | None:
        """The number of our seat; None if we left, or never were a member."""
        return self._seat if self._file else None

    @property
    def number(self) -> int | None:
        """The number of our page."""
        return self._file.number if self._file else None

    def poll(self) -> bool:
        """Whether somebody of a better class than ours waits whom a release would let in. Costs two loads."""
        return self._best[0] < self._level[0]

    def crowded(self) -> bool:
        """Whether anybody waits whom a release would let in; in time slices nobody but members of the job whose turn it is."""
        return self._best[0] < NOBODY

    def lesser_holder(self) -> int:
        """The process that holds the device if its class is worse than ours; else 0. Without the mutex: true a moment ago."""
        if not self._file:
            return 0
        record, owner = self._file.record, self._owner[0]
        if owner in (NO_SEAT, self._seat) or not record.makes_sense() or record.level[owner] <= self._level[0]:
            return 0
        return int(record.pid[owner])

    def holding(self) -> tuple[int, int] | None:
        """Who holds the gate, by seat, and how often that seat was let in: the same two say that it has not let go in between. None
        if nobody does. Without the mutex: true a moment ago."""
        if not self._file or not self._file.record.makes_sense():
            return None
        owner = self._owner[0]
        return None if owner == NO_SEAT else (owner, int(self._file.record.grants[owner]))

    def last_hold_s(self) -> float:
        """How long whoever holds the gate held it the last time before; 0 if it did not, or nobody does. Without the mutex."""
        holding = self.holding()
        return self._file.record.hold_ns[holding[0]] / 1e9 if holding and self._file else 0.0

    # ---- acquire, release

    def acquire(self, timeout_s: float | None = None) -> bool:
        """Wait until the device is ours; at once if it is already, or if the gate is disarmed (then nothing is held).

        False if that took longer than `timeout_s`. About 2 us when nobody holds it. Waits longer than `timeout_s` only
        while somebody is stopped inside the page's mutex. First come first served within a class; a better class goes first;
        who has a share below 1 stays away before it queues; in time slices, until it is our job's turn.
        """
        mode = self._mode[0]
        if mode == FREE:
            return True
        owner = self._owner
        if owner[0] == self._seat and not self._fenced[0]:
            return True
        if mode == INTERLEAVE and self._share[0] == 1.0:
            try:
                code = _trylock(self._mutex)
                if code == 0:
                    if owner[0] == NO_SEAT and self._best[0] == NOBODY:
                        self._since[0] = _now_ns()
                        self._grants[0] += 1
                        owner[0] = self._seat
                        _unlock(self._mutex)
                        return True
                    _unlock(self._mutex)
                elif code == native.EOWNERDEAD:
                    self._order.recover()
            except BaseException:  # from a signal handler
                _unlock(self._mutex)  # who has not locked a robust mutex is refused, so this is safe either way
                self.release()
                raise
        return self._acquire_patiently(timeout_s)

    def release(self) -> None:
        """Give the device to the best of those who wait: it is theirs when this returns, and we queue like everybody else.
        Does nothing if we do not hold it. What was acquired before the gate was disarmed is released all the same."""
        owner = self._owner
        if owner[0] != self._seat or self._mode[0] > TIME_SLICE:
            if self._fenced[0] or self._mode[0] > TIME_SLICE:
                self._release_patiently()
            return
        try:
            code = _trylock(self._mutex)
            if code == 0:
                if owner[0] == self._seat:
                    if self._best[0] == NOBODY:
                        now_ns = _now_ns()
                        hold_ns = now_ns - self._since[0]
                        self._held[0] += hold_ns
                        self._hold[0] = hold_ns
                        self._released[0] = now_ns
                        owner[0] = NO_SEAT
                        self._since[0] = 0
                    else:
                        self._order.end_hold(self._seat)
                        self._order.hand_on()
                    _unlock(self._mutex)
                    return
                _unlock(self._mutex)
            elif code == native.EOWNERDEAD:
                self._order.recover()
        except BaseException:
            _unlock(self._mutex)
            raise
        self._release_patiently()

    def give_way(self, *, equal: bool = False) -> bool:
        """A yield point: if we hold the device and somebody of a better class waits (`equal`: or of our own), it goes first and
        we wait until it is ours again. Whether that happened. 0.2 us if not."""
        if not (self._best[0] <= self._level[0] if equal else self._best[0] < self._level[0]) or not self.held:
            return False
        self.release()
        return self.acquire()

    # ---- turns of a time slice

    def has_turn(self) -> bool:
        """Whether it is our job's turn. Means something in time slices only."""
        return self._file is not None and self._file.record.turn_job() == self._key

    def turn_wanted(self) -> bool:
        """Whether another living job is seated here and waits."""
        if not self._file:
            return False
        record = self._file.record
        return any(
            ticket and record.job(seat) != self._key and self._file.is_alive(seat)
            for seat, ticket in enumerate(record.ticket.tolist())
        )

    def next_turn(self) -> str | None:
        """The job that `pass_turn` would give the turn to; None if no other is seated. The ranks of a gang compare it
        before they agree to pass: a job that is seated on one device only must not get the turn on that one alone."""
        if not self._file:
            return None
        jobs = self._order.seated_jobs()
        key = following(self._key, jobs) if jobs else self._key
        return None if key == self._key else job_name(key)

    def pass_turn(self) -> str | None:
        """Release, and give our job's turn to the next job in the cyclic order of ids among those that are seated and live.

        The job that has it now; None, and nothing is changed, if there is no other, if the turn is not ours, or if the mode
        is not TIME_SLICE. The next `acquire` waits until the turn has come back.
        """
        while self._file:
            try:
                return self._order.inside(self._pass_turn)
            except PageLost:
                self._move()
        return None

    def leave(self) -> None:
        """Release, and give the seat back. Afterwards the gate is disarmed for us: acquire and release do nothing."""
        if not self._file:
            return
        file, seat, is_free = self._file, self._seat, False
        try:
            self.become_nobody()  # first, so that it holds however this ends
            is_free = self._order.inside(self._stand_up, seat, until_s=time.monotonic() + _LEAVE_S)
        except (PageLost, MutexBusy):
            pass  # the others find a dead seat
        finally:
            if not is_free:
                file.give_back(seat)
            files.detach(file)

    def become_nobody(self) -> None:
        """Not a member any more, without touching the page: what acquire, release and poll look at is now our own."""
        self._file, self._seat = None, NO_SEAT - 1
        self._mode, self._owner, self._best, self._level = _word(FREE), _word(NO_SEAT), _word(NOBODY), _word(ORDINARY)
        self._fenced = _word(0)

    # ---- the slow ways

    def _sit_down(self, level: int, share: float) -> None:
        while True:
            file = files.attach_newest(self.folder, self.device, mode=INTERLEAVE)
            order = Order(file)
            try:
                seat = order.inside(order.take_seat, self._key, self.rank, level, share)
                break
            except PageLost:
                order.abandon()
                files.detach(file)
            except BaseException:
                files.detach(file)
                raise
        record, here = file.record, slice(seat, seat + 1)
        self._file, self._order, self._seat, self._mutex = file, order, seat, record.mutex
        self._best, self._signal, self._share = record.best, record.signal[here], record.share[here]
        self._level, self._fenced, self._since = record.level[here], record.fenced[here], record.since_ns[here]
        self._held, self._hold, self._released = record.held_ns[here], record.hold_ns[here], record.released_ns[here]
        self._grants = record.grants[here]
        self._owner, self._mode = record.owner, record.mode

    def _move(self) -> None:
        """To the newest page. Whatever we held on the old one is given up by leaving it."""
        file, seat, level, share = self._file, self._seat, self._level[0], self._share[0]
        assert file
        if file.record.magic[0] != MAGIC or not (PROTECTED <= level <= BEST_EFFORT and 0 <= share <= 1):
            level, share = self._level_joined, 1.0  # nothing there can be believed
        self._order.abandon()
        try:
            self._sit_down(level, share)
        finally:
            if self._file is not file:
                file.give_back(seat)
                files.detach(file)

    def _acquire_patiently(self, timeout_s: float | None) -> bool:
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        mutex_until_s = None if until_s is None else until_s + LOOK_S
        try:
            while True:
                try:
                    if not self._stay_away(until_s):
                        return False
                    if self._mode[0] == FREE or self._order.inside(self._queue, until_s=mutex_until_s):
                        return True
                    return self._wait(until_s)
                except PageLost:
                    self._move()
                except MutexBusy:  # nothing was written yet
                    return False
        except BaseException:  # from a signal handler
            with contextlib.suppress(PageLost, MutexBusy):
                self._order.inside(self._withdraw, until_s=time.monotonic() + _LEAVE_S)
                self.release()
            raise

    def _stay_away(self, until_s: float | None) -> bool:
        """After holding for h seconds, a member with a share is away for h x (1/share - 1). False if the time is over first."""
        assert self._file
        record = self._file.record
        while self._mode[0] == INTERLEAVE:
            if not record.makes_sense():
                raise PageLost
            seen = self._signal[0]
            share, hold_ns = self._share[0], self._hold[0]
            if not hold_ns or not share < 1:
                break
            away_ns = int(hold_ns * (1 / share - 1)) if share > 1e-6 else _FOREVER_NS
            now_ns = _now_ns()
            left_s = (self._released[0] + away_ns - now_ns) / 1e9
            if left_s <= 0:
                break
            if until_s is not None:
                if now_ns / 1e9 >= until_s:
                    return False
                left_s = min(left_s, until_s - now_ns / 1e9)
            native.wait_while(record.signals[self._seat], seen, min(left_s, LOOK_S))
        return True

    def _queue(self) -> bool:
        """Under the mutex: be in the queue, or have it."""
        order, record, seat = self._order, self._order.record, self._seat
        if record.fenced[seat]:
            record.fenced[seat] = 0  # we run again, whoever continued us: the proxy's place in the queue is ours
        if record.owner[0] != seat:
            if not record.ticket[seat]:
                order.queue(seat)
            order.mend()
        return record.owner[0] == seat

    def _wait(self, until_s: float | None) -> bool:
        """In the queue. The word is read before what it tells of, and changed after it: no news is slept through."""
        order, record, seat = self._order, self._order.record, self._seat
        signal, owner, word = self._signal, self._owner, self._order.record.signals[self._seat]
        while True:
            seen = signal[0]
            mode = self._mode[0]
            if mode > TIME_SLICE or not record.makes_sense():
                raise PageLost
            if owner[0] == seat:
                return True
            if mode == FREE:
                order.inside(self._withdraw)
                return True
            left_s = LOOK_S if until_s is None else min(LOOK_S, until_s - time.monotonic())
            if left_s <= 0:
                return order.inside(self._withdraw)
            native.wait_while(word, seen, left_s)
            if owner[0] == seat and self._mode[0] <= TIME_SLICE:
                return True
            if self._something_is_wrong():
                with contextlib.suppress(MutexBusy):
                    order.inside(self._queue, until_s=until_s)

    def _something_is_wrong(self) -> bool:
        """Without the mutex: nobody holds the gate, or somebody dead, or we are not counted."""
        record, file = self._order.record, self._order.file
        holder = self._owner[0]
        return (
            not NO_SEAT < holder < len(record.signals)
            or not file.is_alive(holder)
            or (record.fenced[holder] != 0 and not file.is_alive(KEEPER))
            or not record.ticket[self._seat]
            or (self._best[0] > self._level[0] and self._mode[0] == INTERLEAVE)
        )

    def _withdraw(self) -> bool:
        """Under the mutex: out of the queue, unless we have it by now."""
        record, seat = self._order.record, self._seat
        if record.owner[0] == seat:
            return True
        record.ticket[seat] = 0
        self._order.tell()
        return False

    def _release_patiently(self) -> None:
        try:
            if self._mode[0] > TIME_SLICE:
                raise PageLost
            self._order.inside(self._hand_over)
        except PageLost:
            self._move()

    def _hand_over(self) -> None:
        """Under the mutex."""
        order, record, seat = self._order, self._order.record, self._seat
        if record.owner[0] == seat:
            record.fenced[seat] = 0
            order.end_hold(seat)
            order.hand_on()
        elif record.fenced[seat]:  # our grant was void, and we ran all the same: no proxy is needed any more
            record.fenced[seat] = record.ticket[seat] = 0
            order.tell()

    def _pass_turn(self) -> str | None:
        """Under the mutex."""
        order, record = self._order, self._order.record
        if record.mode[0] != TIME_SLICE:
            return None
        order.turn_goes_on()
        jobs = order.seated_jobs()
        if record.turn_job() != self._key or following(self._key, jobs) == self._key:
            return None
        record.set_turn_job(following(self._key, jobs))
        if record.owner[0] == self._seat:
            order.end_hold(self._seat)
        if record.owner[0] == NO_SEAT:
            order.hand_on()
        else:
            order.tell()
        return job_name(record.turn_job())

    def _stand_up(self, seat: int) -> bool:
        """Under the mutex."""
        order, record = self._order, self._order.record
        order.bury(seat)
        order.file.give_back(seat)
        if record.owner[0] == NO_SEAT:
            order.hand_on()
        else:
            order.tell()
        return True
