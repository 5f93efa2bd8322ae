"""The collectives of the step under way and of the step before it, so that they can be done again on another inner.

An entry keeps the operation, its arguments and a copy of its inputs, and gives out a Work of its own: if the inner that carried
it fails, the same entry is done again on another one and whoever waits for the Work never hears of it. The sums come out bit by
bit the same, because gloo adds in an order that depends on ranks and sizes only. Knows nothing of why an inner fails.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from restow.sdk.group import SwitchGroup

LOG_BYTES_MAX = 4 << 30  # of saved inputs in one step; an evaluation that gathers more is not kept
LOG_ENTRIES_MAX = 20_000
OUTPUT_FIRST = {  # operations whose first argument is only written to
    "allgather",
    "_allgather_base",
    "reduce_scatter",
    "_reduce_scatter_base",
    "gather",
    "scatter",
    "alltoall",
    "alltoall_base",
}
PAIRWISE = {"send", "recv", "recv_anysource"}  # one after the other they could wait for each other for ever


class GuardedWork(dist.Work):
    """A collective that may still change the inner that carries it."""

    def __init__(self) -> None:
        super().__init__()
        self._promise: torch.futures.Future[Any] = torch.futures.Future()
        # only what a callback raises is an error for C++ waiters (DDP's reducer); set_exception is one for Python's alone
        self._future: torch.futures.Future[Any] = self._promise.then(_result_of)

    def keep(self, outcome: Any) -> None:
        """Set the result, or an exception that every waiter gets."""
        self._promise.set_result(outcome)

    def wait(self, timeout: timedelta | None = None) -> bool:
        self._future.wait()
        return True

    def is_completed(self) -> bool:
        return self._promise.done()

    def is_success(self) -> bool:
        return self._promise.done() and not isinstance(self._promise.value(), Exception)

    def get_future(self) -> torch.futures.Future[Any]:
        return self._future


def _result_of(promise: torch.futures.Future[Any]) -> Any:
    outcome = promise.value()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


class Entry:
    """One collective. `inner_work` while an inner carries it."""

    __slots__ = ("arguments", "group", "inner_work", "is_done", "operation", "refused", "saved", "work")

    def __init__(self, group: SwitchGroup, operation: str, arguments: tuple[Any, ...], saved: list[torch.Tensor]):
        self.group, self.operation, self.arguments, self.saved = group, operation, arguments, saved
        self.work = GuardedWork()
        self.inner_work: Any = None
        self.refused: Exception | None = None  # what the inner said at once
        self.is_done = False

    def launch(self, arguments: tuple[Any, ...]) -> Any:
        tensor = next(tensors_in(arguments), None)
        backend = self.group.inner.backend(tensor.device.type if tensor is not None else "cpu")
        return getattr(backend, self.operation)(*arguments)

    def finish(self) -> None:
        self.inner_work = None
        self.is_done = True
        self.work.keep(list(tensors_in(self.arguments[:1])) or None)

    def fail(self, error: Exception) -> None:
        self.inner_work = None
        self.is_done = True
        self.work.keep(error)

    def redo(self) -> None:
        """Once more, from the saved inputs, on what is the group's inner now. Blocks; raises what the inner raises."""
        if self.is_done:  # its result is known and in use: only the others need us, our copy is thrown away
            inputs = {id(tensor): copy for tensor, copy in zip(_inputs(self.operation, self.arguments), self.saved, strict=True)}
            scratch = _mapped(self.arguments, inputs)
            self.launch(scratch).wait()
            return
        with torch.no_grad():
            for tensor, copy in zip(_inputs(self.operation, self.arguments), self.saved, strict=True):
                tensor.copy_(copy)  # the failed inner may have left half a sum here
        self.launch(self.arguments).wait()
        self.finish()


class Ledger:
    """What was done since the save point before the last one. Only the thread that launches collectives writes."""

    def __init__(self, keeps: bool = True) -> None:
        """`keeps`: will anything have to be done again? Else nothing is copied."""
        self._keeps = keeps
        self.first = -1  # the earliest step that is here from its beginning
        self.why_not = ""  # why nothing can be done again; empty: it can
        self._step = -1
        self._steps: dict[int, list[Entry]] = {}
        self._bytes = 0
        self._buffers: dict[tuple[Any, ...], list[torch.Tensor]] = defaultdict(list)  # of forgotten entries, used again

    def turn(self, step: int) -> None:
        """A save point: `step` steps are finished, what follows belongs to the next."""
        for old in [number for number in self._steps if number < step - 1]:
            for entry in self._steps.pop(old):
                for copy in entry.saved:
                    self._buffers[_kind(copy)].append(copy)
        self._steps[step] = []
        self._step, self._bytes = step, 0
        self.first = min(self._steps)

    def write(self, group: SwitchGroup, operation: str, arguments: tuple[Any, ...]) -> Entry:
        if not self._keeps:
            return Entry(group, operation, arguments, [])
        inputs = list(_inputs(operation, arguments))
        self._bytes += sum(tensor.nbytes for tensor in inputs)
        entries = self._steps[self._step]
        if self._bytes > LOG_BYTES_MAX or len(entries) >= LOG_ENTRIES_MAX:
            self._forget(f"a step gave more than {LOG_BYTES_MAX >> 30} GiB or {LOG_ENTRIES_MAX} operations to its collectives")
        elif operation in PAIRWISE:
            self._forget(f"{operation} was used, which cannot be done again one by one")
        if self.why_not:
            return Entry(group, operation, arguments, [])
        entry = Entry(group, operation, arguments, [self._copy(tensor) for tensor in inputs])
        entries.append(entry)
        return entry

    def strike(self, entry: Entry) -> None:
        """It never happened."""
        entries = self._steps[self._step]
        if entry in entries:
            entries.remove(entry)

    def since(self, step: int) -> list[Entry]:
        return [entry for number in sorted(self._steps) if number >= step for entry in self._steps[number]]

    def _forget(self, why: str) -> None:
        self.why_not = self.why_not or why
        for number in self._steps:
            self._steps[number] = []
        self._buffers.clear()

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        free = self._buffers[_kind(tensor)]
        copy = free.pop() if free else torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        with torch.no_grad():
            return copy.copy_(tensor)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def _inputs(operation: str, arguments: Sequence[Any]) -> Iterator[torch.Tensor]:
    return tensors_in(tuple(arguments[1:] if operation in OUTPUT_FIRST else arguments))


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.device


def _mapped(value: Any, inputs: dict[int, torch.Tensor]) -> Any:
    """The same arguments with tensors of their own, inputs as they were."""
    if isinstance(value, torch.Tensor):
        own = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        return own.copy_(inputs[id(value)]) if id(value) in inputs else own
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, inputs) for item in value)
    return value
