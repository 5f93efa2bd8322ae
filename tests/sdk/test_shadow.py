"""A leader and its follower in one process: what the follower holds in the end is what the leader holds."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import torch
import torch.distributed as dist

from restow.placement import parse_placement
from restow.sdk.boxes import StateTable
from restow.sdk.shadow import Leader, Shadow


class Trained:
    """A small model whose state exists already; `update` is one step of its optimizer."""

    def __init__(self):
        torch.manual_seed(1)
        self.model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.update()
        self.table = StateTable({"model": self.model, "optimizer": self.optimizer})

    def update(self):
        self.optimizer.zero_grad()
        self.model(torch.ones(3, 8)).square().sum().backward()
        self.optimizer.step()


class Both:
    """Rank 0 leads and stays on node a, rank 1's twin arrives there and follows."""

    def __init__(self, tmp_path):
        self._store, self._page = dist.HashStore(), tmp_path / "job.page"
        self.leading, self.following = Trained(), Trained()
        self.updates = 1  # of the leader
        self.is_ready = threading.Event()

    def _environment(self, rank):
        return SimpleNamespace(rank=rank, page=str(self._page))

    def _attempt(self):
        terms = SimpleNamespace(now=parse_placement("a:0 b:0"), then=parse_placement("a:0 a:1"), generation=2)
        return SimpleNamespace(terms=terms, open_store=lambda: self._store)

    def lead(self):
        self.leader = Leader(self._attempt(), self.leading.table, self._environment(0), lambda: self.updates)

    def follow(self):
        self.shadow = Shadow(self._attempt(), self.following.table, self._environment(1), self.is_ready.set)

    def update(self):
        """As the worker's hooks do it."""
        before = self.leading.optimizer.register_step_pre_hook(lambda optimizer, *_: self.leader.before(optimizer))
        self.leading.update()
        before.remove()
        self._ended()

    def _ended(self):
        self.updates += 1
        self.leader.after()

    def finish(self):
        self.shadow.finish(self.updates, patience_s=60)
        self.leader.close()
        there = self.following.table.tensors()
        return {name: torch.equal(tensor, there[name]) for name, tensor in self.leading.table.tensors().items()}


def test_a_follower_repeats_what_the_leader_does(tmp_path):
    both = Both(tmp_path)
    both.lead()
    both.follow()
    while not both.is_ready.is_set():
        both.update()
    for _ in range(5):
        both.update()
    assert set(both.finish().values()) == {True}


def test_a_leader_between_two_updates_is_followed_at_once(tmp_path):
    both = Both(tmp_path)
    both.leading.update()
    both.lead()
    both.leader.follow_now()
    both.follow()
    assert both.is_ready.wait(60)
    assert set(both.finish().values()) == {True}


def test_an_update_that_was_under_way_when_the_leader_was_made_is_not_followed(tmp_path):
    both = Both(tmp_path)
    first, last = both.leading.model[0].weight, both.leading.model[1].weight
    with torch.no_grad():
        first.add_(1.0)  # the update has come as far as here
        both.lead()
        both.follow()
        assert not both.is_ready.wait(0.3), "it has read a state that is of no step"
        last.add_(1.0)
    both._ended()
    assert not both.is_ready.is_set()
    while not both.is_ready.is_set():
        both.update()
    assert set(both.finish().values()) == {True}
