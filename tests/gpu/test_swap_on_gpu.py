"""Swapping on a GPU: the bytes really leave it, come back the same, and what cannot work is refused."""

from __future__ import annotations

import pytest
import torch

from restow.sdk.boxes import StateTable
from restow.sdk.footprint import MemoryWatch, limit_memory, memory_error_line
from restow.sdk.swap import MappedSwap, StorageSwap

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]

MB = 1 << 20


class Job:
    def __init__(self) -> None:
        torch.manual_seed(5)
        self.model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(8))).cuda()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.table = StateTable({"model": self.model, "optimizer": self.optimizer})
        self.inputs = torch.randn(16, 1024, device="cuda")

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = self.model(self.inputs).square().mean()
        loss.backward()
        self.optimizer.step()
        return float(loss.item())


def test_a_job_that_is_swapped_at_every_step_computes_what_it_would_have():
    alone, job = Job(), Job()
    swap = StorageSwap(job.table)
    losses = []
    for _ in range(4):
        losses.append(job.step())
        left = swap.out()
        assert left > 0 and swap.back() == left
    assert losses == [alone.step() for _ in range(4)]
    assert all(torch.equal(mine, other) for mine, other in zip(job.model.parameters(), alone.model.parameters(), strict=True))


def test_the_device_is_free_while_the_state_is_out_and_only_the_overflow_leaves():
    job = Job()
    job.step()
    swap = StorageSwap(job.table)
    held, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    moments = sum(t.nbytes for state in job.optimizer.state.values() for t in state.values() if t.is_cuda)
    left = swap.out(moments // 2)
    assert moments // 2 <= left < moments
    left += swap.out()
    assert torch.cuda.memory_allocated() <= held - left + MB
    assert torch.cuda.memory_reserved() <= reserved - left // 2
    assert all(segment.is_pinned() for segment in swap._arena._segments)  # type: ignore[union-attr]
    assert swap.back() == left
    job.step()


def test_where_a_graph_holds_addresses_storages_are_not_resized():
    job = Job()
    swap = StorageSwap(job.table)
    graph = torch.cuda.CUDAGraph()
    total = torch.zeros(1, device="cuda")
    with torch.cuda.graph(graph):
        total += 1
    assert "1 CUDA graphs hold addresses" in swap.why_not()
    del graph
    assert swap.why_not() == ""
    assert "VmmSwap for CUDA" in MappedSwap(job.table).why_not()


def test_a_peak_and_a_limit_are_those_of_the_device():
    job = Job()
    watch = MemoryWatch("cuda", every=1)
    for _ in range(3):
        watch.step()
        job.step()
    watch.step()
    assert 0 < watch.valley_bytes < watch.peak_bytes
    try:
        limit_memory(torch.cuda.memory_reserved() + 64 * MB, "cuda")
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        assert "exceeds its memory of" in str(memory_error_line(caught.value))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
