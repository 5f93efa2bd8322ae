"""What two ranks on this node exchange per second: measured once, by two forks of the nursery with the devices' own shares.

Predictions start from it (perf.py) and are corrected by what jobs show. CPU devices only: between GPUs NCCL chooses its own way,
and the first job there shows it.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from restow.agent.devices import LocalDevice

PAYLOAD_BYTES = 8 << 20  # a typical gradient bucket is 1 to 25 MB
ROUNDS = 12
PATIENCE_S = 10.0


def measure_local(devices: Sequence[LocalDevice], folder: Path) -> float:
    """Bytes per second of one rank in an all-reduce between the first two devices; 0.0 where that cannot be measured. `folder`: of
    the node, so that what a kill in between leaves is gone at the next start."""
    if len(devices) < 2 or devices[0].is_gpu:
        return 0.0
    reading, writing = os.pipe()
    store = folder / "probe.store"
    store.unlink(missing_ok=True)
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            _exchange(rank, devices[rank], str(store), writing)
        children.append(child)
    os.close(writing)
    deadline_s = time.monotonic() + PATIENCE_S
    while children and time.monotonic() < deadline_s:
        children = [child for child in children if os.waitpid(child, os.WNOHANG) == (0, 0)]
        time.sleep(0.005)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    store.unlink(missing_ok=True)
    with os.fdopen(reading) as pipe:
        said = pipe.read().strip()
    return float(said) if said else 0.0


def _exchange(rank: int, device: LocalDevice, store: str, answer: int) -> None:
    """In a child: never returns."""
    code = 1
    try:
        if device.cgroup:
            with open(f"{device.cgroup}/cgroup.procs", "w") as file:
                file.write(str(os.getpid()))
        if device.core is not None:
            os.sched_setaffinity(0, {device.core})
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
        payload = torch.ones(PAYLOAD_BYTES // 4)
        times = []
        for _ in range(ROUNDS):
            began_s = time.perf_counter()
            dist.all_reduce(payload)
            times.append(time.perf_counter() - began_s)
        if rank == 0:
            os.write(answer, str(PAYLOAD_BYTES / statistics.median(times)).encode())
        code = 0
    except (OSError, RuntimeError) as error:
        print(f"local rate not measured: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)
