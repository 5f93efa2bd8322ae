"""State that leaves its device's memory: bit by bit the same when it is back, and really gone in between."""

from __future__ import annotations

import hashlib
import resource
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from restow.errors import Refused, ScriptError, SpecError
from restow.sdk import arena
from restow.sdk.boxes import StateTable
from restow.sdk.footprint import MemoryWatch, limit_memory, memory_error_line
from restow.sdk.residents import Kind, find
from restow.sdk.swap import MappedSwap, StorageSwap, quantum_s
from restow.sdk.vmm import VmmSwap
from tests.sdk.gang import in_a_process

MB = 1 << 20
BACK_ENDS = pytest.mark.parametrize("back_end", [StorageSwap, MappedSwap])


class TiedModel(nn.Module):
    """Tied embedding and BatchNorm; most storages are larger than a page, some are smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 64)
        self.norm = nn.BatchNorm1d(64)
        self.hidden = nn.Linear(64, 64)
        self.output = nn.Linear(64, 60, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.output(self.hidden(self.norm(self.embedding(words))).relu())


OPTIMIZERS: dict[str, Any] = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "Adam, foreach": lambda parameters: torch.optim.Adam(parameters, lr=0.01, foreach=True, amsgrad=True),
    "SGD, momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


class Job:
    def __init__(self, optimizer: str = "AdamW", clears: bool = True) -> None:
        torch.manual_seed(5)
        self.model = TiedModel()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.table = StateTable({"model": self.model, "optimizer": self.optimizer})
        self.clears = clears  # gradients to None; else to zero, in place
        self.seen = hashlib.sha256()

    def backward(self, net: nn.Module | None = None) -> None:
        words = torch.randint(60, (8,))
        loss = nn.functional.cross_entropy((net or self.model)(words), words)
        loss.backward()
        self.seen.update(loss.item().hex().encode())

    def step(self, net: nn.Module | None = None) -> None:
        self.optimizer.zero_grad(set_to_none=self.clears)
        self.backward(net)
        self.optimizer.step()

    def digest(self) -> str:
        for tensor in (*self.table.tensors().values(), *self.table.private_tensors().values()):
            self.seen.update(tensor.numpy().tobytes())
        return self.seen.hexdigest()


def out_and_back(swap: StorageSwap | MappedSwap) -> None:
    left = swap.out()
    assert left > 0 and swap.swapped_bytes() == left
    assert swap.back() == left and swap.swapped_bytes() == 0


# ---------------------------------------------------------------- bit by bit


@BACK_ENDS
@pytest.mark.parametrize("clears", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_job_that_is_swapped_at_every_step_computes_what_it_would_have(optimizer, clears, back_end):
    alone, job = Job(optimizer, clears), Job(optimizer, clears)
    swap = back_end(job.table)
    random = torch.get_rng_state()
    for _ in range(5):
        alone.step()
    torch.set_rng_state(random)
    for _ in range(5):
        job.step()
        out_and_back(swap)
    assert job.digest() == alone.digest()


@BACK_ENDS
def test_gradients_that_are_being_added_up_survive(back_end):
    alone, job = Job(), Job()
    swap = back_end(job.table)
    random = torch.get_rng_state()
    for each, save_point in ((alone, lambda: None), (job, lambda: out_and_back(swap))):
        torch.set_rng_state(random)
        for _ in range(3):
            each.optimizer.zero_grad()
            for _ in range(3):
                each.backward()
                save_point()
            each.optimizer.step()
            save_point()
    assert job.digest() == alone.digest()


@BACK_ENDS
@pytest.mark.parametrize("as_views", [True, False])
def test_ddp_goes_on_with_its_buckets(as_views, back_end):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        digests = []
        for is_swapped in (False, True):
            job = Job()
            net = nn.parallel.DistributedDataParallel(job.model, gradient_as_bucket_view=as_views, bucket_cap_mb=0.02)
            swap = back_end(job.table)
            for _ in range(4):
                job.step(net)
                gradients = [p.grad for p in job.model.parameters() if p.grad is not None]
                if is_swapped:
                    out_and_back(swap)
            shared = {gradient.untyped_storage()._cdata for gradient in gradients}
            assert (len(shared) < len(gradients)) == as_views
            digests.append(job.digest())
            del net  # a DDP that outlives its group joins gloo's thread with the interpreter's lock, which that thread may want
        assert digests[0] == digests[1]
    finally:
        torch.distributed.destroy_process_group()


@BACK_ENDS
def test_ties_and_views_come_once_and_stay_tied(back_end):
    whole = torch.arange(8192.0)
    half, tie = whole[4096:], nn.Parameter(whole.view(64, 128))
    swap = back_end([whole, half, tie])
    held_elsewhere = whole[2:5]
    assert swap.resident_bytes() == 4 * 8192
    out_and_back(swap)
    assert torch.equal(whole, torch.arange(8192.0)) and held_elsewhere.tolist() == [2, 3, 4]
    whole[4096] = -1
    assert half[0] == -1 and tie[32, 0] == -1


def test_autograd_and_the_gradient_watch_notice_nothing():
    job = Job()
    job.step()
    job.step()
    versions = [p._version for p in job.model.parameters()]
    assert not any(name.endswith(".grad") for name in job.table.private_tensors())
    out_and_back(StorageSwap(job.table))
    assert [p._version for p in job.model.parameters()] == versions
    assert not any(name.endswith(".grad") for name in job.table.private_tensors())


# ---------------------------------------------------------------- who leaves, and in which order


@BACK_ENDS
def test_only_the_overflow_leaves_and_moments_leave_first(back_end):
    parameter, moment, mask = nn.Parameter(torch.ones(MB // 4)), torch.ones(MB // 4), torch.ones(MB // 4)
    optimizer = torch.optim.SGD([parameter])
    optimizer.state[parameter] = {"deep": [{"momentum_buffer": moment}]}
    parameter.grad = torch.full_like(parameter, 2.0)  # no step has used it up yet
    table = StateTable({"optimizer": optimizer, "mask": mask})
    assert [each.kind for each in find(table)] == [Kind.MOMENT, Kind.GRADIENT, Kind.BUFFER, Kind.PARAMETER]
    swap = back_end(table)

    assert swap.out(0) == 0
    first = swap.out(1)
    assert MB - 8192 <= first <= MB and swap.swapped_bytes() == first
    assert moment.untyped_storage().nbytes() == (0 if back_end is StorageSwap else MB)
    assert parameter.sum().item() == MB // 4 and parameter.grad.sum().item() == MB // 2 and mask.sum().item() == MB // 4
    assert MB <= swap.out(MB + 1) <= 2 * MB  # two more are the least that hold as much
    assert parameter.sum().item() == MB // 4
    assert swap.resident_bytes() + swap.swapped_bytes() == 4 * MB
    swap.out()
    assert swap.out() == 0
    assert swap.back() >= 4 * (MB - 8192) and swap.back() == 0
    assert [each.sum().item() for each in (moment, parameter.grad, mask, parameter)] == [MB // 4, MB // 2, MB // 4, MB // 4]


@BACK_ENDS
def test_gradients_that_will_be_cleared_leave_without_a_copy_and_come_back_as_zeros(back_end):
    model = nn.Linear(2048, 4096, bias=False)  # 32 MB
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    table = StateTable({"model": model, "optimizer": optimizer})
    for _ in range(2):
        optimizer.zero_grad(set_to_none=False)
        model(torch.ones(1, 2048)).sum().backward()
        optimizer.step()
    gradient = model.weight.grad
    assert gradient is not None and gradient.all()
    swap = back_end(table)
    assert swap.out() >= 64 * MB - 16384
    assert swap.arena_bytes() == 32 * MB
    swap.back()
    assert not gradient.view(-1)[1024:-1024].any()  # but for the ends, which MappedSwap leaves


def test_the_objects_of_a_job_are_not_asked_for_their_state_while_it_is_out():
    class Average:
        def __init__(self) -> None:
            self.mean = torch.ones(MB)

        def state_dict(self) -> dict[str, Any]:
            assert self.mean.untyped_storage().nbytes(), "asked while it was out"
            return {"mean": self.mean}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.mean = state["mean"]

    average = Average()
    swap = StorageSwap(StateTable({"average": average}))
    assert swap.out() == 4 * MB
    assert (swap.resident_bytes(), swap.why_not(), swap.out(1)) == (0, "", 0)
    swap.back()
    assert average.mean.sum().item() == MB


# ---------------------------------------------------------------- memory really goes


def kernel_says(file: str, word: str) -> int:
    """Bytes in a line of kB."""
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(word))


@pytest.mark.parametrize("back_end", [StorageSwap, partial(MappedSwap, lazily=False)])
def test_while_it_is_out_the_memory_belongs_to_others(back_end):
    large = torch.ones(16 * MB)  # 64 MB
    swap = back_end([large])
    before = kernel_says("status", "RssAnon")
    swap.out()
    assert kernel_says("status", "RssAnon") <= before - 60 * MB
    swap.back()
    assert large.sum().item() == 16 * MB


def test_memory_that_went_lazily_is_there_for_who_needs_it_and_comes_back_whole():
    large = torch.arange(16.0 * MB)
    swap = MappedSwap([large])
    out_and_back(swap)  # goes at once and comes back on huge pages: from now on it goes lazily
    before = kernel_says("status", "RssAnon")
    swap.out()
    assert kernel_says("smaps_rollup", "LazyFree") >= 60 * MB
    start, length = arena.whole_pages(large.data_ptr() + 8 * MB, 48 * MB)
    page_out = 21  # MADV_PAGEOUT: what the kernel does where memory is short
    assert arena._libc.madvise(start, length, page_out) == 0
    assert kernel_says("status", "RssAnon") <= before - 40 * MB
    swap.back()
    assert torch.equal(large, torch.arange(16.0 * MB))


def test_mapped_memory_keeps_its_addresses_and_storages_can_be_found_empty_otherwise():
    one, other = torch.ones(MB), torch.ones(MB)
    addresses = one.data_ptr(), other.data_ptr()
    mapped, resized = MappedSwap([one], lazily=False), StorageSwap([other])
    mapped.out()
    resized.out()
    assert one.data_ptr() == addresses[0] and one[MB // 2].item() == 0
    assert other.untyped_storage().nbytes() == 0
    mapped.back()
    resized.back()
    assert one.data_ptr() == addresses[0] and one.sum().item() == other.sum().item() == MB


def test_the_arena_is_kept_and_grows_by_what_is_missing():
    tensors = [torch.ones(MB)]
    swap = StorageSwap(lambda: tensors)
    for _ in range(3):
        out_and_back(swap)
        assert swap.arena_bytes() == arena.GRAIN_BYTES
    tensors += [torch.full((9 * MB,), 3.0)]
    out_and_back(swap)
    assert swap.arena_bytes() == 2 * arena.GRAIN_BYTES  # 40 MB cross from one segment into the next
    assert tensors[1].sum().item() == 27 * MB
    swap.close()
    assert swap.arena_bytes() == 0
    assert swap.out() == 40 * MB and swap.back() == 40 * MB  # a new one


def test_a_copy_is_cut_in_two_at_any_byte():
    sizes = [7, 20 * MB + 3, 1, 0, 15 * MB - 5]
    sources = [torch.randint(255, (size,), dtype=torch.uint8) for size in sizes]
    targets = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
    arena.copy_in_host(list(zip(targets, sources, strict=True)))
    assert all(torch.equal(to, source) for to, source in zip(targets, sources, strict=True))


# ---------------------------------------------------------------- when it goes wrong


def way_back_without_room() -> None:
    small, large = torch.full((10 * MB,), 2.0), torch.ones(16 * MB)
    swap = StorageSwap([small, large])
    swap.out()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit_memory(64 * MB)  # for one of the two
    with pytest.raises(RuntimeError, match="allocate") as caught:
        swap.back()
    assert memory_error_line(caught.value)
    assert (swap.resident_bytes(), swap.swapped_bytes()) == (0, 104 * MB)
    assert small.untyped_storage().nbytes() == large.untyped_storage().nbytes() == 0
    resource.setrlimit(resource.RLIMIT_DATA, before)
    assert swap.back() == 104 * MB
    assert (small.sum().item(), large.sum().item()) == (20 * MB, 16 * MB)


def test_a_way_back_without_room_loses_nothing_and_can_be_tried_again():
    in_a_process(way_back_without_room)  # memory that earlier tests had and malloc kept would be room


def test_too_little_host_memory_is_said_before_anything_left(monkeypatch):
    large = torch.ones(MB)
    swap = StorageSwap([large])
    monkeypatch.setattr(arena, "available_bytes", lambda: MB)
    with pytest.raises(Refused, match=r"swapping needs 32 MB more host memory and 1 MB are available"):
        swap.out()
    assert large.sum().item() == MB and swap.swapped_bytes() == 0


def refused(back_end: Any, *tensors: torch.Tensor) -> str:
    swap = back_end(tensors)
    why = swap.why_not()
    with pytest.raises((Refused, ScriptError)) as caught:
        swap.out()
    assert why and why in str(caught.value) and "\n" not in why and swap.swapped_bytes() == 0
    return str(why)


@BACK_ENDS
def test_memory_that_is_not_this_jobs_own_is_refused_by_name(back_end, tmp_path):
    good = torch.ones(4096)
    assert back_end([good]).why_not() == ""
    assert "tensor 1 lies in shared memory" in refused(back_end, good, torch.ones(4096).share_memory_())
    assert "tensor 0 lies in memory that torch did not allocate" in refused(back_end, torch.from_numpy(numpy.ones(4096)))
    torch.save(good, tmp_path / "file.pt")
    mapped = torch.load(tmp_path / "file.pt", mmap=True)
    assert "did not allocate" in refused(back_end, mapped)
    assert good.sum().item() == 4096


def test_tensors_without_one_storage_are_refused_by_name():
    from torch.testing._internal.two_tensor import TwoTensor

    assert "tensor 0 is a Tensor of layout torch.sparse_coo" in refused(StorageSwap, torch.eye(3).to_sparse())
    assert "tensor 0 is a TwoTensor" in refused(StorageSwap, TwoTensor(torch.ones(2), torch.ones(2)))
    assert "on meta" in refused(MappedSwap, torch.empty(3, device="meta"))


def test_constant_addresses_on_cuda_need_a_package_and_say_so():
    swap = VmmSwap([torch.ones(3)])
    assert swap.why_not() == "constant addresses on CUDA need the package torch_memory_saver, which is not installed"
    with pytest.raises(Refused, match="torch_memory_saver"):
        swap.out()
    with pytest.raises(Refused, match="torch_memory_saver"):
        with swap.region():
            pass
    assert (swap.resident_bytes(), swap.swapped_bytes(), swap.back()) == (12, 0, 0)


# ---------------------------------------------------------------- turns, footprints, limits


def test_a_turn_is_long_enough_for_its_budget():
    assert quantum_s(0.5, 0.05) == pytest.approx(10.0)
    assert quantum_s(0.0, 0.05) == 0.0
    with pytest.raises(SpecError, match=r"budget of swapping is 5; it is a share"):
        quantum_s(1.0, 5)


def test_the_peak_inside_a_step_is_seen_and_the_valley_is_what_stays():
    watch = MemoryWatch(every=1)
    watch.step()
    assert 0 < watch.valley_bytes <= kernel_says("status", "RssAnon") + MB
    first_valley = watch.valley_bytes
    torch.ones(16 * MB)  # 64 MB, gone at the end of the step
    watch.step()
    assert 60 * MB <= watch.peak_bytes - first_valley <= 70 * MB
    assert watch.valley_bytes <= first_valley + 4 * MB
    kept = torch.ones(16 * MB)
    watch.step()
    assert 60 * MB <= watch.valley_bytes - first_valley <= 70 * MB
    assert kept.sum().item() == 16 * MB


def test_most_steps_are_not_sampled():
    watch = MemoryWatch(every=32)
    for _ in range(4):
        watch.step()
    peak = watch.peak_bytes
    for _ in range(28):
        torch.ones(16 * MB)
        watch.step()
    watch.step()  # the 33rd: a sample begins
    assert watch.peak_bytes < peak + 32 * MB
    torch.ones(16 * MB)
    watch.step()
    assert watch.peak_bytes >= peak + 60 * MB


def over_its_limit() -> None:
    limit_memory(64 * MB)
    assert torch.ones(8 * MB).sum().item() == 8 * MB  # 32 MB
    with pytest.raises(RuntimeError) as caught:
        torch.ones(32 * MB)
    line = memory_error_line(caught.value, "job mnist")
    assert line == ("job mnist exceeds its memory of 67.1 MB (it asked for 134.2 MB more); "
                    "make its batch or model smaller, or declare more memory in its spec")  # fmt: skip
    with pytest.raises(MemoryError) as of_python:
        bytearray(256 * MB)
    assert "exceeds its memory of 67.1 MB" in str(memory_error_line(of_python.value))


def test_a_job_over_its_limit_fails_with_one_clear_line():
    in_a_process(over_its_limit)


def test_other_errors_are_not_taken_for_memory():
    assert memory_error_line(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert memory_error_line(ValueError("tried to allocate 5 bytes")) is None
    with pytest.raises(SpecError, match="a memory limit of 0 bytes"):
        limit_memory(0)
