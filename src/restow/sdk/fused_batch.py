"""Nests of tuples, lists and dicts with tensors in them: cut by member, and put together again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def cut(batch: Any, rows: slice | int) -> Any:
    """These members' part of a batch whose tensors have a dimension of members in front."""
    if isinstance(batch, Tensor):
        return batch[rows]
    if isinstance(batch, Mapping):
        return {key: cut(value, rows) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(cut(value, rows) for value in batch) if type(batch) in (tuple, list) else batch
    return batch


def dims(batch: Any) -> Any:
    """vmap's in_dims for `cut`'s result."""
    if isinstance(batch, Mapping):
        return {key: dims(value) for key, value in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(dims(value) for value in batch)
    return 0 if isinstance(batch, Tensor) else None


def merged(pieces: Sequence[Any], how: Callable[[list[Tensor]], Tensor]) -> Any:
    """Equal structures of tensors as one; numbers count as tensors."""
    first = pieces[0]
    if isinstance(first, Mapping):
        return {key: merged([piece[key] for piece in pieces], how) for key in first}
    if isinstance(first, (tuple, list)):
        return type(first)(merged(column, how) for column in zip(*pieces, strict=True))
    return how([torch.as_tensor(piece) for piece in pieces])
