"""The same gangs on the same devices, with models on a GPU: its kernels are over when another one is let in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from restow.agent.devices import find_devices
from restow.gate import INTERLEAVE, TIME_SLICE
from tests.sdk.test_sharing import (  # noqa: F401
    THREE,
    Gates,
    assert_as_alone,
    folder,
    gang,
    test_a_gang_that_shares_moves_away_while_both_train,
    test_modes_change_while_gangs_train,
    test_one_gang_is_killed_and_the_other_goes_on,
    test_what_does_not_fit_is_swapped_out_between_turns,
    until,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.live,
    pytest.mark.usefixtures("shared_gpu"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]


def test_it_is_found():
    devices = find_devices(None)
    assert [local.is_gpu for local in devices.values()] == [True] * torch.cuda.device_count()


@pytest.mark.parametrize("mode", [INTERLEAVE, TIME_SLICE])
def test_two_gangs_of_three_on_one_gpu_print_what_they_print_alone(folder: Path, mode: int):  # noqa: F811
    gates = Gates(folder, THREE, mode)
    with gang(folder, "one", steps=1000) as one, gang(folder, "two", steps=1000) as two:
        until("both were let in again and again", lambda: min(gates.grants("one"), gates.grants("two")) > 1)
        assert_as_alone(one, two, steps=1000)
