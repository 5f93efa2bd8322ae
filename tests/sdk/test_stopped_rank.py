"""Two gangs in time slices on devices of two nodes, and a rank of one that is stopped, as by Ctrl-Z or a debugger."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from restow.agent.gates import Gates
from restow.agent.workers import Worker
from restow.gate import Keeper
from restow.job import Sharing
from tests.sdk.gang import Gang
from tests.sdk.test_sharing import assert_as_alone, gang

pytestmark = pytest.mark.live
STEPS = 200
NODES = {"a": [0, 1], "b": [0]}


@contextlib.contextmanager
def agents(folder: Path, *gangs: Gang) -> Iterator[None]:
    """What the agents of both nodes do for the gates: time slices for all, short leases."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def keep() -> None:
        kept = []
        for node, devices in NODES.items():
            gates = Gates(
                folder / node, devices, drains=False, lease_s=0.5, on_fenced=lambda *_: None, on_given_on=lambda *_: None
            )  # fmt: skip
            gates.open()
            workers = [
                Worker(pid=process.popen.pid, job=each.job, generation=1, rank=process.rank, role="rank", born=1, secret="",
                       page="", log="", device=each.placement[process.rank].device)
                for each in gangs for process in each.processes if each.placement[process.rank].node == node
            ]  # fmt: skip
            for each in gangs:
                gates.share(each.job, Sharing(mode="time-slice", partners=("other",), quantum_s=0.1), workers)
            gates.update(workers)
            kept.append(gates)
        try:
            await asyncio.gather(*(gates.watch() for gates in kept))
        finally:
            for gates in kept:
                gates.close()

    task = asyncio.run_coroutine_threadsafe(keep(), loop)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(concurrent.futures.CancelledError):
            task.result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_other_gang_trains_on_and_both_end_as_alone(rank):
    with tempfile.TemporaryDirectory(prefix="restow-gates-", dir="/dev/shm") as name:
        folder = Path(name)
        for node, devices in NODES.items():
            (folder / node).mkdir()
            for device in devices:
                Keeper(folder / node, device).close()  # a free gate: a script that waits at a hold would keep its device
        with gang(folder, "one", STEPS, holds=[1]) as one, gang(folder, "two", STEPS, holds=[1]) as two:
            for each in (one, two):
                each.await_step(1)
            with agents(folder, one, two):
                for each in (one, two):
                    each.release()
                one.await_step(20)
                stopped = one.live(rank).popen.pid
                os.kill(stopped, signal.SIGSTOP)
                two.await_step(STEPS - 10)
                os.kill(stopped, signal.SIGCONT)
                assert_as_alone(one, two, steps=STEPS)
