"""What lies in a device's memory: the distinct storages of a job's state, in the order in which they should leave it.

By storage, not by tensor: tied parameters, views and gradients that lie in DDP's buckets come once. Knows no copies.
What nobody shows us is not found: DDP's own buckets (unless gradients are views of them), activations, workspaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from restow.errors import ScriptError
from restow.sdk.boxes import StateTable

Source = StateTable | Iterable[torch.Tensor] | Callable[[], Iterable[torch.Tensor]]
"""Where tensors come from: a table, tensors in the order in which they should leave, or what gives them anew each time."""


class Kind(IntEnum):
    """Who leaves first: what is needed last when the job goes on. A storage that is several things is the last of them."""

    SPENT = 0  # gradients that the script clears before it adds to them: their bytes need not be kept
    MOMENT = 1  # optimizer state: not needed before the end of a step, and half of an AdamW job's bytes
    GRADIENT = 2  # still being added to
    BUFFER = 3  # and carried tensors
    PARAMETER = 4  # the first layer is needed at once


PARAMETER = Kind.PARAMETER


@dataclass(frozen=True, slots=True)
class Resident:
    """One storage with memory of its own."""

    kind: Kind
    name: str  # of a tensor that lies in it
    storage: torch.UntypedStorage
    nbytes: int

    @property
    def key(self) -> int:
        return int(self.storage._cdata)


def find(source: Source, device: torch.device | None = None) -> list[Resident]:
    """All residents of `device` (None: of the one that holds most bytes) in the order in which they should leave.

    Raises ScriptError naming a tensor that has no storage of its own: sparse, sharded, or made of other tensors. A
    table is asked for its private tensors, which calls state_dict of the objects in it: not while they are away.
    """
    found: dict[int, Resident] = {}
    for kind, name, tensor in _tensors(source):
        storage = _checked(name, tensor).untyped_storage()
        if nbytes := storage.nbytes():
            known = found.get(storage._cdata)
            if known is None or known.kind < kind:
                found[storage._cdata] = Resident(kind, name, storage, nbytes)
    device = device or device_of(found.values())
    here = [resident for resident in found.values() if resident.storage.device == device]
    return sorted(here, key=lambda resident: resident.kind)


def device_of(residents: Iterable[Resident]) -> torch.device:
    """Where most bytes lie; the CPU if there are none."""
    held: dict[torch.device, int] = {}
    for resident in residents:
        held[resident.storage.device] = held.get(resident.storage.device, 0) + resident.nbytes
    return max(held, key=lambda device: held[device], default=torch.device("cpu"))


def _tensors(source: Source) -> Iterator[tuple[Kind, str, torch.Tensor]]:
    if isinstance(source, StateTable):
        yield from _in_table(source)
        return
    for number, tensor in enumerate(source() if callable(source) else source):
        yield PARAMETER, f"tensor {number}", tensor


def _in_table(table: StateTable) -> Iterator[tuple[Kind, str, torch.Tensor]]:
    moments: set[int] = set()
    for optimizer in table.optimizers():
        for tensor in _inside(optimizer.state):
            moments.add(id(tensor))
            yield Kind.MOMENT, "optimizer state", tensor
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield Kind.SPENT, "a gradient", parameter.grad  # if it still matters it comes again, below
    for name, tensor in table.private_tensors().items():
        yield Kind.GRADIENT if name.endswith(".grad") else Kind.BUFFER, name, tensor
    for name, tensor in table.tensors().items():
        if id(tensor) not in moments:
            yield PARAMETER, name, tensor


def _inside(value: Any) -> Iterator[torch.Tensor]:
    """Tensors in an optimizer's state, however deep; keys, which are parameters, are not in it."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _inside(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _inside(item)


def _checked(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.layout is not torch.strided or tensor.is_meta or is_traceable_wrapper_subclass(tensor):
        raise ScriptError(f"{name} is a {type(tensor).__name__} of layout {tensor.layout} on {tensor.device}, whose memory is "
                          "not one storage; only ordinary dense tensors can leave the device")
    return tensor
