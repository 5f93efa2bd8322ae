"""What passes the gate of a device, and what need not: a stand-in for the gate, real backwards, and a clock of our own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from restow.gate import BEST_EFFORT, FREE, INTERLEAVE, ORDINARY, PROTECTED, TIME_SLICE, Gate, Keeper
from restow.sdk import passage as module
from restow.sdk.passage import PASSING_PART_MAX, RECENT, Passage
from restow.sdk.priority import Priority


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s

    def thread_time(self) -> float:
        return self.now_s

    def work(self, seconds: float) -> None:
        self.now_s += seconds


class FreeHanded:
    """A gate at which nobody else waits."""

    def __init__(self, level: int = ORDINARY):
        self.mode, self.level, self.held, self.grants = INTERLEAVE, level, False, 0

    @property
    def is_free(self) -> bool:
        return self.mode == FREE

    def acquire(self) -> None:
        self.held = True
        self.grants += 1

    def release(self) -> None:
        self.held = False

    def crowded(self) -> bool:
        return False

    def poll(self) -> bool:
        return False

    def has_turn(self) -> bool:
        return True

    def lesser_holder(self) -> int:
        return 0


class Idle:
    is_core = True

    def settle(self) -> None: ...

    def bound_run_ahead(self) -> None: ...


class Launched:
    """A collective that arrives when its future is set."""

    def __init__(self) -> None:
        self.future: torch.futures.Future[Any] = torch.futures.Future()

    def get_future(self) -> torch.futures.Future[Any]:
        return self.future


class Script:
    """A training script's steps, each with a collective that is left when the backward is over."""

    def __init__(self, clock: Clock, level: int = ORDINARY, is_tight: bool = False):
        self.clock, self.gate, self.model = clock, FreeHanded(level), nn.Linear(1, 1)
        self.passage = Passage(self.gate, Idle(), [self.model], is_tight=lambda: is_tight, priority=Priority(is_fixed=True))  # type: ignore[arg-type]

    def compute(self) -> None:
        """Forward and backward of one second, and the collective's arrival after another."""
        self.passage.take()
        loss, launched = self.model(torch.ones(1)), Launched()
        loss.register_hook(lambda _: self.passage.carry(launched) and None)
        self.clock.work(1.0)
        loss.backward()
        assert not self.gate.held, "who waits for a collective lends the device"
        self.clock.work(1.0)
        launched.future.set_result(None)

    def step(self, update_s: float) -> bool:
        """Whether the update held the device."""
        self.compute()
        held = self.gate.held
        self.clock.work(update_s)
        self.passage.save_point()
        return held


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_short_update_passes_without_the_gate_once_it_is_known_to_be_short(clock):
    script = Script(clock)
    assert all(script.step(0.05) for _ in range(RECENT))
    assert not any(script.step(0.05) for _ in range(3 * RECENT))


def test_an_update_that_passes_counts_as_use_of_the_device(clock):
    script = Script(clock)
    for _ in range(RECENT + 1):  # with the last update that held it, the device is still held at the next forward
        script.step(0.05)
    before_s = script.passage.held_s
    script.step(0.05)
    assert script.passage.held_s - before_s == pytest.approx(1.05)


def test_an_update_that_has_become_long_takes_the_gate_again(clock):
    script = Script(clock)
    for _ in range(RECENT):
        script.step(0.05)
    for _ in range(RECENT):
        script.step(2 * PASSING_PART_MAX)
    assert script.step(2 * PASSING_PART_MAX)


@pytest.mark.parametrize("how", [{"level": PROTECTED}, {"level": BEST_EFFORT}, {"is_tight": True}])
def test_an_update_takes_the_gate_where_another_must_stop_for_it(clock, how):
    script = Script(clock, **how)
    assert all(script.step(0.05) for _ in range(3 * RECENT))


def test_a_forward_after_an_update_that_passed_takes_the_gate(clock):
    script = Script(clock)
    for _ in range(RECENT):
        script.step(0.05)
    script.compute()
    assert not script.gate.held
    script.model(torch.ones(1))
    assert script.gate.held


@pytest.mark.parametrize("mode", [FREE, TIME_SLICE])
def test_who_waits_for_a_collective_lends_the_device_although_the_mode_has_changed_since_it_took_it(clock, mode):
    script = Script(clock)
    script.passage.take()
    script.gate.mode = mode
    script.compute()


def test_whose_page_was_left_while_the_gate_was_free_finds_the_new_one(tmp_path):
    keeper = Keeper(tmp_path, 0)
    keeper.set_mode(FREE)
    passage = Passage(Gate.join(tmp_path, 0, job="job", rank=0), Idle())
    assert passage.is_open
    keeper._order.record.magic[0] = 0  # what is found there makes no sense
    keeper.set_mode(INTERLEAVE)
    assert keeper.look().number == 2
    assert not passage.is_open
    passage.take()
    assert passage.holds and keeper.look().owner is not None
    passage.close()
