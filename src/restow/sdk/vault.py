"""Tensors in the files of a vault (restow/vault.py): written by a rank that is suspended, mapped by whoever gives them back.

Knows no process, no socket and no agreement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from restow import vault
from restow.sdk.spans import Span, describe, spans_of

ALIGN = 64  # tensors start at multiples of it


def room_for(folder: Path, name: str, tensors: Mapping[str, torch.Tensor]) -> vault.Room | None:
    """Where `write_tensors` can write these tensors, ahead of time. None where there is nothing to write. Raises OSError."""
    size = sum(_padded_bytes(tensor.nbytes) for tensor in tensors.values())
    return vault.Room(folder, name, size) if size else None


def write_tensors(
    folder: Path, name: str, tensors: Mapping[str, torch.Tensor], *, job: str, generation: int, step: int,
    room: vault.Room | None = None,
) -> int:  # fmt: skip
    """Write these tensors as the state `name`; returns its bytes. `room`: of the same state, used if it fits.

    Raises OSError when there is no room: then there is no state.
    """
    entries: list[vault.Entry] = []
    pieces: list[Span] = []
    at = 0
    for tensor_name, tensor in tensors.items():
        span = Span(tensor_name, tensor)
        strides = list(tensor.stride()) if span.is_plain else list(tensor.contiguous().stride())
        entries.append(vault.Entry(name=tensor_name, shape=describe(tensor), strides=strides, at=at, bytes=span.nbytes))
        pieces.append(span)
        at += _padded_bytes(span.nbytes)
    room = room if room and room.size == at else None
    return vault.write(folder, name, _padded(pieces), entries, job=job, generation=generation, step=step, room=room)


def _padded_bytes(size: int) -> int:
    return size + -size % ALIGN


def _padded(pieces: Iterable[Span]) -> Iterable[memoryview]:
    """The bytes of each tensor from a multiple of ALIGN on."""
    for span in pieces:
        for group in spans_of([span]):
            yield from group
        if span.nbytes % ALIGN:
            yield memoryview(bytes(-span.nbytes % ALIGN))


def map_state(folder: Path, name: str) -> tuple[vault.Manifest, torch.Tensor]:
    """The manifest, and all bytes of this state as they lie in memory (uint8), checked. Raises Refused when they are damaged."""
    manifest, mapped = vault.map_bytes(folder, name)
    return manifest, torch.frombuffer(mapped, dtype=torch.uint8) if mapped else torch.empty(0, dtype=torch.uint8)


def tensors_of(manifest: vault.Manifest, flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """Views of the tensors that `write_tensors` wrote."""
    found = {}
    for entry in manifest.tensors:
        dtype = getattr(torch, str(entry.shape[0]).removeprefix("torch."))
        piece = flat[entry.at : entry.at + entry.bytes].view(dtype)
        found[entry.name] = piece.as_strided(entry.shape[1], entry.strides)
    return found
