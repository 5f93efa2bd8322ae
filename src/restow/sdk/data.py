"""Batches for ever, from any step on: `Feed` goes over a loader epoch by epoch and can be put at a step.

- A map-style DataLoader keeps everything it was given (workers, collate_fn, pinning, ...) but its order comes from
  order.py, so a skip loads nothing. In worker processes the generators are seeded for each sample from (seed, epoch,
  position), so random augmentation comes out the same after a skip; without workers the process's own generators are
  used, which travel as state. Workers stay alive across epochs (as with persistent_workers=True); batches come in
  order (in_order=False is not kept).
- Anything with a length and an index (a list, a range, a tensor) is taken item by item, the same on each rank.
- Other iterables (DataLoader over an IterableDataset, ...) are repeated from the start of the epoch and what was seen
  is dropped, under generators of their own; with state_dict and load_state_dict (torchdata's StatefulDataLoader) that
  is used instead. They share out among ranks by themselves or not at all, as under torchrun.
- A generator cannot be repeated: it feeds, but `why_not` says that it cannot move.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from types import GeneratorType
from typing import Any, Protocol, cast

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from restow.errors import ScriptError
from restow.sdk.order import Order
from restow.sdk.randomness import Bubble, mix, seed_all


class Feed:
    """An endless iterator over the batches of `loader` for one rank; step n gives the n-th batch since the run began.

    `start` is a `position()` of the same rank; `start_step` a step. `batches_per_epoch` is None where epochs may differ.
    `workers_most`: of a job that may have another world size, the greatest; see order.py. Raises ScriptError for a loader that
    cannot be shared out anew.
    """

    def __init__(self, loader: Iterable[Any], seed: int, rank: int, world_size: int, start_step: int = 0,
                 start: Mapping[str, Any] | None = None, workers_most: int = 0):
        self._loader, self._gang = loader, (rank, world_size, workers_most)
        self.seed = seed
        self._source: _Source = _source(loader, seed, *self._gang)
        self.step = 0
        if start is not None:
            self.restore(start)
        elif start_step:
            self.seek(start_step)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = self._source.next(self.step)
        self.step += 1
        return batch

    @property
    def why_not(self) -> str:
        """Why this loader cannot be put at a step, with what would help; empty: it can."""
        return self._source.why_not

    @property
    def note(self) -> str:
        """One line that the user should see once; empty: nothing to say."""
        return self._source.note

    @property
    def batches_per_epoch(self) -> int | None:
        return self._source.batches_per_epoch

    def position(self) -> dict[str, Any]:
        """Where this feed is: plain values, and the loader's own state_dict if it has one."""
        epoch, batch = self._source.locate(self.step)
        return {"step": self.step, "epoch": epoch, "batch": batch, "seed": self.seed, "loader": self._source.state()}

    def restore(self, position: Mapping[str, Any]) -> None:
        """Go where `position()` was taken. What `seek` prepared for this very step is kept."""
        if position["seed"] != self.seed:
            self.close()
            self.seed = position["seed"]
            self._source = _source(self._loader, self.seed, *self._gang)
        self.seek(position["step"], position)

    def seek(self, step: int, near: Mapping[str, Any] | None = None) -> None:
        """Go to `step` and begin to load it where there are worker processes. `near` is any earlier position of the same
        rank: it saves repeating epochs of unknown length. Raises ScriptError if `why_not`."""
        if step < 0:
            raise ScriptError(f"step is {step}; a feed begins at step 0")
        if self.why_not:
            if step == self.step:
                return
            raise ScriptError(self.why_not)
        self._source.seek(step, near)
        self.step = step

    def close(self) -> None:
        """End the loader's workers; the next batch starts them anew."""
        self._source.close()


class _Source(Protocol):
    """What Feed needs of each kind of loader. `step` is the one that comes next."""

    why_not: str
    note: str
    batches_per_epoch: int | None

    def next(self, step: int) -> Any: ...
    def seek(self, step: int, near: Mapping[str, Any] | None) -> None: ...
    def locate(self, step: int) -> tuple[int, int]: ...
    def state(self) -> Any: ...
    def close(self) -> None: ...


def _source(loader: Any, seed: int, rank: int, world_size: int, workers_most: int) -> _Source:
    if workers_most and (not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset)):
        raise ScriptError(f"the loader is a {type(loader).__name__}, which cannot be shared out anew among more or fewer workers; "
                          "use a DataLoader over a dataset with a length, or a fixed number of workers")
    if callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None)):
        return _Iterated(loader, seed, rank)
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        return _Mapped(loader, Order(loader, seed, rank, world_size, workers_most))
    if hasattr(loader, "__len__") and hasattr(loader, "__getitem__") and not isinstance(loader, Mapping):
        return _Listed(loader)
    if not hasattr(loader, "__iter__"):
        raise ScriptError(f"the loader is a {type(loader).__name__}, which cannot be iterated; give a DataLoader or an iterable")
    return _Iterated(loader, seed, rank)


class _Listed:
    """Anything with a length and an index."""

    why_not = note = ""

    def __init__(self, items: Any):
        if not len(items):
            raise ScriptError(f"the loader is an empty {type(items).__name__}; give it at least one batch")
        self._items = items
        self.batches_per_epoch: int | None = len(items)

    def next(self, step: int) -> Any:
        return self._items[step % len(self._items)]

    def seek(self, step: int, near: Mapping[str, Any] | None) -> None:
        pass  # there is nothing to prepare

    def locate(self, step: int) -> tuple[int, int]:
        return divmod(step, len(self._items))

    def state(self) -> Any:
        return None

    def close(self) -> None:
        pass  # nothing was opened


# ---------------------------------------------------------------- map-style DataLoader


class _Mapped:
    """An equal DataLoader whose batches are those of an Order, from any step on, never ending."""

    why_not = ""

    def __init__(self, loader: DataLoader[Any], order: Order):
        self._order = order
        self._at = 0  # the step that the iterator gives next
        self._iterator: Iterator[Any] | None = None
        self._plan = _Plan(order, with_tickets=loader.num_workers > 0)
        self._loader = copy.copy(loader)  # a subclass stays what it is
        fields = self._loader.__dict__  # torch forbids to set these on a finished loader, for its users' sake
        fields["batch_sampler" if loader.batch_sampler is not None else "sampler"] = self._plan
        fields["generator"] = torch.Generator().manual_seed(mix(order.seed, -1))  # else each start draws from the job's own
        fields["persistent_workers"] = False  # we keep the iterator ourselves
        fields["_iterator"] = None
        fields["in_order"] = True
        self._ahead = 0  # batches that workers may be ahead
        if loader.num_workers > 0:
            fields["dataset"] = _Seeded(loader.dataset, order.seed)
            fields["worker_init_fn"] = _Begin(loader.worker_init_fn)
            self._ahead = loader.num_workers * (loader.prefetch_factor or 2)
        self.note = order.note
        self.batches_per_epoch = order.batches_per_epoch

    def next(self, step: int) -> Any:
        if self._iterator is None or self._at != step:
            self._start(step)
        batch = next(self._iterator)  # type: ignore[arg-type]
        self._at += 1
        return batch

    def seek(self, step: int, near: Mapping[str, Any] | None) -> None:
        if near is not None:
            self._order.learn(near["epoch"], near["step"] - near["batch"])
        if self._iterator is not None and 0 <= step - self._at <= self._ahead:
            while self._at < step:  # they are loaded or being loaded: nearer than a new start of the workers
                next(self._iterator)
                self._at += 1
        elif self._ahead:
            self._start(step)
        else:
            self.close()  # no workers: nothing can be loaded ahead without drawing from the job's generators

    def locate(self, step: int) -> tuple[int, int]:
        return self._order.locate(step)

    def state(self) -> Any:
        return None

    def close(self) -> None:
        _end(self._iterator)
        self._iterator = None

    def _start(self, step: int) -> None:
        self.close()
        self._plan.start = self._order.locate(step)
        self._iterator = iter(self._loader)
        self._at = step


class _Plan:
    """What the DataLoader takes for its batch sampler."""

    def __init__(self, order: Order, with_tickets: bool):
        self._order, self._with_tickets = order, with_tickets
        self.start = (0, 0)

    def __iter__(self) -> Iterator[Any]:
        for indices, epoch, position in self._order.batches(*self.start):
            yield (indices, epoch, position, self._order.stride) if self._with_tickets else indices


class _Seeded:
    """In a worker process: the dataset, with the generators seeded before each sample. Is asked for tickets of _Plan."""

    def __init__(self, dataset: Any, seed: int):
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, ticket: tuple[Any, int, int, int]) -> Any:
        index, epoch, position, _ = ticket
        seed_all(mix(self.seed, epoch, position))
        return self.dataset[index]

    def __getitems__(self, ticket: tuple[list[Any], int, int, int]) -> list[Any]:
        indices, epoch, position, stride = ticket
        if getattr(self.dataset, "__getitems__", None):
            seed_all(mix(self.seed, epoch, position))
            return self.dataset.__getitems__(indices)
        samples = []
        for at, index in enumerate(indices):
            seed_all(mix(self.seed, epoch, position + at * stride))
            samples.append(self.dataset[index])
        return samples


class _Begin:
    """A worker's start: its info shows the script's own dataset, then the script's own function runs."""

    def __init__(self, then: Callable[[int], None] | None):
        self._then = then

    def __call__(self, worker: int) -> None:
        info = get_worker_info()
        assert info is not None
        object.__setattr__(info, "dataset", cast(_Seeded, info.dataset).dataset)  # frozen for everybody else
        if self._then is not None:
            self._then(worker)


# ---------------------------------------------------------------- any other iterable


class _Iterated:
    """An iterable of unknown length: its own state if it has one, else repeated and dropped."""

    note = ""
    batches_per_epoch: int | None = None

    def __init__(self, loader: Any, seed: int, rank: int):
        self._loader, self._seed, self._rank = loader, seed, rank
        self._keeps_state = callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))
        self._is_one_shot = isinstance(loader, Iterator) and not self._keeps_state
        kind = type(loader).__name__
        self.why_not = "" if not self._is_one_shot else (
            f"the loader is a {kind}, which can be read only once; give a list, a DataLoader or a class with __iter__")
        if isinstance(loader, DataLoader) and not self._keeps_state:
            self._loader = copy.copy(loader)
            self._loader.__dict__.update(persistent_workers=False, _iterator=None, in_order=True,
                                         generator=torch.Generator())
        self._has_workers = isinstance(loader, DataLoader) and loader.num_workers > 0
        self._bubble = Bubble(0)
        self._iterator: Iterator[Any] | None = None
        self._epoch = self._batch = self._at = 0
        self._starts = {0: 0}  # epoch → its first step, as far as known

    def next(self, step: int) -> Any:
        if self._at != step:
            self._repeat(step)
        return self._read()

    def _read(self) -> Any:
        while True:
            if self._iterator is None:
                self._open()
            try:
                with nullcontext() if self._keeps_state or self._has_workers else self._bubble.inside():
                    batch = next(self._iterator)  # type: ignore[arg-type]
            except StopIteration:
                if self._is_one_shot:
                    raise
                if not self._batch:
                    raise ScriptError(f"the loader, a {type(self._loader).__name__}, gives no batch in epoch "
                                      f"{self._epoch}; give it at least one") from None
                self.close()
                self._epoch, self._batch = self._epoch + 1, 0
                self._starts[self._epoch] = self._at
                continue
            self._batch += 1
            self._at += 1
            return batch

    def seek(self, step: int, near: Mapping[str, Any] | None) -> None:
        if near is not None:
            self._starts[near["epoch"]] = near["step"] - near["batch"]
        if not self._keeps_state:
            self._repeat(step)
            if self._iterator is None:
                self._open()  # so that workers begin to load
        elif near is not None and near["loader"] is not None and near["step"] <= step:
            self.close()
            self._loader.load_state_dict(near["loader"])
            self._epoch, self._batch, self._at = near["epoch"], near["batch"], near["step"]
            with Bubble(mix(self._seed, self._epoch, self._rank)).inside():  # it may draw; the job's are in place
                self._iterator = iter(self._loader)
        # else: its state is still to come; if it does not, the next batch finds its way by repeating

    def locate(self, step: int) -> tuple[int, int]:
        if self._at != step and not self._is_one_shot:
            self._repeat(step)
        return self._epoch, self._batch

    def _repeat(self, step: int) -> None:
        """Read and drop up to `step`, from here or from the nearest epoch whose beginning is known."""
        epoch, start = max((item for item in self._starts.items() if item[1] <= step), key=lambda item: item[1])
        if step < self._at or (start > self._at and not self._keeps_state):
            self.close()
            self._epoch, self._batch, self._at = epoch, 0, start
        while self._at < step:
            self._read()

    def state(self) -> Any:
        return self._loader.state_dict() if self._keeps_state else None

    def close(self) -> None:
        _end(self._iterator)
        self._iterator = None

    def _open(self) -> None:
        """The iterator of the present epoch; its randomness depends on (seed, epoch, rank) only."""
        seed = mix(self._seed, self._epoch, self._rank)
        dataset = getattr(self._loader, "dataset", None)
        for thing in (self._loader, dataset):
            if callable(set_epoch := getattr(thing, "set_epoch", None)):
                set_epoch(self._epoch)
        if isinstance(self._loader, DataLoader) and not self._keeps_state:
            self._loader.generator.manual_seed(seed)
        self._bubble = Bubble(seed)
        with self._bubble.inside():
            self._iterator = iter(self._loader)


def _end(iterator: Any) -> None:
    """End a DataLoader's workers now, not when the garbage collector comes by."""
    if callable(shut_down := getattr(iterator, "_shutdown_workers", None)):
        shut_down()
    elif isinstance(iterator, GeneratorType):
        iterator.close()  # its finally clauses
