"""One process trains three equal models in turns: one as restow has it, one as torch alone would, and one with the least that
anything like restow needs in Python. What restow adds to a step, and what it cannot be below.

All are in the same process, with the same caches, neighbours and interruptions, so that the difference shows where a comparison of
two jobs does not (overhead.py runs both). The least: a group whose inside can be replaced and that hands a collective on, a loop
that counts its steps where another process sees it, and a hook before and after an update, which do nothing.

With INSIDE_PARTS=1 each of PARTS is timed too: what it takes where nothing of it is in the processor's caches, which is several
times what it takes in a loop of its own.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import timedelta
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import restow
from bench import workload

PARTS = (
    "group:SwitchGroup.allreduce", "gradients:_Watched._stepped", "passage:Passage.fetch", "worker:Worker._before_update",
    "worker:Worker._after_update", "worker:Worker.after_step", "worker:Worker.save_point", "sentinel:Sentinel.at_save_point",
    "sentinel:Sentinel.before_update", "boxes:StateTable.capture_private", "inventory:Inventory.walk", "copies:Copies.finish",
    "slots:Slots.write",
)  # fmt: skip
taken_s: dict[str, list[float]] = defaultdict(list)


def timed(name: str, does: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(does)
    def outer(*arguments: Any, **named: Any) -> Any:
        began_s = time.perf_counter()
        answer = does(*arguments, **named)
        taken_s[name].append(time.perf_counter() - began_s)
        return answer

    return outer


def time_parts() -> None:
    for part in PARTS:
        module_name, _, path = part.partition(":")
        class_name, _, method = path.partition(".")
        module = importlib.import_module("restow.slots" if module_name == "slots" else f"restow.sdk.{module_name}")
        if hasattr(owner := getattr(module, class_name), method):
            setattr(owner, method, timed(path, getattr(owner, method)))


def plain_group(rank: int, size: int) -> dist.ProcessGroup:
    """What `init_process_group("gloo")` makes, beside the default group."""
    store = dist.PrefixStore("plain", dist.distributed_c10d._get_default_store())
    gloo = dist.ProcessGroup.BackendType.GLOO
    group = dist.ProcessGroup(store, rank, size)
    group._set_default_backend(gloo)
    backend = dist.ProcessGroupGloo(store, rank, size, timeout=timedelta(seconds=60))
    backend._set_sequence_number_for_group()
    group._register_backend(torch.device("cpu"), gloo, backend)
    return group


class ThinGroup(dist.ProcessGroup):
    """Hands everything that DDP asks for on to what is inside."""

    def __init__(self, inner: dist.ProcessGroup):
        super().__init__(inner.rank(), inner.size())  # type: ignore[call-arg]
        self.inner = inner

    def allreduce(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:  # type: ignore[override]
        return self.inner.allreduce(tensors, opts or dist.AllreduceOptions())

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:  # type: ignore[override]
        return self.inner.allgather(outputs, inputs, opts or dist.AllgatherOptions())  # type: ignore[attr-defined]

    def broadcast(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:  # type: ignore[override]
        return self.inner.broadcast(tensors, opts or dist.BroadcastOptions())

    def getBackendName(self) -> str:
        return "thin"


def counted(batches: Iterator[Any], word: Any) -> Iterator[Any]:
    for batch in batches:
        yield batch
        word[0] += 1


def nothing(*_: Any) -> None:
    return None


def epochs(loader: Any) -> Iterator[Any]:
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def main() -> None:
    if os.environ.get("INSIDE_PARTS"):
        time_parts()
    options = workload.options()
    length, work = int(os.environ["INSIDE_STEPS"]), int(os.environ["INSIDE_WORK"])
    job = restow.init(seed=options.seed)
    model = workload.model(options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = job.prepare(model, optimizer)
    group = plain_group(job.rank, job.world_size)
    other = DistributedDataParallel(workload.model(options), process_group=group)
    thin = DistributedDataParallel(workload.model(options), process_group=ThinGroup(group))
    trained = ((model, optimizer), *((net, torch.optim.AdamW(net.parameters(), lr=1e-3)) for net in (other, thin)))
    trained[2][1].register_step_pre_hook(nothing)
    trained[2][1].register_step_post_hook(nothing)
    word = memoryview(bytearray(8)).cast("q")
    batches = (
        iter(job.steps(workload.loader(options, job.rank, job.world_size), total=options.steps)),
        epochs(workload.loader(options, job.rank, job.world_size)),
        counted(epochs(workload.loader(options, job.rank, job.world_size)), word),
    )
    ahead = [next(stream) for stream in batches]
    square = torch.randn(256, 256) / 16

    def window(which: int) -> tuple[float, float]:
        """Median seconds of a step, and processor seconds of one."""
        nonlocal square
        (net, its_optimizer), stream, periods_s = trained[which], batches[which], list[float]()
        cpu_s, last_s = time.process_time(), time.perf_counter()
        for _ in range(length):
            inputs, targets = ahead[which]
            its_optimizer.zero_grad()
            for _ in range(work):  # the fixed part of a step
                square = (square @ square).clamp(-1, 1)
            cross_entropy(net(inputs), targets).backward()
            its_optimizer.step()
            ahead[which] = next(stream)
            now_s = time.perf_counter()
            periods_s.append(now_s - last_s)
            last_s = now_s
        return median(periods_s), (time.process_time() - cpu_s) / length

    rounds = []
    for number in range((options.steps - 2) // length):
        found = {which: window(which) for which in ((0, 1, 2) if number % 2 else (2, 1, 0))}
        if number >= 3:  # the first ones warm up
            rounds.append([found[which] for which in range(3)])
    parts_us = {name: median(each) * 1e6 for name, each in taken_s.items()}
    print(f"@inside {json.dumps({'rank': job.rank, 'rounds': rounds, 'parts_us': parts_us})}", flush=True)
    for _ in batches[0]:
        pass
    dist.barrier()  # nobody leaves while another still reads from it


if __name__ == "__main__":
    main()
