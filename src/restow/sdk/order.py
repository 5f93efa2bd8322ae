"""Which samples each batch of a map-style DataLoader has: a function of seed, epoch and position, never of what ran before.

The script's own sampler draws the order, once per epoch, with every generator that it could use seeded from (seed, epoch).
A plain order in a job of W ranks is shared out: rank r gets positions r, r+W, r+2W, ... of it. As with torch's
DistributedSampler all ranks get the same number: the order is filled up from its own beginning, or cut if `drop_last`.
Samplers of other kinds are left alone, because they may share out already.

A job that may change its number of workers has the same batch, all workers together, whatever that is: a loader's batch_size is
that of the most workers, and fewer make the batches of several each. The samples of a step and their order do not change.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from restow.errors import ScriptError
from restow.sdk.randomness import Bubble, mix

PLAIN = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)  # exact types: one global order


class Order:
    """The batches of `loader` for one rank. `workers_most`: so many workers would make one batch_size each; 0: those there are."""

    def __init__(self, loader: DataLoader[Any], seed: int, rank: int, world_size: int, workers_most: int = 0):
        self.seed, self._rank = seed, rank
        batches: Any = loader.batch_sampler
        is_plain_batch = type(batches) is BatchSampler
        self.batch_size: int | None = batches.batch_size if is_plain_batch else None  # None: one index, or own batches
        self._drop_last: bool = batches.drop_last if is_plain_batch else loader.drop_last
        self._draws_batches = batches is not None and not is_plain_batch
        samplers: Any = loader.sampler
        self._sampler: Any = samplers if batches is None else batches.sampler if is_plain_batch else batches
        if workers_most:
            if self.batch_size is None or type(self._sampler) not in (*PLAIN, DistributedSampler):
                what = "batch_size=None" if self.batch_size is None and batches is None else type(self._sampler).__name__
                raise ScriptError(f"the loader has {what} and cannot be shared out anew among more or fewer workers; use "
                                  "batch_size with shuffle=True or one of torch's plain samplers, or a fixed number of workers")
            if type(self._sampler) is DistributedSampler:
                self._sampler = _unshared(self._sampler)
            self.batch_size *= workers_most // world_size
        self._shares = world_size if workers_most or type(self._sampler) in PLAIN else 1
        self._whole = workers_most or self._shares  # the order is filled up, or cut, to a multiple of it
        self.stride = world_size  # between the positions, in the global order, of this rank's neighbouring samples
        self.is_endless = not hasattr(type(self._sampler), "__len__")
        is_regular = type(self._sampler) in (*PLAIN, DistributedSampler)  # its len() is right and never changes
        self.batches_per_epoch: int | None = None
        if is_regular and not self._draws_batches:
            self.batches_per_epoch = self._batch_count(self._share_count(len(self._sampler)))
        if self.batches_per_epoch == 0:
            raise ScriptError(self._says_empty(len(self._sampler)))
        self._starts = {0: 0}  # epoch → its first step, where epochs differ in length
        self._drawn: tuple[int, Sequence[Any]] = (-1, ())

    @property
    def note(self) -> str:
        """One line if a job of several ranks should know that its sampler is not shared out; else empty."""
        told = getattr(self._sampler, "num_replicas", None) or hasattr(self._sampler, "set_epoch")
        if self.stride == 1 or self._shares > 1 or told:
            return ""
        return (f"{type(self._sampler).__name__} is left alone: unless it shares out by itself, each of the "
                f"{self.stride} ranks reads all of it")

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, batch in it) of `step`. Draws the orders of the epochs before where their lengths may differ."""
        if self.is_endless:
            return 0, step
        if self.batches_per_epoch:
            return divmod(step, self.batches_per_epoch)
        epoch = max(e for e, start in self._starts.items() if start <= step)
        while step - self._starts[epoch] >= (count := self._count_drawn(epoch)):
            self._starts[epoch + 1] = self._starts[epoch] + count
            epoch += 1
        return epoch, step - self._starts[epoch]

    def learn(self, epoch: int, first_step: int) -> None:
        """Somebody who was there says at which step an epoch began; saves drawing the orders before it."""
        self._starts[epoch] = first_step

    def batches(self, epoch: int, first: int) -> Iterator[tuple[Any, int, int]]:
        """From batch `first` of `epoch` on, for ever: (indices, epoch, global position of the first of them)."""
        while True:
            for indices, before in self._epoch(epoch, first):
                yield indices, epoch, self._rank + before * self.stride
            epoch, first = epoch + 1, 0

    # ------------------------------------------------------------ one epoch

    def _epoch(self, epoch: int, first: int) -> Iterator[tuple[Any, int]]:
        """The batches of one epoch from `first` on, each with the number of this rank's samples before it."""
        if self.is_endless:
            yield from self._endless(first)
            return
        drawn = self._draw(epoch)
        if self._draws_batches:
            before = sum(len(batch) for batch in drawn[:first])
            for batch in drawn[first:]:
                yield batch, before
                before += len(batch)
        elif self.batch_size is None:
            for at in range(first, len(drawn)):
                yield drawn[at], at
        else:
            for at in range(first * self.batch_size, self._batch_count(len(drawn)) * self.batch_size, self.batch_size):
                yield list(drawn[at : at + self.batch_size]), at

    def _endless(self, first: int) -> Iterator[tuple[Any, int]]:
        """A sampler without a length: one epoch that does not end; what lies before `first` is drawn and dropped."""
        bubble = Bubble(mix(self.seed, 0))
        with self._seeded_generators(0), bubble.inside():
            stream = iter(self._sampler)
        size = self.batch_size if self.batch_size is not None else 1
        count = before = 0
        while True:
            with bubble.inside():
                drawn = list(islice(stream, size))
            if not drawn:
                raise ScriptError(f"{type(self._sampler).__name__} has no len() and ended after {before} samples; "
                                  "give it a __len__ or let it go on for ever")
            batch = drawn if self.batch_size is not None else drawn[0]
            if count >= first:
                yield batch, before
            count += 1
            before += len(batch) if self._draws_batches else len(drawn)

    def _draw(self, epoch: int) -> Sequence[Any]:
        """This rank's indices (or own batches) in `epoch`; the last epoch drawn is kept."""
        if self._drawn[0] != epoch:
            for thing in (self._sampler, getattr(self._sampler, "sampler", None)):
                if callable(set_epoch := getattr(thing, "set_epoch", None)):
                    set_epoch(epoch)
            with self._seeded_generators(epoch), Bubble(mix(self.seed, epoch)).inside():
                drawn = list(self._sampler)
            if not self._draws_batches and self._whole > 1:
                drawn = self._share(drawn)
            if not (drawn if self._draws_batches else self._batch_count(len(drawn))):
                raise ScriptError(self._says_empty(len(drawn)))
            self._drawn = epoch, _compact(drawn)
        return self._drawn[1]

    def _share(self, order: list[Any]) -> list[Any]:
        total = self._share_count(len(order)) * self._shares
        while order and len(order) < total:
            order = order + order[: total - len(order)]
        return order[self._rank : total : self._shares]

    def _share_count(self, samples: int) -> int:
        """Samples of one rank out of `samples` in the global order."""
        wholes = samples // self._whole if self._drop_last else -(-samples // self._whole)
        return wholes * (self._whole // self._shares)

    def _batch_count(self, samples: int) -> int:
        if self.batch_size is None:
            return samples
        return samples // self.batch_size if self._drop_last else -(-samples // self.batch_size)

    def _count_drawn(self, epoch: int) -> int:
        drawn = self._draw(epoch)
        return len(drawn) if self._draws_batches else self._batch_count(len(drawn))

    def _says_empty(self, samples: int) -> str:
        return (f"the loader gives no batch: {samples} samples, batch_size={self.batch_size}, "
                f"drop_last={self._drop_last}, {self._shares} ranks; give more data, a smaller batch_size or "
                "drop_last=False")

    @contextmanager
    def _seeded_generators(self, epoch: int) -> Iterator[None]:
        """The sampler's own generators, seeded for this epoch; afterwards they stand where the script left them."""
        found = {id(g): g for thing in (self._sampler, getattr(self._sampler, "sampler", None))
                 if isinstance(g := getattr(thing, "generator", None), torch.Generator)}
        states = {key: g.get_state() for key, g in found.items()}
        for g in found.values():
            g.manual_seed(mix(self.seed, epoch))
        try:
            yield
        finally:
            if not self.is_endless:  # an endless one draws from it later
                for key, g in found.items():
                    g.set_state(states[key])


def _unshared(sampler: Any) -> Any:
    """A DistributedSampler that gives the whole order."""
    whole = copy.copy(sampler)
    whole.num_replicas, whole.rank = 1, 0
    whole.num_samples = whole.total_size = len(sampler.dataset)
    return whole


def _compact(order: list[Any]) -> Sequence[Any]:
    """Whole numbers as 8 bytes each instead of 40: an epoch may have many millions."""
    if all(type(index) is int for index in order):
        try:
            return array("q", order)
        except OverflowError:
            pass
    return order
