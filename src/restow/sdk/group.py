"""The group that a job's collectives go through: constant rank and size, replaceable inner.

DDP, FSDP, hooks, optimizers and compiled graphs hold this object for the whole life of the process; a switch replaces only
what is inside. `SoloInner` is what a twin rehearses on: it is alone and pretends to be whole. Knows nothing of generations
or of how an inner is agreed on; see switch.py.

Needs no private torch API but the Python trampoline of `ProcessGroup` (torch >= 2.13).
"""

from __future__ import annotations

# mypy: disable-error-code="override"
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist

BACKEND = "restow"
# gloo's own default; a dead peer breaks the connection at once, so this only bounds a silent network
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


# a collective as torch asks a group for it → as it asks a library for it
OPERATIONS = {
    **{name: name for name in (
        "allreduce", "broadcast", "allreduce_coalesced", "reduce", "allgather", "_allgather_base", "reduce_scatter",
        "_reduce_scatter_base", "gather", "scatter", "alltoall", "alltoall_base", "send", "recv", "recv_anysource", "barrier",
    )},
    "all_gather_single": "_allgather_base", "reduce_scatter_single": "_reduce_scatter_base",
}  # fmt: skip


class Inner(Protocol):
    """What a SwitchGroup delegates to: the collectives of torch's Backend, by device type of the tensors."""

    def backend(self, device_type: str) -> Any: ...

    def launched(self) -> int: ...

    def direct(self) -> Mapping[str, Callable[..., Any]]: ...

    def close(self) -> None: ...


class NetInner:
    """Real communicators between all ranks of one generation. `libraries`: see `collective_libraries`."""

    def __init__(self, store: dist.Store, rank: int, size: int, libraries: Mapping[str, str] | None = None):
        self._backends: dict[str, Any] = {}
        self._direct: dict[str, Callable[..., Any]] = {}
        self._libraries = dict(libraries or {"cpu": "gloo"})
        for device_type, library in self._libraries.items():
            prefixed = dist.PrefixStore(device_type, store)
            if library == "nccl":
                options = dist.ProcessGroupNCCL.Options()
                options._timeout = COLLECTIVE_TIMEOUT
                self._backends[device_type] = dist.ProcessGroupNCCL(prefixed, rank, size, options)
            else:
                self._backends[device_type] = dist.ProcessGroupGloo(prefixed, rank, size, timeout=COLLECTIVE_TIMEOUT)

    def backend(self, device_type: str) -> Any:
        return self._backends.get(device_type) or self._backends["cpu"]

    def launched(self) -> int:
        """Collectives so far: as many on each rank that stands at the same point of the script."""
        return sum(backend._get_sequence_number_for_group() for backend in list(self._backends.values()))

    def direct(self) -> Mapping[str, Callable[..., Any]]:
        """Operation → the library's own function; empty where the tensors' device decides which library it is."""
        if not self._direct and len(self._backends) == 1:
            (backend,) = self._backends.values()
            # partial, since torch's trampoline takes a method that is written in C++ for one that nobody has overridden
            self._direct = {name: partial(getattr(backend, own)) for name, own in OPERATIONS.items()}
        return self._direct

    def close(self) -> None:
        self._direct = {}
        for device_type, backend in self._backends.items():
            if self._libraries[device_type] == "nccl":
                backend.abort()
        self._backends = {}


class DoneWork(dist.Work):
    """A collective that has already happened."""

    def __init__(self, result: Any):
        super().__init__()
        self._future: torch.futures.Future[Any] = torch.futures.Future()
        self._future.set_result(result)

    def wait(self, timeout: timedelta | None = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True

    def get_future(self) -> torch.futures.Future[Any]:
        return self._future


class SoloInner:
    """Nobody else is there: what others would have sent is replaced by our own tensors, shapes as in the real thing."""

    def backend(self, device_type: str) -> Any:
        return self

    def launched(self) -> int:
        return 0

    def direct(self) -> Mapping[str, Callable[..., Any]]:
        return {}

    def close(self) -> None:
        return None

    def allreduce(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:
        return DoneWork(tensors)

    def broadcast(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:
        return DoneWork(tensors)

    def reduce(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:
        return DoneWork(tensors)

    def allreduce_coalesced(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:
        return DoneWork(tensors)

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        for row, own in zip(outputs, inputs, strict=True):
            for output in row:
                output.copy_(own)
        return DoneWork(outputs)

    def _allgather_base(self, output: torch.Tensor, own: torch.Tensor, opts: Any = None) -> dist.Work:
        output.view(-1, own.numel()).copy_(own.reshape(1, -1).expand(output.numel() // max(own.numel(), 1), -1))
        return DoneWork([output])

    def reduce_scatter(
        self, outputs: list[torch.Tensor], inputs: list[list[torch.Tensor]], opts: Any = None
    ) -> dist.Work:
        for output, row in zip(outputs, inputs, strict=True):
            output.copy_(row[0])
        return DoneWork(outputs)

    def _reduce_scatter_base(self, output: torch.Tensor, own: torch.Tensor, opts: Any = None) -> dist.Work:
        output.copy_(own.reshape(-1)[: output.numel()].view_as(output))
        return DoneWork([output])

    def gather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        return self.allgather(outputs, inputs) if outputs else DoneWork(outputs)

    def scatter(self, outputs: list[torch.Tensor], inputs: list[list[torch.Tensor]], opts: Any = None) -> dist.Work:
        for output, row in zip(outputs, inputs, strict=False):
            output.copy_(row[0])
        return DoneWork(outputs)

    def alltoall(self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        for output, own in zip(outputs, inputs, strict=True):
            output.copy_(own.reshape(-1)[: output.numel()].view_as(output))
        return DoneWork(outputs)

    def alltoall_base(self, output: torch.Tensor, own: torch.Tensor, *_: Any) -> dist.Work:
        output.copy_(own.reshape(-1)[: output.numel()].view_as(output))
        return DoneWork([output])

    def send(self, tensors: list[torch.Tensor], *_: Any) -> dist.Work:
        return DoneWork(tensors)

    def recv(self, tensors: list[torch.Tensor], *_: Any) -> dist.Work:
        return DoneWork(tensors)

    def recv_anysource(self, tensors: list[torch.Tensor], *_: Any) -> dist.Work:
        return DoneWork(tensors)

    def barrier(self, opts: Any = None) -> dist.Work:
        return DoneWork(None)


class SwitchGroup(dist.ProcessGroup):
    """The process group that a job sees. `swap` is the whole switch as far as torch is concerned (40 microseconds)."""

    def __init__(self, name: str, ranks: Sequence[int], rank: int, inner: Inner):
        super().__init__(rank, len(ranks))  # type: ignore[call-arg]
        self.key = name  # the same on every rank: its prefix in the stores
        self.ranks = tuple(ranks)  # global ranks, in group order
        self._rank, self._size = rank, len(ranks)
        self.inner = inner
        self.bytes_given = 0  # payload of the collectives that were seen
        self.last_launch_s = 0.0  # time.perf_counter() of the last collective ...
        self.waited_at_launch_s = 0.0  # ... and `waited_s` then
        self.trace: list[tuple[str, int, str]] | None = None  # (operation, elements, dtype) while recording
        self.rehearsed: list[tuple[str, int, str]] = []  # the trace of one typical step
        self.guard: Any = None  # while a switch is near: keeps what is given, see guard.py

    def swap(self, inner: Inner) -> Inner:
        """Replace the inner; returns the old one, untouched, so that it can be put back."""
        self.see()
        old, self.inner = self.inner, inner
        return old

    def see(self) -> None:
        """Every collective passes `_run` from now on."""
        for name in OPERATIONS:
            self.__dict__.pop(name, None)

    def overlook(self) -> None:
        """Until `see`, collectives go straight to the inner, without a line of Python: while nothing wants to know of them."""
        self.__dict__.update(self.inner.direct())

    # ------------------------------------------------------------ constant identity

    def getRank(self) -> int:
        return self._rank

    def getSize(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size

    def getBackendName(self) -> str:
        return BACKEND

    def abort(self) -> None:
        self.see()
        self.inner.close()

    def shutdown(self) -> None:
        self.see()
        self.inner.close()

    # ------------------------------------------------------------ collectives

    def _run(self, operation: str, tensors: Sequence[torch.Tensor], *arguments: Any) -> dist.Work:
        first = tensors[0] if tensors else None
        for tensor in tensors:
            self.bytes_given += tensor.numel() * tensor.element_size()
        if self.trace is not None:
            self.trace.extend((operation, t.numel(), str(t.dtype)) for t in tensors)
        self.last_launch_s, self.waited_at_launch_s = time.perf_counter(), waited_s
        device_type = first.device.type if first is not None else "cpu"

        def start() -> dist.Work:
            if self.guard is not None:
                return self.guard.run(self, operation, arguments)
            backend = self.inner.backend(device_type)
            if sentinel is None:
                return getattr(backend, operation)(*arguments)
            try:
                return sentinel.carry(lambda: getattr(backend, operation)(*arguments), operation)
            except RuntimeError as error:  # a peer is gone already
                sentinel.failed(error)
                raise

        work = start() if link is None else link.launch(start, at_once=self.guard is not None)
        return work if passage is None else passage.carry(work)

    def allreduce(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:
        return self._run("allreduce", tensors, tensors, opts or dist.AllreduceOptions())

    def broadcast(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:
        return self._run("broadcast", tensors, tensors, opts or dist.BroadcastOptions())

    def allreduce_coalesced(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:
        return self._run("allreduce_coalesced", tensors, tensors, opts or dist.AllreduceCoalescedOptions())

    def reduce(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:
        return self._run("reduce", tensors, tensors, opts or dist.ReduceOptions())

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        return self._run("allgather", inputs, outputs, inputs, opts or dist.AllgatherOptions())  # type: ignore[attr-defined]

    def _allgather_base(self, output: torch.Tensor, own: torch.Tensor, opts: Any = None) -> dist.Work:
        return self._run("_allgather_base", [own], output, own, opts or dist.AllgatherOptions())  # type: ignore[attr-defined]

    all_gather_single = _allgather_base  # type: ignore[assignment]

    def reduce_scatter(
        self, outputs: list[torch.Tensor], inputs: list[list[torch.Tensor]], opts: Any = None
    ) -> dist.Work:
        return self._run("reduce_scatter", inputs[0], outputs, inputs, opts or dist.ReduceScatterOptions())

    def _reduce_scatter_base(self, output: torch.Tensor, own: torch.Tensor, opts: Any = None) -> dist.Work:
        return self._run("_reduce_scatter_base", [own], output, own, opts or dist.ReduceScatterOptions())

    reduce_scatter_single = _reduce_scatter_base  # type: ignore[assignment]

    def gather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        return self._run("gather", inputs, outputs, inputs, opts or dist.GatherOptions())

    def scatter(self, outputs: list[torch.Tensor], inputs: list[list[torch.Tensor]], opts: Any = None) -> dist.Work:
        return self._run("scatter", outputs, outputs, inputs, opts or dist.ScatterOptions())

    def alltoall(self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        return self._run("alltoall", inputs, outputs, inputs, opts or dist.AllToAllOptions())

    def alltoall_base(self, output: torch.Tensor, own: torch.Tensor, *sizes: Any) -> dist.Work:
        return self._run("alltoall_base", [own], output, own, *sizes)

    def send(self, tensors: list[torch.Tensor], destination: int, tag: int = 0) -> dist.Work:
        return self._run("send", tensors, tensors, destination, tag)

    def recv(self, tensors: list[torch.Tensor], source: int, tag: int = 0) -> dist.Work:
        return self._run("recv", tensors, tensors, source, tag)

    def recv_anysource(self, tensors: list[torch.Tensor], tag: int = 0) -> dist.Work:
        return self._run("recv_anysource", tensors, tensors, tag)

    def barrier(self, opts: Any = None) -> dist.Work:
        return self._run("barrier", [], opts or dist.BarrierOptions())


def trace_hash(trace: Sequence[tuple[str, int, str]]) -> str:
    """A short hash of the collectives of one step, in order: equal on every rank of a data-parallel job."""
    return hashlib.sha256(repr(list(trace)).encode()).hexdigest()[:16]


passage: Any = None
"""This process's way through its device's gate, see passage.py; None: there is no gate. Set by the worker."""

link: Any = None
"""This process's way through the gate of the link, see link.py; None: nothing waits for it. Set by the worker."""

waited_s = 0.0
"""Seconds that this process has waited so far for collectives one by one (not for gradients: DDP waits for all of them at once)."""

sentinel: Any = None
"""This process's watch over its collectives, see sentinel.py; None: a lost rank ends the job. Set by the worker."""

groups: list[SwitchGroup] = []
"""Every SwitchGroup of this process, in the order in which they were made: the same order on every rank."""

InnerFactory = Callable[[str, int, int], Inner]


def install(make_inner: InnerFactory) -> None:
    """Make `backend="restow"` known to torch; each new group asks `make_inner(name, rank, size)` for its inner."""

    def create(options: Any, _backend_options: Any) -> SwitchGroup:
        name = f"group{len(groups)}"
        inner = make_inner(name, options.group_rank, options.group_size)
        group = SwitchGroup(name, options.global_ranks_in_group or range(options.group_size), options.group_rank, inner)
        groups.append(group)
        return group

    dist.Backend.register_backend(BACKEND, create, extended_api=True, devices=["cpu", "cuda"])


def collective_libraries(cuda: str = "nccl") -> dict[str, str]:
    """Device type of a tensor → library that carries it in this process. `cuda="gloo"` where several ranks of a job share one
    GPU: NCCL refuses that, gloo copies through the host."""
    if not torch.cuda.is_available():
        return {"cpu": "gloo"}
    return {"cpu": "gloo", "cuda": cuda if dist.is_nccl_available() else "gloo"}
