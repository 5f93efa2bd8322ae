"""A tensor as plain bytes: where they lie, and views of them for a socket to read from or write into.

A tensor on the CPU whose items fill one stretch of memory (in whatever order: channels_last too) is *plain*: its bytes
are used where they are. Others, and those on a GPU, pass through a staging buffer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from restow.errors import ScriptError

STAGE_BYTES = 32 << 20  # of one staging buffer; pinned for CUDA

Shape = list[object]
"""[dtype, sizes, order]: what two ends must agree on. `order` is the strides if the tensor is dense, else empty."""


class Span:
    """One named tensor's bytes. Keeps the tensor alive."""

    __slots__ = ("address", "is_plain", "name", "nbytes", "tensor")

    def __init__(self, name: str, tensor: torch.Tensor):
        if tensor.layout is not torch.strided or hasattr(tensor, "device_mesh"):
            raise ScriptError(f"{name} is a {type(tensor).__name__} of layout {tensor.layout}; "
                              "only dense tensors can be filled")
        self.name, self.tensor, self.nbytes = name, tensor.detach(), tensor.nbytes
        self.is_plain = tensor.device.type == "cpu" and _is_dense(tensor)
        self.address = tensor.data_ptr()


def describe(tensor: torch.Tensor) -> Shape:
    return [str(tensor.dtype), list(tensor.shape), _order(tensor) if _is_dense(tensor) else []]


def difference(name: str, here: Shape, there: Shape) -> str:
    """One line on why the bytes of `here` cannot be copied to `there`; empty if they can."""
    for what, mine, theirs in zip(("dtype", "shape", "memory order"), here, there, strict=True):
        if mine != theirs:
            return f"{name} has {what} {mine} at the source and {theirs} at the twin; both must run the same script"
    return ""


def spans_of(spans: Iterable[Span], for_writing: bool = False) -> Iterator[list[memoryview]]:
    """Views of all bytes, in groups. A group is read (or, `for_writing`, filled) before the next one is asked for:
    staged bytes are then copied into their tensor."""
    plain: list[memoryview] = []
    for span in spans:
        if span.is_plain:
            if span.nbytes:
                plain.append(_flat(span.tensor).numpy().data)
            continue
        if plain:
            yield plain
            plain = []
        yield from _staged(span.tensor, for_writing)
    if plain:
        yield plain


def _staged(tensor: torch.Tensor, for_writing: bool) -> Iterator[list[memoryview]]:
    """Through one buffer, part by part. A tensor with holes needs a whole copy without holes beside it."""
    whole = _flat(tensor) if _is_dense(tensor) else tensor.contiguous().reshape(-1).view(torch.uint8)
    buffer = torch.empty(min(STAGE_BYTES, whole.numel()), dtype=torch.uint8, pin_memory=tensor.is_cuda)
    for part in whole.split(STAGE_BYTES):
        stage = buffer[: part.numel()]
        if not part.numel():
            continue
        if not for_writing:
            stage.copy_(part)  # waits for the device
        yield [stage.numpy().data]
        if for_writing:
            part.copy_(stage)  # waits too: the buffer is used again
    if for_writing and not _is_dense(tensor):
        tensor.copy_(whole.view(tensor.dtype).reshape(tensor.shape))


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a dense tensor in the order of memory, without a copy."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(tensor)


def _order(tensor: torch.Tensor) -> list[int]:
    """The strides, without those of dimensions of size 1, which mean nothing."""
    return [0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
