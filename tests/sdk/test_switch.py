"""A real gang is switched while it trains: every printed loss and the final parameters equal those of the run left alone."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

import pytest

from tests.sdk.gang import Gang

SCRIPT = Path(__file__).with_name("script_mlp.py")
pytestmark = pytest.mark.live


@functools.cache
def undisturbed(ranks: int, workers: int = 0, width: int = 64, steps: int = 60) -> list[list[str]]:
    """What each rank prints when nobody moves it."""
    with Gang(SCRIPT, " ".join(f"a:{r}" for r in range(ranks)), arguments(workers, width, steps)) as gang:
        gang.await_end()
        return [gang.output(rank) for rank in range(ranks)]


def arguments(workers: int = 0, width: int = 64, steps: int = 60) -> list[str]:
    return ["--steps", str(steps), "--workers", str(workers), "--width", str(width)]


def outputs(gang: Gang) -> list[list[str]]:
    gang.await_end()
    return [gang.output(rank) for rank in range(len(gang.placement))]


@pytest.mark.parametrize(
    ("now", "then", "fill"),
    [
        ("a:0 b:0", "b:1 b:0", "replica"),  # two ranks, rank 0 leaves
        ("a:0 a:1 b:0", "a:0 a:1 a:2", "replica"),  # three, the last leaves
        ("b:0 a:1 a:2", "a:0 a:1 a:2", "replica"),  # three, rank 0 leaves
        ("a:0 a:1 b:0", "a:0 a:1 a:2", "shadow"),
        ("b:0 a:1 a:2", "a:0 a:1 a:2", "shadow"),
        ("a:0 a:1 a:2", "b:0 b:1 b:2", "copy"),  # all leave, nobody is there
        ("a:0 a:1 b:0 b:1", "b:2 b:3 b:0 b:1", "replica"),  # four, two leave at once
        ("a:0 a:1 b:0 c:0", "b:1 b:2 b:0 b:3", "shadow"),  # four, three follow one leader
        ("a:0", "b:0", "copy"),  # alone
    ],
)
def test_a_moved_gang_prints_what_it_would_have_printed(now, then, fill):
    with Gang(SCRIPT, now, arguments()) as gang:
        gang.await_step(20)
        facts = gang.move(then, fill)
        assert {fact["generation"] for fact in facts} == {2}
        assert outputs(gang) == undisturbed(len(gang.placement))


def test_loader_workers_with_random_augmentation_move_exactly():
    with Gang(SCRIPT, "a:0 a:1 b:0", arguments(workers=2)) as gang:
        gang.await_step(20)
        gang.move("a:0 a:1 a:2")
        assert outputs(gang) == undisturbed(3, workers=2)


def test_a_job_moves_there_and_back_again():
    with Gang(SCRIPT, "a:0 a:1 b:0", arguments(steps=100), holds=(20, 50, 80)) as gang:
        for step, there in ((20, "a:0 a:1 a:2"), (50, "a:0 a:1 b:0"), (80, "b:1 b:2 b:0")):
            gang.await_step(step)
            gang.move(there)
        assert outputs(gang) == undisturbed(3, steps=100)


def test_an_undecided_proposal_costs_a_wait_and_nothing_else():
    with Gang(SCRIPT, "a:0 a:1 b:0", arguments()) as gang:
        gang.await_step(20)
        switching = gang.prepare("a:0 a:1 a:2", "replica")
        switching.connect()
        switching.propose()  # and now the controller is gone
        assert outputs(gang) == undisturbed(3)


def test_a_refused_step_is_followed_by_a_later_one():
    with Gang(SCRIPT, "a:0 a:1 b:0", arguments(), holds=(20, 30)) as gang:
        gang.await_step(20)
        switching = gang.prepare("a:0 a:1 a:2", "replica")
        switching.connect()
        switching.propose()
        assert switching.decide("abort") == "abort"
        gang.release()
        gang.await_step(30)
        switching.propose()
        assert switching.decide("go") == "go"
        gang.release()
        switching.await_done()
        assert outputs(gang) == undisturbed(3)


@pytest.mark.parametrize("fill", ["replica", "shadow", "copy"])
def test_a_twin_killed_before_the_decision_takes_part_rolls_everybody_back(fill):
    with Gang(SCRIPT, "a:0 a:1 b:0", arguments()) as gang:
        gang.await_step(20)
        switching = gang.prepare("a:0 a:1 a:2", fill)
        switching.connect()
        os.killpg(switching.twins[0].popen.pid, signal.SIGKILL)
        switching.twins[0].popen.wait()
        switching.propose()
        switching.decide("go")
        gang.release()
        facts = gang.await_fact(switching.old, "rolled_back", 2)
        assert {fact["step"] for fact in facts} == {switching.step}
        assert outputs(gang) == undisturbed(3)
