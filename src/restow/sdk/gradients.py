"""Do the gradients that lie in `p.grad` between two iterations still matter?

They do when a backward added to them and no optimizer step used them up yet (accumulation), or when the script never
clears them. They don't when the script clears them before it adds to them again; then a third of an AdamW job's bytes
need not travel. In doubt they matter. Seen from outside, by a hook after `optimizer.step` and by wrapping
`optimizer.zero_grad` on the instance; `p.grad = None` and `model.zero_grad()` show by the tensors being new ones.
A script that cleared them at every step so far and stops doing so right after a move is beyond this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import torch

PROBES_MAX = 4  # parameters that are looked at, spread evenly; a backward that touches none of them goes unseen


class Gradients(Enum):
    LIVE = "live"  # must travel
    ZERO = "zero"  # cleared and not added to since: None or zeros
    SPENT = "spent"  # used by a step; the script will clear them before it adds to them


class GradientWatch:
    """Watches optimizers from its making on; a step and a zero_grad cost about 3 microseconds each."""

    def __init__(self, optimizers: Mapping[str, torch.optim.Optimizer]):
        self._watched = {name: _Watched(optimizer) for name, optimizer in optimizers.items()}

    def status(self, optimizer: str) -> Gradients:
        """What the gradients of this optimizer's parameters are now, between two iterations."""
        return self._watched[optimizer].status()

    def pause(self) -> None:
        """What comes now are not the script's own steps: a shadow repeats updates."""
        for watched in self._watched.values():
            watched.is_paused = True

    def resume(self) -> None:
        """The script goes on; what was learned of it before the pause still holds."""
        for watched in self._watched.values():
            watched.is_paused = False
            watched.forget_last()

    def open(self) -> None:
        """Watch again after `close`."""
        for watched in self._watched.values():
            watched.open()

    def adopt(self, optimizer: str, status: Gradients) -> None:
        """The gradients have just been given to us, by a process of which this was the status."""
        self._watched[optimizer].adopt(status)

    def close(self) -> None:
        """Take the hooks and wrappers off until `open`, and forget what was seen: gradients matter until a step and a zero_grad
        came then."""
        for watched in self._watched.values():
            watched.close()


_weak: Callable[[torch.Tensor], Any] = torch._C._WeakTensorRef  # type: ignore[attr-defined]
_Mark = tuple[Any, int, int] | None  # weak reference (keeps the address from being used again), address, version


class _Watched:
    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer = optimizer
        self._parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        every = max(1, len(self._parameters) // PROBES_MAX)
        self._probes = self._parameters[::every][:PROBES_MAX]
        self.is_paused = False
        self._last: str = ""  # "step" or "zero": what was seen last; empty: nothing yet
        self._marks: list[_Mark] = []
        self._clears: bool | None = None  # does the script clear between a step and the next backward? None: not seen
        self._hook: Any = None
        self._zero_grad: Callable[..., None] = optimizer.zero_grad
        self._own_before = optimizer.__dict__.get("zero_grad")  # of the instance, if the script has put one there
        self._is_inside = False  # the script has put a wrapper of its own around ours, which stays therefore
        self.open()

    def open(self) -> None:
        if self._hook is None:
            self._hook = self._optimizer.register_step_post_hook(self._stepped)
            if not self._is_inside:
                self._optimizer.zero_grad = self._zeroed  # type: ignore[method-assign]

    def close(self) -> None:
        """See nothing until `open`, and forget what was seen."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
            self._is_inside = self._optimizer.__dict__.get("zero_grad") != self._zeroed
            if not self._is_inside:
                del self._optimizer.zero_grad  # the class's own shows again
                if self._own_before is not None:
                    self._optimizer.zero_grad = self._own_before  # type: ignore[method-assign]
        self.forget_last()
        self._clears = None

    def status(self) -> Gradients:
        if self._last == "zero" and self._is_untouched():
            return Gradients.ZERO
        if self._last == "step" and self._clears and self._is_untouched():
            return Gradients.SPENT
        return Gradients.LIVE

    def forget_last(self) -> None:
        self._last, self._marks = "", []

    def adopt(self, status: Gradients) -> None:
        if status is Gradients.LIVE:
            self.forget_last()
            return
        self._last = "zero" if status is Gradients.ZERO else "step"
        if status is Gradients.SPENT:
            self._clears = True
        self._mark()

    def _stepped(self, *_: Any) -> None:
        if self.is_paused:
            return
        if self._last == "step":  # no zero_grad since the step before: were the tensors replaced instead?
            for p, mark in zip(self._probes, self._marks, strict=True):
                if mark is not None and p.grad is not None:
                    replaced = p.grad._cdata != mark[1]
                    self._clears = replaced and self._clears is not False
        self._last = "step"
        self._mark()

    def _zeroed(self, *args: Any, **kwargs: Any) -> None:
        if self._hook is None:
            self._zero_grad(*args, **kwargs)
            return
        if self._last == "step" and self._clears is not False:
            self._clears = self._is_untouched()  # cleared too late if a backward came first
        self._zero_grad(*args, **kwargs)
        self._last = "zero"
        self._mark()

    def _mark(self) -> None:
        self._marks = [
            None if (g := p.grad) is None else (_weak(g), g._cdata, g._version)
            for p in self._probes
        ]

    def _is_untouched(self) -> bool:
        for p, mark in zip(self._probes, self._marks, strict=True):
            grad = p.grad
            if (grad is None) != (mark is None):
                return False
            if grad is not None and mark is not None and (grad._cdata != mark[1] or grad._version != mark[2]):
                return False
        return True
