"""States in files, which outlive the processes that wrote them: the files of a vault, without torch.

A vault is a folder per job and generation, in shared memory or on disk. In it: `replica.state`, what all ranks of a data-parallel
job hold alike; `rank<r>.state`, what rank r alone holds; beside each a `.json` with the step, the checksum and where each tensor
lies. The `.json` comes last and at once, so a state without one is unfinished and none.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from restow.errors import Refused

REPLICA = "replica"
FORMAT = 1
FREE_PART_MIN = 0.2  # of shared memory; what would leave less goes to disk at once, and what is on disk, too, leaves memory
TOUCHED_BYTES = 4 << 20  # of a room at once: a millisecond or two
WRITTEN_BYTES = 1 << 20
STEADY_COPY_BYTES = 16 << 20  # copied to disk at once
MADV_POPULATE_WRITE = 23  # Linux 5.14 and later


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor in a state: `shape` as in sdk/spans.describe, `strides` in items."""

    name: str
    shape: list[Any]
    strides: list[int]
    at: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a `.json` says of its state."""

    job: str
    generation: int
    step: int
    bytes: int
    checksum: str  # XXH3, 64 bit, hex, over all bytes
    tensors: list[Entry]
    format: int = FORMAT


class Room:
    """A state's file, mapped, its memory taken and touched ahead of time: there is room for sure, and to write it is one copy.

    Raises OSError where there is no room.
    """

    def __init__(self, folder: Path, name: str, size: int):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path, self.size = folder / f"{name}.state", size
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            self.memory = mmap.mmap(descriptor, size)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        self._touch()

    def _touch(self) -> None:
        """Page by page, in pieces, since the interpreter stands still in each. An older kernel cannot: writing is slower then."""
        with contextlib.suppress(OSError):
            for at in range(0, self.size, TOUCHED_BYTES):
                self.memory.madvise(MADV_POPULATE_WRITE, at, min(TOUCHED_BYTES, self.size - at))

    def write(self, views: Iterable[memoryview]) -> tuple[int, str]:
        """All of them, one after the other; their bytes and checksum. They must not be more than there is room for."""
        hasher, at = xxhash.xxh3_64(), 0
        with memoryview(self.memory) as target:
            for view in views:
                for first in range(0, len(view), WRITTEN_BYTES):
                    piece = view[first : first + WRITTEN_BYTES]
                    target[at : at + len(piece)] = piece
                    hasher.update(target[at : at + len(piece)])  # while it is in the cache
                    at += len(piece)
        return at, hasher.hexdigest()

    def close(self) -> None:
        self.memory.close()


def of_rank(rank: int) -> str:
    """The name of the state that this rank alone holds."""
    return f"rank{rank}"


def write(
    folder: Path, name: str, views: Iterable[memoryview], entries: list[Entry], *, job: str, generation: int, step: int,
    room: Room | None = None,
) -> int:  # fmt: skip
    """Write these bytes as the state `name`; returns their number. `room`: for just as many, of this state.

    Raises OSError when there is no room: then there is no state.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = folder / f"{name}.state"
    try:
        written, checksum = room.write(views) if room else _write_file(target, views)
        manifest = Manifest(job=job, generation=generation, step=step, bytes=written, checksum=checksum, tensors=entries)
        _finish(folder, name, manifest)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return written


def _finish(folder: Path, name: str, manifest: Manifest) -> None:
    unfinished = folder / f"{name}.json.unfinished"
    unfinished.write_text(json.dumps(asdict(manifest)))
    unfinished.replace(folder / f"{name}.json")


def receive(folder: Path, name: str, manifest: Manifest, fill: Callable[[mmap.mmap], None]) -> None:
    """Make the state `name` of what `fill` puts into the memory that it is given, and the manifest says of it. What was there by
    that name before is gone.

    Raises OSError where there is no room, Refused where it is not what the manifest says, and what `fill` raises: then there is
    no state.
    """
    (folder / f"{name}.json").unlink(missing_ok=True)
    if not manifest.bytes:
        write(folder, name, [], manifest.tensors, job=manifest.job, generation=manifest.generation, step=manifest.step)
        return
    room = Room(folder, name, manifest.bytes)
    try:
        fill(room.memory)
        if xxhash.xxh3_64_hexdigest(memoryview(room.memory)) != manifest.checksum:
            raise Refused(f"{name} did not arrive as it was sent: its checksum is not {manifest.checksum}")
        room.memory.flush()
        _finish(folder, name, manifest)
    except BaseException:
        room.path.unlink(missing_ok=True)
        raise
    room.close()


def _write_file(target: Path, views: Iterable[memoryview]) -> tuple[int, str]:
    hasher, written = xxhash.xxh3_64(), 0
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        for view in views:
            hasher.update(view)
            while view:
                count = os.write(descriptor, view)
                view, written = view[count:], written + count
    finally:
        os.close(descriptor)
    return written, hasher.hexdigest()


def write_blob(folder: Path, name: str, blob: bytes, *, job: str, generation: int, step: int) -> int:
    """The same for bytes that hold no tensor to be found again."""
    return write(folder, name, [memoryview(blob)], [], job=job, generation=generation, step=step)


def manifest_of(said: dict[str, Any], where: str) -> Manifest:
    """What a `.json` holds. Raises Refused where another version wrote it, KeyError or TypeError where it is none."""
    if said["format"] != FORMAT:
        raise Refused(f"{where} was written by another version of restow")
    return Manifest(**{**said, "tensors": [Entry(**entry) for entry in said["tensors"]]})


def names_in(folder: Path) -> set[str]:
    """The states in this folder that are finished; whether they are whole is not looked at."""
    return {path.stem for path in folder.glob("*.json") if path.with_suffix(".state").is_file()}


def sync(path: Path) -> None:
    """This file, or the names in this folder, are on disk for good."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_whole(source: Path, target: Path) -> None:
    """A copy on disk for good, that is there as a whole or not at all; nothing where the target has every state already. Raises
    OSError."""
    if names_in(source) <= names_in(target):
        return
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700, parents=True)
    try:
        for path in sorted(source.iterdir()):
            if path.suffix in (".state", ".json"):
                with path.open("rb") as reader, (unfinished / path.name).open("wb") as writer:
                    shutil.copyfileobj(reader, writer, STEADY_COPY_BYTES)
                    writer.flush()
                    os.fsync(writer.fileno())
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sync(unfinished)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
    sync(target.parent)


def read_manifest(folder: Path, name: str) -> Manifest:
    """What is said of this state. Raises Refused when there is none, or it is not one of ours."""
    path = folder / f"{name}.json"
    try:
        return manifest_of(json.loads(path.read_text()), str(path))
    except FileNotFoundError:
        raise Refused(f"there is no state {name} in {folder}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"{path} cannot be read: {error}") from None


def map_bytes(folder: Path, name: str) -> tuple[Manifest, mmap.mmap | bytearray]:
    """The manifest, and all bytes of this state as they lie in memory, checked. Raises Refused when they are damaged."""
    manifest = read_manifest(folder, name)
    path = folder / f"{name}.state"
    try:
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY) if length else bytearray()
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None
    if length != manifest.bytes:
        raise Refused(f"{path} has {length} bytes, not {manifest.bytes}: it is damaged")
    if xxhash.xxh3_64_hexdigest(memoryview(mapped)) != manifest.checksum:
        raise Refused(f"{path} is damaged: its checksum is not {manifest.checksum}")
    return manifest, mapped
