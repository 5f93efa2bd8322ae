"""What the ledger keeps of a step, and how it is done again."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from restow.sdk.group import DoneWork, SoloInner, SwitchGroup
from restow.sdk.ledger import Ledger


class Doubling(SoloInner):
    """A ring of two equal ranks: every sum is twice the input."""

    def allreduce(self, tensors, opts=None):
        for tensor in tensors:
            tensor.mul_(2)
        return DoneWork(tensors)


@pytest.fixture
def group() -> SwitchGroup:
    return SwitchGroup("g", range(2), 0, Doubling())


def written(ledger: Ledger, group: SwitchGroup, value: float):
    tensor = torch.full((4,), value)
    return tensor, ledger.write(group, "allreduce", ([tensor], dist.AllreduceOptions()))


def test_a_sum_that_an_inner_left_half_done_is_made_again_from_its_inputs(group):
    ledger = Ledger()
    ledger.turn(5)
    tensor, entry = written(ledger, group, 3.0)
    tensor.fill_(1234.5)
    assert not entry.work.is_completed()
    entry.redo()
    assert entry.work.wait() and tensor.tolist() == [6.0] * 4
    assert [t.tolist() for t in entry.work.get_future().value()] == [[6.0] * 4]


def test_a_result_in_use_is_not_touched_when_the_sum_is_made_again_for_others(group):
    ledger = Ledger()
    ledger.turn(5)
    tensor, entry = written(ledger, group, 3.0)
    entry.finish()
    tensor.fill_(7.0)  # the script has gone on with it
    entry.redo()
    assert tensor.tolist() == [7.0] * 4


def test_only_this_step_and_the_one_before_are_kept(group):
    ledger = Ledger()
    for step in (5, 6, 7):
        ledger.turn(step)
        written(ledger, group, float(step))
    assert ledger.first == 6
    assert [entry.saved[0][0].item() for entry in ledger.since(6)] == [6.0, 7.0]
    assert [entry.saved[0][0].item() for entry in ledger.since(7)] == [7.0]


def test_a_step_that_cannot_be_repeated_says_why(group):
    ledger = Ledger()
    ledger.turn(5)
    ledger.write(group, "send", ([torch.zeros(1)], 1, 0))
    assert "send was used" in ledger.why_not
    assert ledger.since(5) == []


def test_an_error_reaches_who_waits_for_the_work_and_who_waits_for_its_future(group):
    ledger = Ledger()
    ledger.turn(5)
    _, entry = written(ledger, group, 3.0)
    entry.fail(RuntimeError("the peer is gone"))
    for wait in (entry.work.wait, entry.work.get_future().wait):
        with pytest.raises(RuntimeError, match="the peer is gone"):
            wait()
