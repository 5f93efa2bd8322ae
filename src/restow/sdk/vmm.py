"""CUDA graphs, which hold addresses, and a swap that keeps addresses, where torch_memory_saver is installed.

That package has not been tried by us (docs/gpu.md); knowing of graphs has.
"""

from __future__ import annotations

import gc
import importlib.util
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from restow.errors import Refused
from restow.sdk.boxes import StateTable
from restow.sdk.residents import Source, device_of, find


class VmmSwap:
    """Constant addresses on CUDA, by torch_memory_saver (cuMemMap). What is made inside `region()` can leave, all at once.

    Not tried by us: the package was not there when we had a GPU. Others measured 2.4 GiB/s out and 5.3 back, where a plain
    copy does 24 (its issue 111), so it is for jobs with CUDA graphs, which StorageSwap refuses. Graphs must be captured by
    `torch_memory_saver.cuda_graph`, and NCCL must not register buffers with them (NCCL_GRAPH_REGISTER=0), or a replay hangs.
    """

    TAG = "restow"

    def __init__(self, source: Source):
        self._source: Source = source if isinstance(source, StateTable) or callable(source) else list(source)
        self._is_used = False
        self._out_bytes = 0

    @contextmanager
    def region(self) -> Iterator[None]:
        """Build the model, and make the first optimizer step, in here."""
        if not _saver_is_installed():
            raise Refused(f"this job's memory cannot be swapped: {self.why_not()}")
        saver = _saver()
        saver.hook_mode = "torch"
        saver.retain_cpu_backup = True  # else the pinned copy is allocated at each pause; versions without it ignore this
        self._is_used = True
        with saver.region(tag=self.TAG, enable_cpu_backup=True):
            yield

    def out(self, nbytes: int | None = None) -> int:
        if why := self.why_not():
            raise Refused(f"this job's memory cannot be swapped: {why}")
        if self._out_bytes or (nbytes is not None and nbytes <= 0):
            return 0
        leaving = sum(resident.nbytes for resident in find(self._source))
        torch.cuda.synchronize()
        _saver().pause(self.TAG)
        self._out_bytes = leaving
        return leaving

    def back(self) -> int:
        coming = self._out_bytes
        if coming:
            _saver().resume(self.TAG)
            torch.cuda.synchronize()
            self._out_bytes = 0
        return coming

    def resident_bytes(self) -> int:
        return 0 if self._out_bytes else sum(resident.nbytes for resident in find(self._source))

    def swapped_bytes(self) -> int:
        return self._out_bytes

    def why_not(self) -> str:
        if not _saver_is_installed():
            return "constant addresses on CUDA need the package torch_memory_saver, which is not installed"
        if self._out_bytes:
            return ""
        if device_of(find(self._source)).type != "cuda":
            return "VmmSwap is for CUDA, and this job's state is on the CPU; MappedSwap is for that"
        if not self._is_used:
            return "nothing was made inside region(); build the model and the optimizer's state in it"
        return ""


def _saver_is_installed() -> bool:
    return importlib.util.find_spec("torch_memory_saver") is not None


def _saver() -> Any:
    return importlib.import_module("torch_memory_saver").torch_memory_saver


# ---------------------------------------------------------------- CUDA graphs


graphs: weakref.WeakSet[Any] = weakref.WeakSet()  # that were captured in this process and still live, once somebody watches
_capture_begin: Callable[..., None] | None = None  # torch's own, once we watch


def watch_captures() -> None:
    """Know of every CUDA graph: those that live now by a look at all objects (once, some 10 ms), later ones by their capture."""
    global _capture_begin
    if _capture_begin is not None or not torch.cuda.is_available():
        return
    # by type: isinstance asks each stranger for its class, and some warn
    living = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.cuda.CUDAGraph)]
    graphs.update(living)
    original = _capture_begin = torch.cuda.CUDAGraph.capture_begin

    def capture_begin(graph: Any, *args: Any, **kwargs: Any) -> None:
        graphs.add(graph)
        original(graph, *args, **kwargs)

    torch.cuda.CUDAGraph.capture_begin = capture_begin  # type: ignore[assignment]
