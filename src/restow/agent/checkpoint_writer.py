"""The processes that turn a snapshot in a vault into a checkpoint, and a checkpoint into tensors; forked by the nursery.

A snapshot is a vault's folder (restow/vault.py) with everything of one step: what all ranks hold alike, what each rank alone holds,
and `export`: model buffers, the names under which PyTorch's own functions look for the tensors, and the optimizers' options. It is
written with torch.distributed.checkpoint, one writer, so that `dcp.load` finds `model.*` and `optimizer.state.*` without restow.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from restow import checkpoint, vault
from restow.errors import Refused, RestowError

EXPORT = "export"
DONE = "written.json"  # in the snapshot: what came of it
_PRIVATE = "restow.private."  # of a rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What to write, where to."""

    snapshot: str
    folder: str  # of the job's checkpoints
    job: str
    step: int
    workers: int
    keep: int
    signatures: tuple[str, ...]
    secret: str

    def to_wire(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"signatures": list(self.signatures)}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Orders:
        return cls(**{**wire, "signatures": tuple(wire["signatures"])})


def work(orders: Orders, words: Path, report: int) -> int:
    """Write it; the exit code is 0 if that went well, and `written.json` says what came of it."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.close(report)
    os.nice(10)  # training first
    try:
        said = write(orders)
    except (RestowError, OSError, RuntimeError) as error:
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
        words.write_text(json.dumps({"code": 1, "reason": f"checkpoint in {orders.folder}: {reason}"[:200]}))
        print(f"checkpoint of {orders.job}: {reason}", file=sys.stderr, flush=True)
        os._exit(1)
    done = Path(orders.snapshot, DONE)
    done.with_suffix(".draft").write_text(json.dumps(said))
    done.with_suffix(".draft").replace(done)
    sys.stderr.flush()
    os._exit(0)


# ---------------------------------------------------------------- writing


def write(orders: Orders) -> dict[str, Any]:
    """The checkpoint of this snapshot, whole or not at all: {"path", "bytes", "write_s", "removed"}. Raises RestowError, OSError.
    """
    began_s = time.monotonic()
    state, names = _state_of(orders)
    target = f"{orders.folder}/{checkpoint.name_of(orders.step)}"
    files, path = checkpoint.open_folder(target)
    _check_free(target, bytes.fromhex(orders.secret))
    remote = checkpoint.is_remote(orders.folder)
    parent = tempfile.mkdtemp(prefix="restow-checkpoint-") if remote else path.rpartition("/")[0]
    draft = Path(parent, f".{checkpoint.name_of(orders.step)}.unfinished")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        _save(state, draft)
        _sign(orders, names, draft)
        if remote:
            for each in [p for p in sorted(draft.iterdir()) if p.name != checkpoint.MANIFEST] + [draft / checkpoint.MANIFEST]:
                files.put_file(str(each), f"{path}/{each.name}")  # what says that it is whole comes last
        else:
            if Path(path).exists():
                shutil.rmtree(path)  # of the same step, made before a step back
            draft.rename(path)
            _sync(Path(path).parent)
    finally:
        shutil.rmtree(parent if remote else draft, ignore_errors=True)
    size = checkpoint.read(target).bytes
    removed = checkpoint.clear(orders.folder, bytes.fromhex(orders.secret), orders.keep)
    return {"path": target, "bytes": size, "write_s": time.monotonic() - began_s, "removed": removed}


def _check_free(target: str, secret: bytes) -> None:
    """Raises Refused where somebody else's checkpoint is."""
    try:
        there = checkpoint.read(target)
    except Refused:
        return  # nothing, or nothing that anybody could go on from
    if not checkpoint.is_made_with(there, secret):
        raise Refused(f"{target} is a checkpoint of another job ({there.job}); give checkpoint.folder another place")


def _state_of(orders: Orders) -> tuple[dict[str, Any], dict[str, str]]:
    """The state dict to save, and name in a job's state → name in it."""
    import torch

    from restow.sdk.vault import map_state, tensors_of

    snapshot = Path(orders.snapshot)
    manifest, flat = map_state(snapshot, vault.REPLICA)
    tensors = tensors_of(manifest, flat)
    _, blob = vault.map_bytes(snapshot, EXPORT)
    export: dict[str, Any] = pickle.loads(blob)  # written by rank 0 of this very job, into our own folder
    names = {name: export["names"].get(name, name) for name in tensors}
    state: dict[str, Any] = {names[name]: tensor for name, tensor in tensors.items()}
    state |= export["buffers"]
    state |= export["options"]
    for rank in range(orders.workers):
        found, private = map_state(snapshot, vault.of_rank(rank))
        if found.step != orders.step:
            raise Refused(f"the snapshot of rank {rank} is of step {found.step}, not of step {orders.step}")
        state[f"{_PRIVATE}{rank}"] = private.clone() if private.numel() else torch.zeros(1, dtype=torch.uint8)
    return state, names


def _save(state: dict[str, Any], folder: Path) -> None:
    from torch.distributed.checkpoint import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with _plainly():
        save(state, storage_writer=FileSystemWriter(folder, single_file_per_rank=True, sync_files=True), no_dist=True)


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """torch wraps what went wrong into a BaseException with all tracebacks; what it was comes out of here."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise (cause if isinstance(cause, OSError) else RestowError(str(cause))) from None


def _sign(orders: Orders, names: dict[str, str], folder: Path) -> None:
    files, path = checkpoint.open_folder(str(folder))
    manifest = checkpoint.Manifest(
        job=orders.job, step=orders.step, workers=orders.workers, time_s=time.time(), signatures=list(orders.signatures),
        names=names, files={each.name: checkpoint.checksum(files, f"{path}/{each.name}") for each in sorted(folder.iterdir())},
    )  # fmt: skip
    signed = replace(manifest, proof=checkpoint.proof_of(manifest, bytes.fromhex(orders.secret)))
    with (folder / checkpoint.MANIFEST).open("w") as writer:
        writer.write(checkpoint.dumps(signed))
        writer.flush()
        os.fsync(writer.fileno())
    _sync(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- reading


def load(folder: str, secret: bytes) -> tuple[checkpoint.Manifest, dict[str, Any], dict[int, Any]]:
    """The manifest, the tensors that all ranks hold alike by their names in a job's state, and rank → what it alone holds (uint8).
    Everything is checked before anything is unpickled. Raises Refused."""
    import torch
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load as load_state

    manifest = checkpoint.verify(folder, secret)
    files, path = checkpoint.open_folder(folder)
    with tempfile.TemporaryDirectory(prefix="restow-checkpoint-") as draft:
        local = path
        if checkpoint.is_remote(folder):
            local = draft
            for name in manifest.files:
                files.get_file(f"{path}/{name}", f"{draft}/{name}")
        reader = FileSystemReader(local)
        wanted = {*manifest.names.values(), *(f"{_PRIVATE}{rank}" for rank in range(manifest.workers))}
        state: dict[str, Any] = {}
        for name, about in reader.read_metadata().state_dict_metadata.items():
            if name in wanted and isinstance(about, TensorStorageMetadata):
                state[name] = torch.empty(about.size, dtype=about.properties.dtype)
        missing = sorted(wanted - state.keys())
        if missing:
            raise Refused(f"{folder} holds no {missing[0]}")
        with _plainly():
            load_state(state, storage_reader=reader, no_dist=True)
    privates = {rank: state[f"{_PRIVATE}{rank}"] for rank in range(manifest.workers)}
    return manifest, {name: state[inside] for name, inside in manifest.names.items()}, privates
