"""What a process computes on, as far as sharing it goes: is it idle, and how far ahead has the host run?

On a CPU device the host is the device, so it is idle as soon as the host waits. On CUDA the host only hands kernels over:
before the device is given away an event after the last of them is waited for, and between two yield points the host may run
ahead of the device by one stretch only, or a better job would wait for a whole queue of kernels.
"""

from __future__ import annotations

from typing import Any

import torch


class Device:
    """See the module. `is_core`: the device is the processor core that this process runs on."""

    def __init__(self, device: torch.device):
        self._device = device
        self.is_core = device.type == "cpu"
        self._behind: Any = None  # event at the last yield point

    def settle(self) -> None:
        """Return when the device has done all that this process gave it to do."""
        if not self.is_core:
            event = torch.cuda.Event(blocking=True)
            event.record(torch.cuda.current_stream(self._device))
            event.synchronize()
            self._behind = None

    def bound_run_ahead(self) -> None:
        """At a yield point: wait until the device has come to the one before."""
        if not self.is_core:
            if self._behind is not None:
                self._behind.synchronize()
            self._behind = torch.cuda.Event(blocking=True)
            self._behind.record(torch.cuda.current_stream(self._device))
