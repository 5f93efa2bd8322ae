"""The record: what stands where in a gate's page of 4096 bytes, and whether it makes sense.

Every word is 8 bytes and aligned, so a load or a store is whole. Words that belong to a seat stand side by side, seat after
seat: all tickets are read by one copy. Knows nothing of the order of things; that is order.py.
"""

from __future__ import annotations

import hashlib

from restow.gate import native

PAGE_BYTES = 4096
SEATS = 16
MAGIC = 0x3145_5441_4757_4F52  # "ROWGATE1"

FREE, INTERLEAVE, TIME_SLICE = 0, 1, 2  # the mode word
MOVED = 4  # added to the mode: this page was left for the next number
PROTECTED, ORDINARY, BEST_EFFORT = 0, 1, 2  # a seat's level: the class, less is better
NOBODY = 1 << 30  # the `best` word when nobody waits; worse than any class
NO_SEAT = -1  # the owner word when nobody holds the gate

_MUTEX_OFFSET, _TURN_OFFSET, _SEATS_OFFSET, _JOBS_OFFSET, _REASONS_OFFSET = 128, 256, 512, 2560, 3584
_JOB_BYTES, _REASON_BYTES = 64, 32

_HEADER = ("magic", "number", "device", "mode", "owner", "best", "tickets_given", "turn", "former")
_SEAT = (
    "ticket", "level", "signal", "taken", "pid", "rank", "fenced", "since_ns", "held_ns", "grants", "waited_ns",
    "waiting_since_ns", "released_ns", "hold_ns",
)  # fmt: skip


def job_key(job: str) -> bytes:
    """The id of a job as the page has it: UTF-8, filled up with zeros to 64 bytes. A longer one keeps its beginning and gets a
    digest, so two jobs never share a key and keys sort the same everywhere."""
    raw = job.encode()
    if len(raw) > _JOB_BYTES - 1 or not raw or 0 in raw:
        raw = (
            raw.replace(b"\0", b"")[: _JOB_BYTES - 18] + b"~" + hashlib.blake2b(raw, digest_size=8).hexdigest().encode()
        )
    return raw.ljust(_JOB_BYTES, b"\0")


def job_name(key: bytes) -> str:
    return key.rstrip(b"\0").decode(errors="replace")


class Record:
    """The words of one page as views: `record.owner[0]`, `record.ticket[seat]`. Hot code keeps a view."""

    __slots__ = (*_HEADER, *_SEAT, "_bytes", "_kind", "mutex", "mutex_address", "share", "signals")

    # of the page
    magic: memoryview[int]
    number: memoryview[int]
    device: memoryview[int]
    mode: memoryview[int]
    owner: memoryview[int]  # the seat that holds the gate, or NO_SEAT
    best: memoryview[int]  # the best class of those whom a release would let in, or NOBODY
    tickets_given: memoryview[int]
    turn: memoryview[int]  # which of the two texts names the job whose turn it is; NO_SEAT: none does
    former: memoryview[int]  # one bit for each seat of the page before this one that may still hold the device
    # of each seat
    ticket: memoryview[int]  # 0: does not wait; else its place in the queue
    level: memoryview[int]
    signal: memoryview[int]  # futex word, below 2^31: changed when there is news for this seat
    taken: memoryview[int]
    pid: memoryview[int]  # for people to read: life is a record lock
    rank: memoryview[int]
    fenced: memoryview[int]  # 1: its grant was made void; it waits by proxy and must not run
    since_ns: memoryview[int]  # CLOCK_MONOTONIC, like all times here; 0: does not hold
    held_ns: memoryview[int]  # all holds so far, without the present one
    grants: memoryview[int]
    waited_ns: memoryview[int]
    waiting_since_ns: memoryview[int]
    released_ns: memoryview[int]  # end of its last hold
    hold_ns: memoryview[int]  # length of its last hold
    share: memoryview[float]  # 1: stays away from nothing

    def __init__(self, address: int, view: memoryview[int]):
        for index, name in enumerate(_HEADER):
            setattr(self, name, view[index * 8 : index * 8 + 8].cast("q"))
        for index, name in enumerate((*_SEAT, "share")):
            start = _SEATS_OFFSET + index * SEATS * 8
            setattr(self, name, view[start : start + SEATS * 8].cast("d" if name == "share" else "q"))
        signals = address + _SEATS_OFFSET + _SEAT.index("signal") * SEATS * 8
        kind = _MUTEX_OFFSET + native.MUTEX_KIND_OFFSET
        self._bytes, self._kind = view, view[kind : kind + 4].cast("i")
        self.mutex_address = address + _MUTEX_OFFSET
        self.mutex = native.reference(self.mutex_address, native.MUTEX_BYTES)
        self.signals = [native.reference(signals + seat * 8) for seat in range(SEATS)]

    def begin(self, *, number: int, device: int, mode: int, former: int) -> None:
        """Fill a page of zeros: nobody is seated."""
        native.make_mutex(self.mutex)
        self.number[0], self.device[0], self.mode[0], self.former[0] = number, device, mode, former
        self.owner[0], self.best[0], self.turn[0] = NO_SEAT, NOBODY, NO_SEAT
        self.magic[0] = MAGIC

    def makes_sense(self) -> bool:
        """Whether this can be gone on with; a page that was left makes none any more."""
        return (
            self.magic[0] == MAGIC and NO_SEAT <= self.owner[0] < SEATS and FREE <= self.mode[0] <= TIME_SLICE
            and NO_SEAT <= self.turn[0] <= 1 and self.has_mutex()
        )  # fmt: skip

    def has_mutex(self) -> bool:
        """Whether what stands in the mutex's place may be used as one."""
        return self._kind[0] == native.MUTEX_KIND

    def job(self, seat: int) -> bytes:
        """The key of the job that sits there."""
        start = _JOBS_OFFSET + seat * _JOB_BYTES
        return bytes(self._bytes[start : start + _JOB_BYTES])

    def set_job(self, seat: int, key: bytes) -> None:
        start = _JOBS_OFFSET + seat * _JOB_BYTES
        self._bytes[start : start + _JOB_BYTES] = key

    def turn_job(self) -> bytes:
        """The key of the job whose turn it is; empty if none was named."""
        which = self.turn[0]
        start = _TURN_OFFSET + which * _JOB_BYTES
        return bytes(self._bytes[start : start + _JOB_BYTES]) if which in (0, 1) else b""

    def set_turn_job(self, key: bytes) -> None:
        """Whole or not at all, whenever the writer is killed: the text that is not in use is written, then made the one in use."""
        which = 1 if self.turn[0] == 0 else 0
        start = _TURN_OFFSET + which * _JOB_BYTES
        self._bytes[start : start + _JOB_BYTES] = key
        self.turn[0] = which

    def reason(self, seat: int) -> str:
        """Why the seat is fenced."""
        start = _REASONS_OFFSET + seat * _REASON_BYTES
        return bytes(self._bytes[start : start + _REASON_BYTES]).rstrip(b"\0").decode(errors="ignore")

    def set_reason(self, seat: int, reason: str) -> None:
        start = _REASONS_OFFSET + seat * _REASON_BYTES
        self._bytes[start : start + _REASON_BYTES] = reason.encode()[:_REASON_BYTES].ljust(_REASON_BYTES, b"\0")
