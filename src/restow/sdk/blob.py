"""Tensors as bytes inside one blob: those in a pickle, and those behind it, end to end. Knows nothing of what they mean."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import torch

_LENGTH = struct.Struct("<Q")
ALIGN = 16  # pieces start at multiples of it, so that they can be viewed as any dtype


class _Pickler(pickle.Pickler):
    """Tensors as plain bytes with their device: faster than torch's own way, and sharing nothing."""

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, torch.Tensor):
            raw = thing.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()
            kind = isinstance(thing, torch.nn.Parameter)
            return _tensor_back, (raw, thing.dtype, tuple(thing.shape), str(thing.device), kind, thing.requires_grad)
        return NotImplemented


def _tensor_back(raw: bytes, dtype: torch.dtype, shape: tuple[int, ...], device: str, is_parameter: bool,
                 requires_grad: bool) -> torch.Tensor:
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    tensor = flat.view(dtype).reshape(shape).to(device)
    return torch.nn.Parameter(tensor, requires_grad) if is_parameter else tensor.requires_grad_(requires_grad)


def dump(value: Any) -> bytes:
    out = io.BytesIO()
    _Pickler(out, protocol=5).dump(value)
    return out.getvalue()


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def joined(pieces: Mapping[str, torch.Tensor]) -> bytes:
    """The bytes of all pieces, each from a multiple of ALIGN; those of one device come over in one copy."""
    flats = {name: _flat(tensor) for name, tensor in pieces.items()}
    for device in {flat.device for flat in flats.values() if flat.device.type != "cpu"}:
        names = [name for name, flat in flats.items() if flat.device == device]
        together = torch.cat([flats[name] for name in names]).cpu()
        flats.update(zip(names, together.split([flats[name].numel() for name in names]), strict=True))
    out = bytearray()
    for flat in flats.values():
        out += flat.numpy().data
        out += bytes(-len(out) % ALIGN)
    return bytes(out)


def packed(heads: Sequence[bytes], pieces: Mapping[str, torch.Tensor]) -> bytes:
    """One blob: each head with its length, then the pieces."""
    parts = [part for head in heads for part in (_LENGTH.pack(len(head)), head)]
    length = sum(map(len, parts))
    return b"".join((*parts, bytes(-length % ALIGN), joined(pieces)))


def heads_of(blob: bytes, count: int) -> tuple[list[memoryview], int]:
    """The first `count` heads of what `packed` made, and where they end."""
    heads, at, view = [], 0, memoryview(blob)
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(blob, at)
        at += _LENGTH.size
        heads.append(view[at : at + length])
        at += length
    return heads, at


def split(blob: bytes, start: int, index: list[tuple[str, str, tuple[int, ...]]]) -> dict[str, torch.Tensor]:
    """Name → tensor for what `joined` wrote behind `start`, with `index` of their names, dtypes and shapes."""
    pieces: dict[str, torch.Tensor] = {}
    if not index:
        return pieces
    body = torch.frombuffer(bytearray(memoryview(blob)[start + -start % ALIGN :]) or bytearray(1), dtype=torch.uint8)
    at = 0
    for name, dtype_name, shape in index:
        dtype = getattr(torch, dtype_name.removeprefix("torch."))
        length = dtype.itemsize * torch.Size(shape).numel()
        pieces[name] = body[at : at + length].view(dtype).reshape(shape)
        at += length + -length % ALIGN
    return pieces


def write(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """In place; of an expanded tensor, whose items share memory, each once."""
    once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())
    tensor[once].copy_(value[once])
