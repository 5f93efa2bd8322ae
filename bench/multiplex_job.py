"""A training job whose step takes a given time of its device, of the link and of its loader; see multiplex.py.

`--device virtual`: device time is that of virtual_device.py. `--device core`: real matrix products on the core. The gradients are
real in both, travel through DDP, and end in losses and parameters that are compared bit by bit with the job left alone.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import restow
from bench.virtual_device import VirtualDevice
from bench.workload import digest

Compute = Callable[[float], None]


class Work(torch.autograd.Function):
    """Takes device time in forward and, twice as much, in backward; the values pass through."""

    @staticmethod
    def forward(context: Any, value: Tensor, compute: Compute, device_s: float) -> Tensor:
        context.compute, context.device_s = compute, device_s
        compute(device_s / 3)
        return value.view_as(value)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        context.compute(context.device_s * 2 / 3)
        return gradient, None, None


class Layer(nn.Module):
    """One layer, with its part of the payload and of the device time."""

    def __init__(self, payload_bytes: int, compute: Compute, device_s: Callable[[], float]):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(payload_bytes // 4) * 0.01)
        self._compute, self._device_s = compute, device_s
        self._probe = torch.rand(payload_bytes // 4) - 0.5  # no buffer: DDP would send it

    def forward(self, x: Tensor) -> Tensor:
        """Cheap for the host, which a GPU would leave free; gradients differ from element to element all the same."""
        return Work.apply(x + torch.tanh(torch.dot(self.weight, self._probe) * 0.01 + x), self._compute, self._device_s())


def stack(payload_bytes: int, layers: int, compute: Compute, device_s: Callable[[], float]) -> nn.Module:
    """`layers` equal layers; `device_s()` is asked once per step, by the first of them."""
    of_step = 0.0

    def part_s(is_first: bool) -> float:
        nonlocal of_step
        of_step = device_s() if is_first else of_step
        return of_step / layers

    return nn.Sequential(
        *(Layer(payload_bytes // layers, compute, partial(part_s, number == 0)) for number in range(layers))
    )


def real_compute() -> Compute:
    """Matrix products until so much processor time of this thread is used: what a share of a core would stretch, waits do too."""
    square = torch.randn(192, 192) / 14

    def compute(device_s: float) -> None:
        nonlocal square
        end_s = time.thread_time() + device_s
        while time.thread_time() < end_s:
            square = (square @ square).clamp(-1, 1)

    return compute


class Batches:
    """Each is made from its number, and takes the loader's time, in which nothing computes; to be put at a step takes none."""

    def __init__(self, options: argparse.Namespace):
        self._options = options

    def __len__(self) -> int:
        return int(self._options.steps)

    def __getitem__(self, number: int) -> Tensor:
        if not 0 <= number < len(self):
            raise IndexError(number)
        if self._options.stall_ms:
            time.sleep(self._options.stall_ms / 1e3)
        generator = torch.Generator().manual_seed(self._options.seed * 1_000_003 + number)
        return torch.rand(64, generator=generator) + 0.5


class Control:
    """The harness's page: word 0 of a job is 1 while it is to pause, word 1 while it is to end."""

    def __init__(self, path: Path, number: int):
        descriptor = os.open(path, os.O_RDWR)
        self._words = memoryview(mmap.mmap(descriptor, 4096)).cast("q")
        os.close(descriptor)
        self._at = number * 2

    @property
    def pauses(self) -> bool:
        return bool(self._words[self._at])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--control", type=Path)
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--device", choices=("virtual", "core"), default="virtual")
    parser.add_argument("--page", default="", help="folder of the virtual devices' pages")
    parser.add_argument("--device-ms", type=float, default=100)
    parser.add_argument("--payload-mb", type=float, default=3.1)
    parser.add_argument("--layers", type=int, default=1, help="as many yield points")
    parser.add_argument("--buckets", type=int, default=0, help="with more than one communication overlaps; default: one per layer")
    parser.add_argument("--stall-ms", type=float, default=0)
    parser.add_argument("--jitter", type=float, default=0)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    job = restow.init(seed=options.seed)
    node = os.environ.get("RESTOW_NODE", "here")
    if options.device == "virtual":
        index = os.environ.get("RESTOW_GATE", ":0").rpartition(":")[2]
        compute: Compute = VirtualDevice(Path(options.page) / f"{node}-{index}.device", options.number).compute
    else:
        compute = real_compute()
    chance = random.Random(options.seed + options.number)  # the same on every rank: a gang computes in step

    def device_s() -> float:
        return options.device_ms / 1e3 * (1 + options.jitter * chance.uniform(-1, 1))

    payload = int(options.payload_mb * 1e6)
    model = stack(payload, options.layers, compute, device_s)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    if job.world_size > 1:
        buckets = options.buckets or options.layers
        cap_mb = options.payload_mb * 1e6 / 2**20 * (0.75 / buckets if buckets > 1 else 2)
        model_: nn.Module = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=cap_mb)
    else:
        model_ = model
    model_, optimizer = job.prepare(model_, optimizer)
    control = Control(options.control, options.number) if options.control else None
    used_s = time.process_time()
    for x in job.steps(Batches(options), total=options.steps):
        if control and control.pauses and not job.is_rehearsal:
            with job.waiting():
                while control.pauses:
                    time.sleep(0.002)
        optimizer.zero_grad()
        loss = (model_(x) ** 2).mean()
        loss.backward()
        optimizer.step()
        before_s, used_s = used_s, time.process_time()
        sys.stdout.write("@step " + json.dumps({
            "rank": job.rank, "step": job.step, "end_s": time.monotonic(), "cpu_s": used_s - before_s,
            "loss": loss.detach().item().hex(),
        }) + "\n")  # fmt: skip
        sys.stdout.flush()
    print("@end " + json.dumps({"rank": job.rank, "digest": digest(model_, optimizer)}), flush=True)


if __name__ == "__main__":
    main()
