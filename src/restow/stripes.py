"""A rank's stripe of the copies that the ranks of a node make of what all hold alike: a small head, and room for two copies, in a
file in shared memory that outlives its writer.

Two copies, written in turn: whoever is killed in the middle of one leaves the other. The head says of which gang and of which
division into stripes they are, the step that a copy was last begun of, and the steps that are whole; behind the copies comes what
lies where in them. So whoever is left on a node can put a state together from the stripes that its ranks have left.
"""

from __future__ import annotations

import errno
import glob
import json
import mmap
import os
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from restow.vault import FREE_PART_MIN, Entry

SUFFIX = ".stripe"
NODES_MAX = 2  # that keep copies: one of them may be lost
NOTHING = -1
PAGE = 4096
ALIGN = 64
_WORD = struct.Struct("<q")
_HEAD = ("generation", "index", "count", "size", "asked", "whole0", "whole1", "about")
_AT = {name: _WORD.size * number for number, name in enumerate(_HEAD)}


@dataclass(frozen=True, slots=True)
class Division:
    """Who makes the copies on one node: rank `ranks[i]` of generation `generation` has the i-th of so many stripes."""

    generation: int
    ranks: tuple[int, ...]

    def index(self, rank: int) -> int:
        return self.ranks.index(rank)


def divide(generation: int, nodes: Sequence[str], rank: int, is_small: bool) -> Division | None:
    """With whom `rank` makes copies, where `nodes[r]` is rank r's. None: it makes none.

    Small states are copied as a whole by one rank on each of two nodes, or by two ranks of the only one: one of them may be lost in
    its copy. Others are copied by all ranks of the two nodes that have the most, in stripes.
    """
    ranks_of = [tuple(r for r, other in enumerate(nodes) if other == node) for node in sorted(set(nodes))]
    ranks_of.sort(key=lambda ranks: -len(ranks))  # stable
    here = next((ranks for ranks in ranks_of[:NODES_MAX] if rank in ranks), ())
    if is_small:
        here = (rank,) if rank in here[: NODES_MAX if len(ranks_of) == 1 else 1] else ()
    return Division(generation, here) if here else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One tensor: its place among all of the state, and what an Entry of a vault says of it."""

    number: int
    name: str
    shape: list[Any]
    strides: list[int]
    bytes: int


class Head:
    """What a file says of itself, as it is now: it is mapped. Raises OSError where there is no such file."""

    def __init__(self, path: Path):
        self._path = path
        with path.open("r+b") as file:
            try:
                self.memory = mmap.mmap(file.fileno(), PAGE)
            except ValueError:
                raise OSError(errno.ENODATA, "it is empty") from None

    def mapped(self) -> mmap.mmap:
        """All of the file. Raises OSError where it is gone."""
        if len(self.memory) == PAGE:
            with self._path.open("rb") as file:
                self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self.memory

    def get(self, name: str) -> int:
        return int(_WORD.unpack_from(self.memory, _AT[name])[0])

    def set(self, name: str, value: int) -> None:
        _WORD.pack_into(self.memory, _AT[name], value)

    def is_of(self, division: Division, rank: int) -> bool:
        said = (self.get("generation"), self.get("index"), self.get("count"))
        return said == (division.generation, division.index(rank), len(division.ranks))

    def whole(self) -> dict[int, int]:
        """Step → which of the two copies is of it."""
        said = {self.get(f"whole{number}"): number for number in (0, 1)}
        return {step: number for step, number in said.items() if step != NOTHING}

    def is_behind(self, step: int) -> bool:
        """Has a copy of this step been begun that is not whole?"""
        return self.get("asked") == step and step not in self.whole()


class Stripe(Head):
    """The writer's end, with room for two copies of these tensors. What was at `path` before is gone, and says so to whoever has it
    mapped. Raises OSError where there is no room, or would be none for `spare` bytes after it: a vault comes before copies."""

    def __init__(self, path: Path, division: Division, rank: int, pieces: Sequence[Piece], spare: int):
        size = size_of(pieces)
        about = json.dumps([asdict(piece) for piece in pieces]).encode()
        length = where(2, size) + len(about)
        _check_room(path.parent, length + spare)
        unfinished = path.with_name(f"{path.name}.unfinished")
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, length)
            self._path, self.memory = path, mmap.mmap(descriptor, length)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        said = (division.generation, division.index(rank), len(division.ranks), size, NOTHING, NOTHING, NOTHING, len(about))
        for name, value in zip(_HEAD, said, strict=True):
            self.set(name, value)
        self.memory[where(2, size) : length] = about
        forget(path)
        unfinished.replace(path)
        self._next = 0

    def begin(self) -> int:
        """Which of the two copies is written now; what was in it is not whole any more."""
        self.set(f"whole{self._next}", NOTHING)
        return self._next

    def finish(self, step: int) -> None:
        self.set(f"whole{self._next}", step)
        self._next = 1 - self._next


def forget(path: Path) -> None:
    """Whoever has this file mapped finds nothing in it any more."""
    try:
        head = Head(path)
    except OSError:
        return  # there is none
    for name in ("generation", "asked", "whole0", "whole1"):
        head.set(name, NOTHING)


def files(folder: Path, job: str, rank: int) -> list[Path]:
    """Those of this rank, whenever it was born here."""
    return sorted(path for path in folder.glob(f"{glob.escape(job)}.g*.r{rank}{SUFFIX}") if _is_of(path, job))


def where(copy: int, size: int) -> int:
    """At which byte of the file the copy 0 or 1 begins."""
    return PAGE + copy * (size + -size % PAGE)


def read(path: Path, generation: int) -> tuple[tuple[int, int], set[int]] | None:
    """Which stripe of how many this is, and the steps of which it is whole; None where there is none of that gang."""
    try:
        head = Head(path)
    except OSError:
        return None
    return ((head.get("index"), head.get("count")), set(head.whole())) if head.get("generation") == generation else None


def size_of(pieces: Iterable[Piece]) -> int:
    """Bytes of one copy: each tensor begins at a multiple of ALIGN."""
    return sum(padded(piece.bytes) for piece in pieces)


def padded(size: int) -> int:
    return size + -size % ALIGN


def gather(folder: Path, job: str, generation: int, step: int) -> tuple[list[Entry], list[memoryview]]:
    """The state after `step` steps from the stripes that ranks of this gang have left here: its tensors as a vault has them, and
    all its bytes. Raises KeyError where a stripe is missing."""
    heads = [Head(path) for path in sorted(folder.glob(f"{glob.escape(job)}.g*.r*{SUFFIX}")) if _is_of(path, job)]
    heads = [head for head in heads if head.get("generation") == generation and step in head.whole()]
    for count in sorted({head.get("count") for head in heads}):
        found = {head.get("index"): head for head in heads if head.get("count") == count}
        if len(found) == count:
            return _joined(list(found.values()), step)
    raise KeyError(f"there is no copy of step {step}")


def _joined(heads: Sequence[Head], step: int) -> tuple[list[Entry], list[memoryview]]:
    pieces = []
    for head in heads:
        size, at = head.get("size"), where(head.whole()[step], head.get("size"))
        about = memoryview(head.mapped())[where(2, size) :]
        for said in json.loads(bytes(about)):
            piece = Piece(**said)
            pieces.append((piece, memoryview(head.mapped())[at : at + padded(piece.bytes)]))
            at += padded(piece.bytes)
    pieces.sort(key=lambda each: each[0].number)
    entries, at = [], 0
    for piece, view in pieces:
        entries.append(Entry(name=piece.name, shape=piece.shape, strides=piece.strides, at=at, bytes=piece.bytes))
        at += len(view)
    return entries, [view for _, view in pieces]


def _is_of(path: Path, job: str) -> bool:
    return re.fullmatch(rf"{re.escape(job)}\.g\d+\.r\d+{re.escape(SUFFIX)}", path.name) is not None


def _check_room(folder: Path, length: int) -> None:
    found = os.statvfs(folder)
    if found.f_bavail * found.f_frsize - length < FREE_PART_MIN * found.f_blocks * found.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
