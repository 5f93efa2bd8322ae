"""Checkpoints of jobs, as folders: named, signed, checked, listed and cleared away. Without torch.

    FOLDER/JOB/step-00001200/    .metadata and *.distcp   as torch.distributed.checkpoint wrote them: they load without restow
                                 restow.json              which job and step, size and checksum of every other file; comes last

A folder without `restow.json`, or whose files are not as it says, is no checkpoint and is never chosen. It is signed with a secret
of the job, so that nobody else's is taken for the job's own: to read one runs what is pickled in it. FOLDER may be a URL of
whatever fsspec knows (`s3://bucket/x`).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import fsspec
import xxhash

from restow.errors import Refused

MANIFEST = "restow.json"
FORMAT = 1
READ_BYTES = 8 << 20
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    bytes: int
    checksum: str  # XXH3, 64 bit, hex


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What `restow.json` says."""

    job: str
    step: int  # finished steps
    workers: int
    time_s: float  # wall clock, when it was made
    signatures: list[str]  # rank → what its script had built; it must build the same to go on from here
    names: dict[str, str]  # name in a job's state → name in the checkpoint
    files: dict[str, File] = field(default_factory=dict)
    proof: str = ""  # HMAC-SHA256 over all the rest, hex
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step in a folder's name; None: it is no checkpoint's."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def dumps(manifest: Manifest) -> str:
    return json.dumps(asdict(manifest), indent=1) + "\n"


def proof_of(manifest: Manifest, secret: bytes) -> str:
    said = {name: value for name, value in asdict(manifest).items() if name != "proof"}
    return hmac.new(secret, json.dumps(said, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def open_folder(folder: str) -> tuple[Any, str]:
    """(file system, path in it). Raises Refused for a URL of a kind that nobody here knows."""
    try:
        files, path = fsspec.core.url_to_fs(folder)
    except (ValueError, ImportError) as error:
        raise Refused(f"checkpoint folder {folder!r}: {error}") from None
    return files, path


def is_remote(folder: str) -> bool:
    return "://" in folder


def checksum(files: Any, path: str) -> File:
    """Size and checksum of one file."""
    hasher, size = xxhash.xxh3_64(), 0
    with files.open(path, "rb") as reader:
        while piece := reader.read(READ_BYTES):
            hasher.update(piece)
            size += len(piece)
    return File(bytes=size, checksum=hasher.hexdigest())


def read(folder: str) -> Manifest:
    """What is said of the checkpoint in this folder. Raises Refused when there is none, or none of ours."""
    files, path = open_folder(folder)
    try:
        with files.open(f"{path}/{MANIFEST}", "rb") as reader:
            said: dict[str, Any] = json.loads(reader.read())
        if said.get("format") != FORMAT:
            raise Refused(f"{folder} was written by another version of restow")
        manifest = Manifest(**{**said, "files": {name: File(**file) for name, file in said["files"].items()}})
    except FileNotFoundError:
        raise Refused(f"{folder} holds no checkpoint, or one that was never finished") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{folder}/{MANIFEST} cannot be read: {error}") from None
    step = step_of(folder.rstrip("/").rpartition("/")[2])
    if step not in (None, manifest.step):
        raise Refused(f"{folder} holds step {manifest.step}: it was copied or renamed")
    return manifest


def is_made_with(manifest: Manifest, secret: bytes) -> bool:
    """Did a job with this secret make it?"""
    return hmac.compare_digest(manifest.proof, proof_of(manifest, secret))


def verify(folder: str, secret: bytes | None = None) -> Manifest:
    """Read everything and compare. With a secret also whether this job made it. Raises Refused naming what is wrong."""
    manifest = read(folder)
    if secret is not None and not is_made_with(manifest, secret):
        raise Refused(f"{folder} was not made by job {manifest.job} of this cluster; it is not unpickled")
    files, path = open_folder(folder)
    for name, expected in sorted(manifest.files.items()):
        if "/" in name or name in ("", ".", ".."):
            raise Refused(f"{folder}/{MANIFEST} names the file {name!r}, which cannot be its own")
        try:
            found = checksum(files, f"{path}/{name}")
        except OSError as error:
            raise Refused(f"{folder}/{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
        if found.bytes != expected.bytes:
            raise Refused(f"{folder}/{name} has {found.bytes} bytes, not {expected.bytes}: it is damaged")
        if found.checksum != expected.checksum:
            raise Refused(f"{folder}/{name} is damaged: its checksum is not {expected.checksum}")
    return manifest


def steps_in(folder: str) -> list[int]:
    """Steps of the folders here that are named as checkpoints, ascending. None where there is no folder."""
    files, path = open_folder(folder)
    try:
        names = [entry.rstrip("/").rpartition("/")[2] for entry in files.ls(path, detail=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(step for name in names if (step := step_of(name)) is not None)


def clear(folder: str, secret: bytes, keep: int) -> list[int]:
    """Remove all but the `keep` checkpoints of this job that were made last (0: none); those of others, be they of a job of the
    same name, are left alone. Returns the steps removed."""
    files, path = open_folder(folder)
    mine: list[tuple[float, int]] = []
    for step in steps_in(folder):
        try:
            manifest = read(f"{folder}/{name_of(step)}")
        except Refused:
            continue  # nobody's, or damaged: a person shall look at it
        if is_made_with(manifest, secret):
            mine.append((manifest.time_s, step))
    removed = sorted(step for _, step in sorted(mine)[:-keep]) if keep else []
    for step in removed:
        files.rm(f"{path}/{name_of(step)}", recursive=True)
    return removed
