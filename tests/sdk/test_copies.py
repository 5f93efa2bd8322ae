"""Copies of what all ranks hold alike: of the last two steps, whole, and not changed by what comes after."""

from __future__ import annotations

import pytest
import torch

from restow.sdk.boxes import StateTable
from restow.sdk.copies import SMALL_BYTES_MAX, Copies


@pytest.mark.parametrize(("width", "step_s"), [(8, 10.0), (8, 0.0), (400, 10.0)])
def test_the_last_two_steps_are_held_as_they_were_whoever_copies(width, step_s):
    model = torch.nn.Linear(width, width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    table = StateTable({"model": model, "optimizer": optimizer})
    model(torch.ones(1, width)).sum().backward()
    optimizer.step()  # copies are made of what has its whole size
    copies, was = Copies(table, lambda: step_s), {}
    for step in range(5):
        model(torch.ones(1, width)).sum().backward()
        was[step] = {name: tensor.clone() for name, tensor in table.tensors().items()}
        copies.begin(step)
        copies.finish(step)
        optimizer.step()
    assert (table.state_bytes() <= SMALL_BYTES_MAX) is (width == 8)
    assert (copies._thread is None) is (width == 8 and step_s > 0)  # what is small against a step needs nobody else
    assert copies.steps() == {3, 4}
    for step in (3, 4):
        held = copies.of(step)
        assert held.keys() == was[step].keys()
        assert all(torch.equal(held[name], was[step][name]) for name in held)


def test_a_small_state_is_copied_however_short_the_steps_are():
    model = torch.nn.Linear(8, 8)
    copies = Copies(StateTable({"model": model}), lambda: 0.0)
    for step in range(100):
        copies.begin(step)
        copies.finish(step)
        assert step in copies.steps()


def test_tensors_that_are_replaced_are_copied_as_they_are_then():
    model = torch.nn.Linear(2, 2)
    copies = Copies(StateTable({"model": model}), lambda: 0.0)
    for step in range(4):
        copies.finish(step)
    model.weight.data = torch.full((3, 2), 7.0)
    for step in range(4, 8):
        copies.finish(step)
        model.weight.data.add_(1.0)
    assert copies.steps() == {6, 7}
    assert copies.of(7)["model.weight"].tolist() == [[10.0, 10.0]] * 3


def test_where_there_is_no_room_the_copies_end_and_not_the_training():
    class Table:
        """Of more tensors than any memory holds."""

        def tensors(self):
            return {"a": torch.empty(1).expand(1 << 45)}

        def state_bytes(self):
            return 4

    copies = Copies(Table(), lambda: 0.0)
    copies.finish(0)
    copies.finish(1)
    assert copies.steps() == set()
