"""Two gangs in time slices on devices of two nodes, and a rank of one that is stopped, as by Ctrl-Z or a debugger."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import tempfile
import threading
import time
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
        watches = [asyncio.create_task(gates.watch()) for gates in kept]
        await over.wait()
        for gates, watch in zip(kept, watches, strict=True):
            watch.cancel()
            gates.close()
        await asyncio.wait(watches)

    over = asyncio.Event()
    kept_to_the_end = asyncio.run_coroutine_threadsafe(keep(), loop)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        kept_to_the_end.result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)


@contextlib.contextmanager
def two_gangs(steps: int) -> Iterator[tuple[Gang, Gang]]:
    """They have done a step, and take turns from then on."""
    with tempfile.TemporaryDirectory(prefix="restow-gates-", dir="/dev/shm") as name:
        folder = Path(name)
        for node, devices in NODES.items():
            (folder / node).mkdir()
            for device in devices:
                Keeper(folder / node, device).close()  # a free gate: a script that waits at a hold would keep its device
        with gang(folder, "one", steps, holds=[1]) as one, gang(folder, "two", steps, holds=[1]) as two:
            for each in (one, two):
                each.await_step(1)
            with agents(folder, one, two):
                for each in (one, two):
                    each.release()
                yield one, two


@pytest.mark.parametrize("rank", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_other_gang_trains_on_and_both_end_as_alone(rank):
    with two_gangs(STEPS) as (one, two):
        one.await_step(20)
        stopped = one.live(rank).popen.pid
        os.kill(stopped, signal.SIGSTOP)
        two.await_step(STEPS - 10)
        os.kill(stopped, signal.SIGCONT)
        assert_as_alone(one, two, steps=STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_whoever_is_stopped_whenever_holds_up_its_own_gang_only(seed):
    chance = random.Random(seed)
    with two_gangs(1_000_000) as (one, two):
        for _ in range(40):
            mine, other = chance.sample((one, two), 2)
            stopped = mine.live(chance.randrange(3)).popen.pid
            time.sleep(chance.uniform(0.0, 0.5))  # at any moment
            os.kill(stopped, signal.SIGSTOP)
            other.await_step(steps_of(other) + 5)
            os.kill(stopped, signal.SIGCONT)
            mine.await_step(steps_of(mine) + 3)


def steps_of(gang: Gang) -> int:
    return max(int(process.page.get("step")) for process in gang.processes)
