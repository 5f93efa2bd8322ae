"""Moving a job's training state out of its device's memory and back, bit by bit, so that another job can have the room.

    swap = StorageSwap(table)
    swap.out(4 << 30)     # at least 4 GB, optimizer moments first
    ...                   # another process's turn
    swap.back()

Between the two nobody may touch the state: a tensor whose storage is out has an address of nothing (StorageSwap: reading it
ends the process) or reads as anything (MappedSwap). Tensors that others hold (DDP's reducer, a view in a list, a closure) share the
storage, so they are whole again afterwards; their versions, and therefore autograd, notice nothing.

Why not more: a swap is for turns of seconds (`quantum_s`), not for phases inside a step. Knows nothing of turns and gates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from restow.errors import Refused, ScriptError, SpecError
from restow.sdk import arena, vmm
from restow.sdk.boxes import StateTable
from restow.sdk.residents import Kind, Resident, Source, find

__all__ = ["Kind", "MappedSwap", "Resident", "Source", "StorageSwap", "Swap", "quantum_s"]


class Swap(Protocol):
    """The memory of one process on one device. All numbers are bytes of the device."""

    def out(self, nbytes: int | None = None) -> int:
        """Move out at least so many (None: everything that can), in the order of `Kind`; returns what left, which is less
        where less is there. Raises Refused or ScriptError with the words of `why_not`; then, as after any error, nothing left."""

    def back(self) -> int:
        """Have everything back in its place; returns what came. After an error (the room is not free yet) all that was
        out is still out and safe: call it again."""

    def resident_bytes(self) -> int:
        """State that is on the device now."""

    def swapped_bytes(self) -> int:
        """State that is out."""

    def why_not(self) -> str:
        """One line on why this back end cannot be used for this job as it is now; empty if it can."""


def quantum_s(swap_s: float, budget: float) -> float:
    """The shortest turn for which swapping stays within `budget` (a share of the turn): swap_s / budget.

    `swap_s` is what one turn costs: back at its beginning and out at its end. Of a turn of this length 1 - budget is left
    for training. Source: the slice rule of research/multiplexing.md, 6d; nvshare's fixed 30 s is the same idea without measuring.
    """
    if not 0 < budget < 1:
        raise SpecError(f"the budget of swapping is {budget}; it is a share of a turn, such as 0.05")
    return max(0.0, swap_s) / budget


# ---------------------------------------------------------------- what both back ends share


_ALIGN = 64  # of a storage in the arena: a cache line


@dataclass(frozen=True, slots=True)
class _Parked:
    resident: Resident
    start: int  # of the part of the storage that is out
    nbytes: int
    offset: int  # in the arena; -1: nothing was kept, zeros come back


class _ArenaSwap:
    """Who leaves, and where to. Copies are made before anything is let go, and forgotten after everything is back."""

    def __init__(self, source: Source, device: torch.device | str | None = None):
        self._source: Source = source if isinstance(source, StateTable) or callable(source) else list(source)
        self._device = torch.device(device) if device is not None else None
        if self._device is not None and self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._arena: arena.Arena | None = None
        self._away: dict[int, _Parked] = {}  # storage → where it is, in the order in which they left
        self._known: list[Resident] = []  # found when the first of them left: while one is out, nobody is asked again
        self._used = 0  # bytes of the arena
        vmm.watch_captures()

    def out(self, nbytes: int | None = None) -> int:
        residents = self._residents()
        if why := self._objection(residents):
            raise Refused(f"this job's memory cannot be swapped: {why}")
        leaving, total, used = [], 0, self._used
        for resident in residents:
            if nbytes is not None and total >= nbytes:
                break
            start, length = self._part(resident)
            if length and resident.key not in self._away:
                is_kept = resident.kind is not Kind.SPENT
                leaving.append(_Parked(resident, start, length, used if is_kept else -1))
                total += length
                used += -(-length // _ALIGN) * _ALIGN if is_kept else 0
        if not leaving:
            return 0
        device = leaving[0].resident.storage.device
        self._arena = self._arena or arena.Arena(pinned=device.type == "cuda")
        self._arena.reserve(used)
        _wait_for(device)
        arena.copy(list(self._pairs(leaving)), device)
        self._known, self._used = residents, used
        for parked in leaving:
            self._away[parked.resident.key] = parked
            self._vacate(parked)
        _give_back(device)
        return total

    def back(self) -> int:
        coming = list(self._away.values())
        if not coming:
            return 0
        device = coming[0].resident.storage.device
        self._occupy(coming)
        arena.copy([(here, there) for there, here in self._pairs(coming)], device)
        _wait_for(device)
        self._away.clear()
        self._known, self._used = [], 0
        return sum(parked.nbytes for parked in coming)

    def resident_bytes(self) -> int:
        return sum(resident.nbytes for resident in self._residents()) - self.swapped_bytes()

    def swapped_bytes(self) -> int:
        return sum(parked.nbytes for parked in self._away.values())

    def reserve(self) -> int:
        """Make the arena for all that is on the device now, ahead of the first `out`, which would have to wait for it (pinning
        takes seconds per 10 GB). From a thread, if one likes; returns its bytes."""
        residents = self._residents()
        if residents and not self._objection(residents):
            self._arena = self._arena or arena.Arena(pinned=residents[0].storage.device.type == "cuda")
            self._arena.reserve(sum(-(-each.nbytes // _ALIGN) * _ALIGN for each in residents if each.kind is not Kind.SPENT))
        return self.arena_bytes()

    def arena_bytes(self) -> int:
        """Host memory that this takes, in or out: a node must have it beside what the jobs need."""
        return self._arena.capacity_bytes if self._arena else 0

    def why_not(self) -> str:
        try:
            return self._objection(self._residents())
        except ScriptError as error:
            return str(error)

    def close(self) -> None:
        """Give the arena back. Only with everything back in its place."""
        assert not self._away, "state is out: back() first"
        if self._arena:
            self._arena.close()
            self._arena = None

    def _residents(self) -> list[Resident]:
        return self._known if self._away else find(self._source, self._device)

    def _pairs(self, all_parked: Sequence[_Parked]) -> Iterator[arena.Pair]:
        """(place in the arena, bytes of the storage); a storage that crosses two segments comes in two pairs."""
        assert self._arena
        for parked in all_parked:
            if parked.offset >= 0:
                here, done = _bytes_of(parked), 0
                for there in self._arena.views(parked.offset, parked.nbytes):
                    yield there, here[done : done + there.numel()]
                    done += there.numel()

    # the back ends differ in these

    def _objection(self, residents: Sequence[Resident]) -> str:
        raise NotImplementedError

    def _part(self, resident: Resident) -> tuple[int, int]:
        """(start, bytes) of what of a storage can leave."""
        raise NotImplementedError

    def _vacate(self, parked: _Parked) -> None:
        raise NotImplementedError

    def _occupy(self, all_parked: Sequence[_Parked]) -> None:
        raise NotImplementedError


def _bytes_of(parked: _Parked) -> torch.Tensor:
    return arena.flat(parked.resident.storage)[parked.start : parked.start + parked.nbytes]


def _foreign(resident: Resident) -> str:
    """Why this is not memory that torch took for this process alone; empty if it is, or on CUDA, where we cannot tell."""
    storage = resident.storage
    if storage.device.type == "cpu" and storage.is_shared():
        return f"{resident.name} lies in shared memory, which other processes see; keep such tensors out of the job's state"
    if storage.device.type == "cpu" and not storage.resizable():
        return f"{resident.name} lies in memory that torch did not allocate (NumPy, a mapped file); give it to torch by .clone()"
    return ""


def _wait_for(device: torch.device) -> None:
    """Kernels of all streams, not only ours: a collective may still be reading a gradient."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _give_back(device: torch.device) -> None:
    """Let other processes have what torch's allocator keeps for us."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


# ---------------------------------------------------------------- back end 1: any address will do


class StorageSwap(_ArenaSwap):
    """Storages are resized to nothing and made anew, elsewhere. The back end for everything without CUDA graphs.

    On a CPU, which only stands for a device, malloc decides: large pieces go back to the kernel, and fresh pages come, which
    halves the speed of `back`; arena.keep_freed_memory() makes it keep them.
    """

    def _objection(self, residents: Sequence[Resident]) -> str:
        for resident in residents:
            if why := _foreign(resident):
                return why
        if vmm.graphs and any(resident.storage.device.type == "cuda" for resident in residents):
            return f"{len(vmm.graphs)} CUDA graphs hold addresses, and storages come back at other ones; VmmSwap keeps them"
        return ""

    def _part(self, resident: Resident) -> tuple[int, int]:
        return 0, resident.nbytes

    def _vacate(self, parked: _Parked) -> None:
        parked.resident.storage.resize_(0)

    def _occupy(self, all_parked: Sequence[_Parked]) -> None:
        grown: list[torch.UntypedStorage] = []
        try:
            for parked in all_parked:
                storage = parked.resident.storage
                if storage.nbytes() != parked.nbytes:
                    grown.append(storage)
                    storage.resize_(parked.nbytes)
        except (RuntimeError, MemoryError):  # no room yet; take none of it
            for storage in grown:
                storage.resize_(0)
            _give_back(all_parked[0].resident.storage.device)
            raise
        for parked in all_parked:
            if parked.resident.storage.device.type == "cpu":
                arena.want_huge_pages(parked.resident.storage.data_ptr(), parked.nbytes)
            if parked.offset < 0:
                _bytes_of(parked).zero_()


# ---------------------------------------------------------------- back end 2: the same addresses


class MappedSwap(_ArenaSwap):
    """The pages under a storage go, its address stays: what CUDA graphs need, on the CPU. VmmSwap is it for CUDA.

    `lazily`: the kernel takes them when somebody needs memory. What it did not take comes back at the speed of a plain
    copy, what it took (and all, the first time) at that of page faults, a quarter of it. Until then it counts as this
    process's (RSS). Only whole pages can go, so the ends of each storage, and storages of less than a page, stay. Nothing has
    to be moved into
    memory of our own first, so what others hold (DDP's buckets) is no special case: any private memory will do.
    """

    def __init__(self, source: Source, device: torch.device | str | None = None, lazily: bool = True):
        super().__init__(source, device)
        self._lazily = lazily
        self._on_huge_pages: set[int] = set()  # storages that have gone at once before, the only way to come back on huge pages

    def _objection(self, residents: Sequence[Resident]) -> str:
        for resident in residents:
            if resident.storage.device.type != "cpu":
                return f"{resident.name} is on {resident.storage.device}; MappedSwap is for the CPU, VmmSwap for CUDA"
            if why := _foreign(resident):
                return why
            if resident.storage.is_pinned():
                return f"{resident.name} is pinned, and the kernel does not let go of pinned pages"
        return ""

    def _part(self, resident: Resident) -> tuple[int, int]:
        address = resident.storage.data_ptr()
        start, length = arena.whole_pages(address, resident.nbytes)
        return start - address, length

    def _vacate(self, parked: _Parked) -> None:
        key, address = parked.resident.key, parked.resident.storage.data_ptr() + parked.start
        arena.free_pages(address, parked.nbytes, self._lazily and key in self._on_huge_pages)
        self._on_huge_pages.add(key)

    def _occupy(self, all_parked: Sequence[_Parked]) -> None:
        for parked in all_parked:
            arena.want_huge_pages(parked.resident.storage.data_ptr() + parked.start, parked.nbytes)
            if parked.offset < 0:
                _bytes_of(parked).zero_()
