"""The same switches with the training state on a GPU. One GPU is enough: ranks that share it talk through gloo."""

from __future__ import annotations

import pytest
import torch

from tests.sdk.gang import Gang
from tests.sdk.test_switch import SCRIPT, arguments, outputs, undisturbed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.live,
    pytest.mark.usefixtures("shared_gpu"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]


@pytest.mark.parametrize(
    ("now", "then", "fill"),
    [
        ("a:0 a:1 b:0", "a:0 a:1 a:2", "replica"),
        ("b:0 a:1 a:2", "a:0 a:1 a:2", "replica"),
        ("a:0 a:1 a:2", "b:0 b:1 b:2", "copy"),
        ("a:0", "b:0", "copy"),
    ],
)
def test_a_moved_gang_prints_what_it_would_have_printed(now, then, fill):
    with Gang(SCRIPT, now, arguments()) as gang:
        gang.await_step(20)
        gang.move(then, fill)
        assert outputs(gang) == undisturbed(len(gang.placement))


def test_nccl_alone_in_its_world_is_swapped(monkeypatch):
    """NCCL refuses two ranks on one GPU, so the swap of a real NCCL communicator is shown with a gang of one in a group."""
    from restow.sdk.group import NetInner, SwitchGroup

    store = torch.distributed.HashStore()
    libraries = {"cpu": "gloo", "cuda": "nccl"}
    group = SwitchGroup("group0", [0], 0, NetInner(torch.distributed.PrefixStore("1", store), 0, 1, libraries))
    number = torch.ones(1, device="cuda")
    group.allreduce([number]).wait()
    old = group.swap(NetInner(torch.distributed.PrefixStore("2", store), 0, 1, libraries))
    group.allreduce([number]).wait()
    torch.cuda.synchronize()
    assert number.item() == 1.0
    old.close()
    group.inner.close()
