"""Which steps are seen: all while somebody needs it, else one now and then; and what is not seen works as if it were."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from restow.page import create_page
from restow.sdk.attention import LOOK_S, Attention
from restow.sdk.gradients import Gradients, GradientWatch
from restow.sdk.group import OPERATIONS, NetInner, SwitchGroup
from tests.sdk.gang import Gang

SCRIPT = Path(__file__).with_name("script_mlp.py")


class Story:
    """Steps of a 64th of a second by a clock of its own."""

    def __init__(self, folder: Path, group: SwitchGroup, is_replaceable: bool = False):
        self.page = create_page(folder / "page")
        self.now_s = self.until_s = 0.0
        self.is_needed = False
        self.gate = memoryview(bytearray(8)).cast("q")
        self.step = 0
        self.step_s = 1 / 64
        self.came: list[int] = []
        parameter = torch.nn.Parameter(torch.ones(1))
        self.watch = GradientWatch({"sgd": torch.optim.SGD([parameter])})
        self.attention = Attention(
            self.page, [group], self.watch, is_replaceable=is_replaceable, is_needed=lambda: self.is_needed,
            gates=lambda: (self.gate,), step_s=lambda: self.step_s,
            on_come=lambda _: self.came.append(self.step), now_s=lambda: self.now_s,
        )  # fmt: skip

    def train(self) -> bool:
        """One step more. Was there anything to be done at its save point?"""
        self.now_s += self.step_s
        self.step += 1
        if self.attention.passes(self.step):
            return False
        self.attention.turn()
        return True

    def is_seen(self) -> bool:
        return not self.attention.is_away


@pytest.fixture
def group() -> SwitchGroup:
    return SwitchGroup("group0", [0], 0, NetInner(dist.HashStore(), 0, 1))


@pytest.fixture
def story(tmp_path, group) -> Story:
    return Story(tmp_path, group)


def test_one_step_in_a_while_is_seen(story):
    assert story.train()
    worked = [story.train() for _ in range(100)]
    assert story.page.get("step") == story.step  # at each of them
    period = round(LOOK_S / story.step_s) + 2
    assert [index for index, did in enumerate(worked) if did] == list(range(period - 1, 100, period))
    assert story.came == [period * n for n in range(1, len(story.came) + 1)]  # finished steps when the one that is seen begins


def test_where_a_lost_rank_is_to_be_replaced_collectives_and_gradients_are_always_seen(tmp_path, group):
    story = Story(tmp_path, group, is_replaceable=True)
    story.train()
    assert not story.train()
    assert story.attention.is_away
    tensor = torch.ones(4)
    group.allreduce([tensor]).wait()
    assert group.bytes_given == 16
    assert story.watch._watched["sgd"]._hook


def test_every_step_is_seen_while_somebody_needs_it(story):
    story.is_needed = True
    assert all(story.train() and story.is_seen() for _ in range(100))
    story.is_needed = False
    assert story.train() and not story.is_seen()
    story.is_needed = True
    story.attention.call()
    assert all(story.train() and story.is_seen() for _ in range(100))


@pytest.mark.parametrize("what", ["a proposal", "a neighbour", "a call"])
def test_what_comes_is_seen_to_at_the_next_save_point(story, what):
    story.train()
    assert not story.train()
    if what == "a proposal":
        story.page.set("switch_step", story.step + 1)
    elif what == "a neighbour":
        story.gate[0] = 1
    else:
        story.attention.call()
    assert story.train()


def test_long_steps_are_all_seen(story):
    story.step_s = 1.0
    assert all(story.train() and story.is_seen() for _ in range(10))


def test_what_was_known_of_the_gradients_is_forgotten_meanwhile(story):
    story.is_needed = True
    optimizer = story.watch._watched["sgd"]._optimizer
    parameter = optimizer.param_groups[0]["params"][0]

    def step() -> Gradients:
        optimizer.zero_grad()
        parameter.sum().backward()
        optimizer.step()
        story.train()
        return story.watch.status("sgd")

    assert [step() for _ in range(3)] == [Gradients.LIVE, Gradients.SPENT, Gradients.SPENT]
    story.is_needed = False
    story.train()
    for _ in range(3):
        parameter.sum().backward()  # added up, and nobody sees it
    story.is_needed = True
    story.attention.call()
    story.train()
    assert story.watch.status("sgd") is Gradients.LIVE
    assert [step() for _ in range(3)] == [Gradients.LIVE, Gradients.SPENT, Gradients.SPENT]


def test_what_is_overlooked_goes_to_the_library_at_once(group):
    assert set(OPERATIONS) <= set(dir(SwitchGroup))  # none of them is another's
    tensor = torch.ones(4)
    group.allreduce([tensor]).wait()
    assert (group.bytes_given, group.inner.launched()) == (16, 1)
    group.overlook()
    group.allreduce([tensor], dist.AllreduceOptions()).wait()
    group.barrier(dist.BarrierOptions()).wait()
    assert (group.bytes_given, group.inner.launched()) == (16, 3)
    group.swap(NetInner(dist.HashStore(), 0, 1))
    group.allreduce([tensor]).wait()
    assert (group.bytes_given, group.inner.launched()) == (32, 1)


@pytest.mark.live
def test_all_ranks_have_given_as_much_however_old_they_are():
    """Else the youngest would be named as the one for which the others wait."""
    with Gang(SCRIPT, "a:0 a:1 b:0", ["--steps", "60"], holds=(20, 50)) as gang:
        gang.await_step(20)
        gang.move("a:0 a:1 a:2")
        while not all(gang.output(rank)[-1:] and gang.output(rank)[-1].startswith("50 ") for rank in range(3)):
            time.sleep(0.002)  # they hold where this was printed
        ranks = [gang.live(rank) for rank in range(3)]
        for process in ranks:
            gang.tell(process, type="where")
        given = {fact["given"] for fact in gang.await_fact(ranks, "where")}
        assert len(given) == 1 and given.pop() >= 29
        gang.await_end()
