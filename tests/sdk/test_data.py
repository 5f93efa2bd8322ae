"""The order of data: the same batches after a skip, in every kind of loader, with and without workers."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    WeightedRandomSampler,
    get_worker_info,
)

from restow.errors import ScriptError
from restow.sdk.data import Feed
from restow.sdk.randomness import capture


class Numbers(Dataset):
    """n samples; with noise from all three generators if `noisy`."""

    def __init__(self, n: int, noisy: bool = False):
        self.n, self.noisy = n, noisy

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = torch.rand(1).item() + random.random() + numpy.random.rand() if self.noisy else 0.0
        return torch.tensor(index + noise / 4, dtype=torch.float64)


class Batched(Numbers):
    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        return [self[index] for index in indices]


def take(feed: Feed, count: int) -> list[list[float]]:
    batches = [next(feed) for _ in range(count)]
    return [[float(x) for x in torch.as_tensor(batch).reshape(-1)] for batch in batches]


def flat(batches: list[list[float]]) -> list[float]:
    return [x for batch in batches for x in batch]


opened: list[Feed] = []


def feed_of(*args: Any, **kwargs: Any) -> Feed:
    opened.append(Feed(*args, **kwargs))
    return opened[-1]


@pytest.fixture(autouse=True)
def no_worker_is_left():
    yield
    while opened:
        opened.pop().close()
    assert not multiprocessing.active_children()


SHUFFLED = {"batch_size": 4, "shuffle": True}


def loaders() -> dict[str, Any]:
    """Name → a new loader of that kind."""
    ten = Numbers(10)
    return {
        "in order": DataLoader(ten, batch_size=4),
        "shuffled": DataLoader(ten, **SHUFFLED),
        "own generator": DataLoader(
            ten, **SHUFFLED, generator=torch.Generator().manual_seed(int(torch.randint(9, ())))
        ),
        "last dropped": DataLoader(ten, **SHUFFLED, drop_last=True),
        "distributed": DataLoader(ten, batch_size=2, sampler=DistributedSampler(ten, num_replicas=2, rank=1)),
        "weighted": DataLoader(ten, batch_size=3, sampler=WeightedRandomSampler([1.0] * 10, 8)),
        "own sampler": DataLoader(ten, batch_size=3, sampler=Backwards(7)),
        "own batch sampler": DataLoader(ten, batch_sampler=Ragged()),
        "plain batch sampler": DataLoader(ten, batch_sampler=BatchSampler(Backwards(10), 4, True)),
        "endless sampler": DataLoader(ten, batch_size=3, sampler=Endless()),
        "no batches": DataLoader(ten, batch_size=None, shuffle=True),
        "list": [torch.tensor([n, n + 0.5]) for n in range(5)],
        "range": range(7),
        "iterable": DataLoader(Stream(9), batch_size=2),
        "own iterable": Countdown(5),
        "stateful": Stateful(6),
    }


class Backwards(Sampler):
    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(range(self.n), key=lambda _: random.random()))


class Ragged(Sampler):
    """Another number of batches in each epoch, all of other sizes, and no len() that is right."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 99

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(10).tolist()
        for at in range(2 + self.epoch % 2):
            yield order[at : 2 * at + 2]


class Endless(Sampler):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield int(torch.randint(10, ()))


class Stream(IterableDataset):
    """Samples in an order drawn at the start, with noise."""

    def __init__(self, n: int):
        self.n = n

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = get_worker_info()
        for index in torch.randperm(self.n).tolist():
            if worker is None or index % worker.num_workers == worker.id:
                yield torch.tensor(index + random.random() / 4, dtype=torch.float64)


class Countdown:
    def __init__(self, n: int):
        self.n = n

    def __iter__(self) -> Iterator[float]:
        return (n + random.random() for n in range(self.n, 0, -1))


class Stateful:
    """As torchdata's StatefulDataLoader: says where it is, and goes there at its next iter()."""

    def __init__(self, n: int):
        self.n, self.at, self.loaded, self.reads = n, 0, False, 0

    def __iter__(self) -> Iterator[int]:
        if not self.loaded:
            self.at = 0
        self.loaded = False
        return self.read()

    def read(self) -> Iterator[int]:
        while self.at < self.n:
            self.at += 1
            self.reads += 1
            yield self.at

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at, self.loaded = state["at"], True


@pytest.mark.parametrize("kind", loaders())
def test_a_feed_gives_the_same_batches_from_any_step_on(kind: str):
    torch.manual_seed(1)
    whole = feed_of(loaders()[kind], seed=5, rank=1, world_size=2)
    batches, positions = [], []
    for _ in range(11):
        positions.append(whole.position())
        batches += take(whole, 1)
    whole.close()
    for step in (0, 1, 2, 5, 6, 9):
        torch.manual_seed(step + 2)  # another process, another past
        random.seed(step)
        sought = feed_of(loaders()[kind], 5, 1, 2, start_step=step)
        assert take(sought, 2) == batches[step : step + 2]
        loader, before = loaders()[kind], capture()
        restored = feed_of(loader, 9, 1, 2, start=positions[step])
        assert capture().torch == before.torch and capture().python == before.python
        assert restored.position() == positions[step]
        assert take(restored, 2) == batches[step : step + 2]
        sought.seek(step, near=positions[max(step - 1, 0)])
        assert take(sought, 1) == batches[step : step + 1]
        sought.close()
        restored.close()


def test_epochs_have_other_orders_and_every_sample_once():
    feed = feed_of(DataLoader(Numbers(8), **SHUFFLED), 5, 0, 1)
    first, second = (flat(take(feed, 2)) for _ in range(2))
    assert sorted(first) == sorted(second) == [float(n) for n in range(8)]
    assert first != second
    assert feed.batches_per_epoch == 2
    assert feed.position() == {"step": 4, "epoch": 2, "batch": 0, "seed": 5, "loader": None}


def test_another_seed_is_another_order():
    one, two = (feed_of(DataLoader(Numbers(50), **SHUFFLED), seed, 0, 1) for seed in (1, 2))
    assert take(one, 1) != take(two, 1)


def test_a_plain_loader_is_shared_out_in_the_global_order():
    alone = flat(take(feed_of(DataLoader(Numbers(12), **SHUFFLED), 5, 0, 1), 3))
    gang = [feed_of(DataLoader(Numbers(12), batch_size=2, shuffle=True), 5, rank, 3) for rank in range(3)]
    shares = [flat(take(feed, 2)) for feed in gang]
    assert [alone[rank::3] for rank in range(3)] == shares


def test_ranks_get_the_same_number_of_batches_filled_up_or_cut():
    def epoch(rank: int, **options: Any) -> list[list[float]]:
        feed = feed_of(DataLoader(Numbers(7), batch_size=2, **options), 5, rank, 3)
        assert feed.batches_per_epoch
        return take(feed, feed.batches_per_epoch)

    assert [epoch(rank) for rank in range(3)] == [[[0, 3], [6]], [[1, 4], [0]], [[2, 5], [1]]]
    assert [epoch(rank, drop_last=True) for rank in range(3)] == [[[0, 3]], [[1, 4]], [[2, 5]]]
    feed = feed_of(DataLoader(Numbers(1), batch_size=2), 5, 2, 3)
    assert take(feed, 1) == [[0.0]]


def test_a_distributed_sampler_is_not_shared_out_twice():
    ten = Numbers(10)
    loader = DataLoader(ten, batch_size=5, sampler=DistributedSampler(ten, num_replicas=2, rank=1, shuffle=False))
    feed = feed_of(loader, 5, 1, 2)
    assert take(feed, 1) == [[1, 3, 5, 7, 9]]
    assert feed.note == ""


def test_an_own_sampler_is_left_alone_and_says_so():
    feed = feed_of(DataLoader(Numbers(10), batch_size=10, sampler=Backwards(10)), 5, 1, 2)
    assert "Backwards is left alone" in feed.note
    assert len(take(feed, 1)[0]) == 10


@pytest.mark.parametrize("dataset", [Numbers, Batched])
def test_augmentation_in_workers_is_the_same_after_a_skip_and_with_another_number_of_workers(dataset: type[Numbers]):
    def feed(workers: int, start: int = 0) -> Feed:
        return feed_of(DataLoader(dataset(10, noisy=True), **SHUFFLED, num_workers=workers), 5, 0, 1, start_step=start)

    before = capture()
    whole = feed(2)
    batches = take(whole, 8)
    whole.close()
    assert capture().torch == before.torch, "the process's own generators are not touched"
    skipped = feed(1, start=4)
    assert take(skipped, 4) == batches[4:]
    assert len({x % 1 for batch in batches for x in batch}) == 10 + 10 + 8, "every sample has noise of its own"
    skipped.close()


def test_seeking_ahead_starts_the_workers_and_a_little_later_keeps_them():
    feed = feed_of(DataLoader(Numbers(40), **SHUFFLED, num_workers=1), 5, 0, 1)
    batches = take(feed, 12)
    feed.seek(6)
    children = {child.pid for child in multiprocessing.active_children()}
    assert len(children) == 1
    feed.seek(8)
    feed.restore({"step": 8, "epoch": 0, "batch": 8, "seed": 5, "loader": None})
    assert take(feed, 4) == batches[8:]
    assert {child.pid for child in multiprocessing.active_children()} == children
    feed.close()
    assert not multiprocessing.active_children()


def test_workers_see_the_scripts_own_dataset_and_start_function():
    feed = feed_of(DataLoader(Numbers(4), batch_size=2, num_workers=1, worker_init_fn=shift_by_100), 5, 0, 1)
    assert take(feed, 2) == [[100, 101], [102, 103]]
    feed.close()


def shift_by_100(worker: int) -> None:
    dataset = get_worker_info().dataset
    assert type(dataset) is Numbers
    dataset.__class__ = type("Shifted", (Numbers,), {"__getitem__": lambda self, index: torch.tensor(100.0 + index)})


def test_an_iterable_dataset_in_workers_is_repeated_exactly():
    whole = feed_of(DataLoader(Stream(9), batch_size=2, num_workers=2), 5, 0, 1)
    batches = take(whole, 8)
    position = whole.position()
    batches += take(whole, 2)
    whole.close()
    later = feed_of(DataLoader(Stream(9), batch_size=2, num_workers=2), 5, 0, 1, start=position)
    assert take(later, 2) == batches[8:]
    later.close()


def test_a_loader_with_state_is_not_read_again_from_the_start():
    feed = feed_of(Stateful(6), 5, 0, 1)
    take(feed, 10)
    loader = Stateful(6)
    later = feed_of(loader, 5, 0, 1)
    later.seek(10)
    later.restore(feed.position())
    assert take(later, 1) == take(feed, 1) == [[5.0]]
    assert loader.reads == 1


def test_a_generator_feeds_but_cannot_move():
    feed = feed_of((n for n in range(3)), 5, 0, 1)
    assert "generator, which can be read only once" in feed.why_not
    assert take(feed, 3) == [[0], [1], [2]]
    with pytest.raises(ScriptError, match="read only once"):
        feed.seek(1)
    assert next(feed, None) is None


def test_a_loader_that_gives_nothing_is_refused():
    with pytest.raises(ScriptError, match="3 samples, batch_size=4, drop_last=True"):
        feed_of(DataLoader(Numbers(3), batch_size=4, drop_last=True), 5, 0, 1)
    with pytest.raises(ScriptError, match="empty list"):
        feed_of([], 5, 0, 1)
    with pytest.raises(ScriptError, match="cannot be iterated"):
        feed_of(3, 5, 0, 1)  # type: ignore[arg-type]
    with pytest.raises(ScriptError, match="gives no batch in epoch 0"):
        next(feed_of(DataLoader(Stream(0), batch_size=2), 5, 0, 1))


# ---------------------------------------------------------------- more or fewer workers


def steps_of(loader: DataLoader, workers: int, most: int, count: int, start: int = 0) -> list[list[float]]:
    """What all workers together train on, step by step, in the global order."""
    feeds = [feed_of(loader, seed=3, rank=r, world_size=workers, start_step=start, workers_most=most) for r in range(workers)]
    found = []
    for _ in range(count):
        shares = [take(feed, 1)[0] for feed in feeds]
        assert len({len(share) for share in shares}) == 1
        found.append([x for together in zip(*shares, strict=True) for x in together])
    return found


@pytest.mark.parametrize("samples", [96, 101])
@pytest.mark.parametrize("drop_last", [False, True])
def test_other_numbers_of_workers_train_on_the_same_batches(samples, drop_last):
    loader = DataLoader(Numbers(samples), batch_size=3, shuffle=True, drop_last=drop_last)
    whole = steps_of(loader, workers=8, most=8, count=11)  # more than two epochs
    assert whole == steps_of(loader, workers=8, most=0, count=11)  # as in a job that always has eight
    assert len({len(step) for step in whole}) == (1 if drop_last or samples == 96 else 2)
    for workers in (4, 2, 1):
        assert steps_of(loader, workers, most=8, count=11) == whole
        assert steps_of(loader, workers, most=8, count=6, start=5) == whole[5:]


def test_noise_of_loader_workers_goes_with_the_sample():
    loader = DataLoader(Numbers(40, noisy=True), batch_size=2, shuffle=True, num_workers=1)
    assert steps_of(loader, workers=2, most=4, count=7) == steps_of(loader, workers=4, most=4, count=7)


def test_a_distributed_sampler_is_shared_out_anew():
    data = Numbers(48)
    loaders = {
        workers: DataLoader(data, batch_size=3, sampler=DistributedSampler(data, workers, 0, shuffle=True, seed=5))
        for workers in (1, 2, 4)
    }
    whole = steps_of(loaders[4], workers=4, most=4, count=9)
    assert {x for step in whole[:4] for x in step} == set(range(48)) and whole[:4] != whole[4:8]
    assert steps_of(loaders[2], workers=2, most=4, count=9) == whole == steps_of(loaders[1], workers=1, most=4, count=9)


@pytest.mark.parametrize("loader", [
    [1, 2, 3],
    DataLoader(Numbers(8), batch_size=None),
    DataLoader(Numbers(8), batch_sampler=[[0, 1], [2, 3]]),
], ids=["list", "single samples", "batches of its own"])  # fmt: skip
def test_what_cannot_be_shared_out_anew_is_told(loader):
    with pytest.raises(ScriptError, match="among more or fewer workers"):
        feed_of(loader, seed=0, rank=0, world_size=2, workers_most=4)
