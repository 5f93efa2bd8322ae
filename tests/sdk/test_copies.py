"""Copies of what all ranks hold alike: of the last two steps, whole, and not changed by what comes after."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from restow import stripes, vault
from restow.sdk.boxes import StateTable
from restow.sdk.copies import SMALL_BYTES_MAX, Copies
from restow.sdk.vault import map_state, tensors_of


def files(folder):
    return lambda rank: stripes.files(folder, "job", rank)


def path(folder, rank):
    return folder / f"job.g1.r{rank}{stripes.SUFFIX}"


def copies_of(table, folder, rank=0, nodes=("m1", "m1", "m1"), step_s=10.0):
    copies = Copies(table, rank, path(folder, rank), files(folder), lambda: step_s)
    copies.join(1, nodes)
    return copies


class Trained:
    """A model and its optimizer after a step: copies are made of what has its whole size."""

    def __init__(self, width):
        torch.manual_seed(1)
        self.model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Linear(width, width, bias=False))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.table = StateTable({"model": self.model, "optimizer": self.optimizer})
        self.forward()
        self.optimizer.step()

    def forward(self):
        self.model(torch.ones(1, self.model[0].in_features)).sum().backward()

    def state(self):
        return {name: tensor.clone() for name, tensor in self.table.tensors().items()}


def kept(folder, step, generation=1):
    """The state of this step from the stripes that are in the folder, through a vault."""
    entries, views = stripes.gather(folder, "job", generation, step)
    vault.write(folder / "vault", vault.REPLICA, views, entries, job="job", generation=generation, step=step)
    return tensors_of(*map_state(folder / "vault", vault.REPLICA))


def are_equal(some, others):
    return list(some) == list(others) and all(torch.equal(some[name], others[name]) for name in some)


@pytest.mark.parametrize(("width", "step_s"), [(8, 10.0), (8, 0.0), (400, 10.0)])
def test_the_last_two_steps_are_held_as_they_were_whoever_copies(tmp_path, width, step_s):
    trained = Trained(width)
    copies, was = copies_of(trained.table, tmp_path, nodes=("m1",), step_s=step_s), {}
    for step in range(5):
        trained.forward()
        was[step] = trained.state()
        copies.begin(step)
        copies.finish(step)
        trained.optimizer.step()
    assert (trained.table.state_bytes() <= SMALL_BYTES_MAX) is (width == 8)
    assert (copies._thread is None) is (width == 8 and step_s > 0)  # what is small against a step needs nobody else
    assert copies.whole() == ((0, 1), {3, 4})
    assert all(are_equal(kept(tmp_path, step), was[step]) for step in (3, 4))


def test_ranks_of_a_node_have_a_stripe_each_and_they_make_a_whole(tmp_path):
    gang = [Trained(400) for _ in range(3)]
    every = [copies_of(each.table, tmp_path, rank) for rank, each in enumerate(gang)]
    was = {}
    for step in range(3):
        was[step] = gang[0].state()
        for copies in every:
            copies.begin(step)
        ends = [threading.Thread(target=copies.finish, args=(step,)) for copies in every]
        for end in ends:
            end.start()
        for end in ends:
            end.join()
        for each in gang:
            each.forward()
            each.optimizer.step()
    assert [copies.whole() for copies in every] == [((rank, 3), {1, 2}) for rank in range(3)]
    assert all(are_equal(kept(tmp_path, step), was[step]) for step in (1, 2))
    assert stripes.read(path(tmp_path, 1), 1) == ((1, 3), {1, 2})
    path(tmp_path, 1).unlink()
    with pytest.raises(KeyError, match="no copy of step 2"):
        kept(tmp_path, 2)


def test_nobody_updates_while_another_rank_of_the_node_is_behind(tmp_path):
    gang = [Trained(400) for _ in range(2)]
    first, second = (copies_of(each.table, tmp_path, rank, nodes=("m1", "m1")) for rank, each in enumerate(gang))
    for copies in (first, second):
        copies.begin(0)
        copies.finish(0)
    stripe = second._stripe
    stripe.set("asked", 1)  # it was stopped in its copy
    stripe.begin()
    first.begin(1)
    asked, is_lost = [], threading.Event()

    def is_over():
        asked.append(1)
        return len(asked) > 2

    first.finish(1, is_over)
    assert len(asked) == 3
    assert first.whole()[1] == {0, 1}
    end = threading.Thread(target=lambda: (first.begin(2), first.finish(2), is_lost.set()))
    stripe.set("asked", 2)
    end.start()
    stripe.finish(2)
    assert is_lost.wait(60)
    end.join()


def test_two_ranks_of_a_node_or_one_on_each_of_two_copy_what_is_small():
    def who(nodes, is_small):
        found = [stripes.divide(7, nodes, rank, is_small) for rank in range(len(nodes))]
        return [each and each.ranks for each in found]

    assert who(("m1", "m1", "m1"), True) == [(0,), (1,), None]
    assert who(("m1", "m1", "m2"), True) == [(0,), None, (2,)]
    assert who(("m1", "m1", "m1"), False) == [(0, 1, 2)] * 3
    assert who(("m2", "m1", "m2"), False) == [(0, 2), (1,), (0, 2)]
    assert who(("m1", "m2", "m3", "m2"), False) == [(0,), (1, 3), None, (1, 3)]


def test_a_new_generation_knows_nothing_of_the_copies_of_the_old_one(tmp_path):
    trained = Trained(8)
    copies = copies_of(trained.table, tmp_path, nodes=("m1",))
    copies.finish(3)
    assert stripes.read(path(tmp_path, 0), 1) == ((0, 1), {3})
    copies.join(2, ("m1", "m2"))
    assert (copies.whole()[1], stripes.read(path(tmp_path, 0), 1)) == (set(), None)
    copies.finish(4)
    assert copies.whole() == stripes.read(path(tmp_path, 0), 2) == ((0, 1), {4})


def test_a_small_state_is_copied_however_short_the_steps_are(tmp_path):
    copies = copies_of(StateTable({"model": torch.nn.Linear(8, 8)}), tmp_path, nodes=("m1",), step_s=0.0)
    for step in range(100):
        copies.begin(step)
        copies.finish(step)
        assert step in copies.whole()[1]


def test_tensors_that_are_replaced_are_copied_as_they_are_then(tmp_path):
    model = torch.nn.Linear(2, 2)
    copies = copies_of(StateTable({"model": model}), tmp_path, nodes=("m1",), step_s=0.0)
    for step in range(4):
        copies.finish(step)
    model.weight.data = torch.full((3, 2), 7.0)
    for step in range(4, 8):
        copies.finish(step)
        model.weight.data.add_(1.0)
    assert copies.whole()[1] == {6, 7}
    assert kept(tmp_path, 7)["model.weight"].tolist() == [[10.0, 10.0]] * 3


def test_every_kind_of_tensor_comes_back(tmp_path):
    model = torch.nn.Linear(3, 2)
    model.weight.data = torch.randn(3, 2).t()  # columns first
    model.more = torch.nn.Parameter(torch.tensor(5, dtype=torch.int64), requires_grad=False)
    model.none = torch.nn.Parameter(torch.empty(0, 4, dtype=torch.bfloat16))
    copies = copies_of(StateTable({"model": model}), tmp_path, nodes=("m1",))
    copies.finish(0)
    held = kept(tmp_path, 0)
    assert held["model.weight"].stride() == model.weight.stride()
    assert are_equal({name: held[f"model.{name}"] for name, _ in model.named_parameters()}, dict(model.named_parameters()))


@pytest.mark.parametrize("why", ["more than any memory holds", "no such folder", "shared memory is full", "no room for a vault"])
def test_where_there_is_no_room_the_copies_end_and_not_the_training(tmp_path, monkeypatch, why, capfd):
    class Table:
        def tensors(self):
            return {"a": torch.empty(1).expand(1 << 45 if why == "more than any memory holds" else 1)}

    if why == "shared memory is full":
        monkeypatch.setattr(stripes, "FREE_PART_MIN", 1.1)
    if why == "no room for a vault":  # one page, two copies of it and a little more would fit into five, and not another page
        monkeypatch.setattr(stripes.os, "statvfs", lambda _: SimpleNamespace(f_bavail=5, f_blocks=5, f_frsize=stripes.PAGE))
        monkeypatch.setattr(Table, "tensors", lambda _: {"a": torch.empty(stripes.PAGE // 4)})
    folder = tmp_path / "none" if why == "no such folder" else tmp_path
    copies = Copies(Table(), 0, path(folder, 0), lambda rank: [], lambda: 0.0)
    copies.join(1, ("m1", "m1"))
    copies.finish(0)
    copies.begin(1)
    copies.finish(1)
    assert (copies.whole()[1], copies.is_made) == (set(), False)
    said = capfd.readouterr().err
    assert said.count("restow: rank 0 keeps no copy of the step before") == (why != "more than any memory holds")
