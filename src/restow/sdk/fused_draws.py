"""The random generators of one member of a sweep, apart from the process's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Draws:
    """The random generators of one member: what its separate run would draw from after making its model."""

    def __init__(self, device: torch.device):
        self._device = device
        self._own = {"cpu": torch.Generator()}
        if device.type != "cpu":
            self._own[device.type] = torch.Generator(device)

    def take(self) -> Draws:
        """Stand where the process's own generators stand now. Returns self."""
        for kind, theirs in self._process().items():
            self._own[kind].set_state(theirs.get_state())
        return self

    @contextmanager
    def lent(self) -> Iterator[None]:
        """While this lasts the process draws from these instead of its own."""
        process = self._process()
        kept = {kind: theirs.get_state() for kind, theirs in process.items()}
        for kind, theirs in process.items():
            theirs.set_state(self._own[kind].get_state())
        try:
            yield
        finally:
            for kind, theirs in process.items():
                self._own[kind].set_state(theirs.get_state())
                theirs.set_state(kept[kind])

    def state(self) -> dict[str, Tensor]:
        return {kind: own.get_state() for kind, own in self._own.items()}

    def restore(self, state: Mapping[str, Tensor]) -> Draws:
        """Go where `state()` was taken; a device that it does not know keeps its place. Returns self."""
        for kind in self._own.keys() & state.keys():
            self._own[kind].set_state(state[kind])
        return self

    def _process(self) -> dict[str, torch.Generator]:
        found = {"cpu": torch.default_generator}
        if self._device.type == "cuda":
            torch.cuda.init()
            index = torch.cuda.current_device() if self._device.index is None else self._device.index
            found["cuda"] = torch.cuda.default_generators[index]
        return found
