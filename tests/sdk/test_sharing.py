"""Gangs on the same devices: whatever their gates do, each prints what it would have printed alone."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from restow.gate import FREE, INTERLEAVE, TIME_SLICE, Keeper
from restow.placement import parse_placement
from tests.sdk.gang import PATIENCE_S, Gang
from tests.sdk.test_switch import SCRIPT, arguments, undisturbed

pytestmark = pytest.mark.live
SLOW = pytest.mark.slow
THREE = "a:0 a:1 b:0"


class Gates:
    """The gates of some devices, as agents would keep them."""

    def __init__(self, folder: Path, placement: str, mode: int):
        self.folder = folder
        self.keepers = {}
        for slot in parse_placement(placement):
            (folder / slot.node).mkdir(exist_ok=True)
            self.keepers[slot[:2]] = Keeper(folder / slot.node, slot.device)
        self.set_mode(mode)

    def set_mode(self, mode: int) -> None:
        for keeper in self.keepers.values():
            keeper.set_mode(mode, turn="one" if mode == TIME_SLICE else None)

    def grants(self, job: str) -> int:
        """How often a member of this job was let in, the least of all devices."""
        return min(
            sum(seat.grants for seat in keeper.look().seats if seat.job == job) for keeper in self.keepers.values()
        )

    def members(self) -> list[int]:
        return [len(keeper.look().seats) for keeper in self.keepers.values()]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="restow-gates-", dir="/dev/shm") as name:
        yield Path(name)


def until(what: str, is_so: Callable[[], bool], *gangs: Gang) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline_s, f"waited in vain until {what}: {look(*gangs)}"
        time.sleep(0.01)


def assert_as_alone(*gangs: Gang, steps: int = 60) -> None:
    for gang in gangs:
        gang.await_end()
    for gang in gangs:
        assert [gang.output(rank) for rank in range(len(gang.placement))] == undisturbed(len(gang.placement), steps=steps)


def gang(folder: Path, job: str, steps: int = 60, workers: int = 0, holds: Sequence[int] = ()) -> Gang:
    """Holds only while the gates are free: a script that waits inside its loop keeps its device."""
    return Gang(SCRIPT, THREE, arguments(workers, steps=steps), holds=holds, gates=folder, job=job)


@contextlib.contextmanager
def two_gangs(gates: Gates, mode: int, steps: int) -> Iterator[tuple[Gang, Gang]]:
    """Both have done a step and go on at once, so that neither has ended before the other comes; from then on in `mode`."""
    gates.set_mode(FREE)
    with gang(gates.folder, "one", steps, holds=[1]) as one, gang(gates.folder, "two", steps, holds=[1]) as two:
        for each in (one, two):
            each.await_step(1)
        assert gates.members() == [2, 2, 2]
        gates.set_mode(mode)
        for each in (one, two):
            each.release()
        yield one, two


def look(*gangs: Gang) -> str:
    """Where every process is, for the message of a failure."""
    return str([
        (p.page.get("step"), p.page.get("swapped_bytes"), p.popen.poll()) for each in gangs for p in each.processes
    ])  # fmt: skip


@pytest.mark.parametrize("mode", [pytest.param(FREE, marks=SLOW), INTERLEAVE, pytest.param(TIME_SLICE, marks=SLOW)])
def test_two_gangs_of_three_on_the_same_devices_print_what_they_print_alone(folder, mode):
    gates = Gates(folder, THREE, FREE)
    with two_gangs(gates, mode, steps=200) as (one, two):
        if mode != FREE:
            until("both were let in again and again", lambda: min(gates.grants("one"), gates.grants("two")) > 1, one, two)
        assert_as_alone(one, two, steps=200)


def test_modes_change_while_gangs_train(folder):
    gates = Gates(folder, THREE, FREE)
    with gang(folder, "one", steps=200) as one, gang(folder, "two", steps=200) as two:
        until("all are members", lambda: gates.members() == [2, 2, 2])
        for mode in (INTERLEAVE, TIME_SLICE, INTERLEAVE, FREE, TIME_SLICE, FREE):
            before = [max(int(p.page.get("step")) for p in each.processes) for each in (one, two)]
            gates.set_mode(mode)
            for each, step in zip((one, two), before, strict=True):
                each.await_step(min(step + 5, 200))
        assert_as_alone(one, two, steps=200)


def test_what_does_not_fit_is_swapped_out_between_turns(folder):
    gates = Gates(folder, THREE, FREE)
    with two_gangs(gates, TIME_SLICE, steps=200) as (one, two):
        everybody = [*one.processes, *two.processes]
        for process in everybody:
            process.page.set("swap_bytes", 20_000)  # of some 50,000
        until("all were swapped out", lambda: all(p.page.get("swapped_bytes") >= 20_000 for p in everybody), one, two)
        assert_as_alone(one, two, steps=200)


@pytest.mark.slow
def test_agents_that_are_killed_while_gangs_swap_in_turns_are_not_missed(folder):
    gates = Gates(folder, THREE, FREE)
    with two_gangs(gates, TIME_SLICE, steps=200) as (one, two):
        everybody = [*one.processes, *two.processes]
        for process in everybody:
            process.page.set("swap_bytes", 20_000)
        until("one is swapped out", lambda: any(p.page.get("swapped_bytes") >= 20_000 for p in everybody), one, two)
        for keeper in gates.keepers.values():
            keeper.close()  # as the kernel does it for a process that was killed
        assert_as_alone(one, two, steps=200)
        assert all(process.page.get("swapped_bytes") >= 20_000 for process in everybody)


@SLOW
def test_one_gang_is_killed_and_the_other_goes_on(folder):
    gates = Gates(folder, THREE, INTERLEAVE)
    with gang(folder, "one", steps=400) as one, gang(folder, "two", steps=400) as two:
        until("both compute", lambda: min(gates.grants("one"), gates.grants("two")) > 3)
        for process in two.processes:
            with contextlib.suppress(ProcessLookupError):  # it has seen its neighbour die
                two.kill(process)
        assert_as_alone(one, steps=400)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [INTERLEAVE, TIME_SLICE])
def test_a_gang_that_shares_moves_away_while_both_train(folder, mode):
    gates = Gates(folder, "a:0 a:1 b:0 a:2", mode)
    with gang(folder, "one", steps=400) as one, gang(folder, "two", steps=400) as two:
        until("all are members", lambda: gates.members()[:3] == [2, 2, 2])
        two.await_step(5)
        two.move("a:0 a:1 a:2")
        assert_as_alone(one, two, steps=400)
        assert gates.keepers["b", 0].look().seats == () or mode == TIME_SLICE


def test_loader_workers_live_on_beside_a_shared_device(folder):
    Gates(folder, THREE, INTERLEAVE)
    with gang(folder, "one", workers=2) as one, gang(folder, "two") as two:
        one.await_end()
        two.await_end()
        assert [one.output(rank) for rank in range(3)] == undisturbed(3, workers=2)
