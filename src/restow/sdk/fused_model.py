"""Many models of the same shape as one: each parameter and buffer with one more dimension, the member.

A *pass* takes a range of members through the script's loss function at once (`torch.vmap` of the forward, then one ordinary
backward of the sum: member i's loss depends on member i's row alone, so row i of the gradient is its own). Does not know
learning rates, steps or who joins: fuse.py does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from restow.errors import ScriptError
from restow.sdk.fused_batch import cut, dims, merged
from restow.sdk.fused_checks import first_difference, no_loss, reason
from restow.sdk.fused_draws import Draws
from restow.sdk.fused_layers import standing_in

LossFunction = Callable[..., Any]


class _Script(nn.Module):
    """The script's loss function as a module, so that `functional_call` lends the model its tensors for the whole of it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, function: LossFunction, *batch: Any) -> Any:
        return function(self.model, *batch)


class Stack:
    """The tensors of all members and the module that runs them. `model` becomes the stack's; its own numbers are not used."""

    def __init__(self, model: nn.Module):
        self._script = _Script(model)
        self._has_ties = len(list(model.parameters())) != len(list(model.named_parameters(remove_duplicate=False)))
        self._training = [module.training for module in model.modules()]
        self.parameters = {name: _empty(p) for name, p in model.named_parameters()}
        self.buffers = {name: _empty(b) for name, b in model.named_buffers()}
        self.biggest_bytes = 0  # of what one member's pass keeps for the backward; 0: no pass has been made
        self.trained = [name for name, p in model.named_parameters() if p.requires_grad]
        if not self.trained:
            raise ScriptError("make_model returned a model without a trainable parameter; there is nothing to sweep")
        first = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
        self._saved = {key: first[id(t)] for key, t in model.state_dict(keep_vars=True).items()}

    @property
    def model(self) -> nn.Module:
        return self._script.model

    @property
    def device(self) -> torch.device:
        return self.parameters[self.trained[0]].device

    # ------------------------------------------------------------ members

    def rows_of(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors of a new member's model. Raises ScriptError where it is not built like the others."""
        if repr(model) != repr(self.model):
            mine, theirs = first_difference(repr(self.model), repr(model))
            raise ScriptError(
                f"make_model built {theirs} for one member and {mine} for another; "
                "fused members differ in numbers only: make one sweep for each structure"
            )
        rows = {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}
        self.check_rows(rows)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        if trained != self.trained:
            name = sorted(set(trained) ^ set(self.trained))[0]
            raise ScriptError(f"make_model froze {name} for one member and not for another; make one sweep for each")
        return rows

    def check_rows(self, rows: Mapping[str, Tensor]) -> None:
        """Raises ScriptError where these are not the tensors of one member."""
        mine = {**self.parameters, **self.buffers}
        for name in sorted(mine.keys() ^ rows.keys()):
            raise ScriptError(f"{name} exists {'only in the sweep' if name in mine else 'only in the new member'}; "
                              "fused members differ in numbers only")  # fmt: skip
        for name, row in rows.items():
            if row.shape != mine[name].shape[1:] or row.dtype != mine[name].dtype:
                raise ScriptError(
                    f"{name} is {tuple(row.shape)} {row.dtype} in one member and {tuple(mine[name].shape[1:])} "
                    f"{mine[name].dtype} in another; fused members differ in numbers only: make one sweep for each shape"
                )

    def append(self, members: Sequence[Mapping[str, Tensor]]) -> None:
        for stacked in (self.parameters, self.buffers):
            for name, old in stacked.items():
                stacked[name] = torch.cat([old, *(rows[name].to(old.device)[None] for rows in members)])

    def keep(self, order: Sequence[int]) -> None:
        """Only these rows, in this order."""
        for stacked in (self.parameters, self.buffers):
            for name, old in stacked.items():
                stacked[name] = old[list(order)]

    def row(self, index: int) -> dict[str, Tensor]:
        """Live views of one member's tensors."""
        return {name: stacked[index] for name, stacked in (*self.parameters.items(), *self.buffers.items())}

    def saved(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `state_dict()` of that member's own model would be."""
        return {key: rows[name].detach().clone() for key, name in self._saved.items()}

    # ------------------------------------------------------------ passes

    def gradients(
        self, rows: slice, function: LossFunction, batch: tuple[Any, ...], each: bool, draws: Sequence[Draws], alone: bool
    ) -> tuple[Tensor, dict[str, Tensor | None]]:
        """(members,) losses of these rows and their gradients by name, `None` where the loss does not depend on one.
        `alone`: one member after the other, with the very operations of a separate run."""
        run = self._gradients_alone if alone or len(draws) == 1 else self._gradients_together
        return run(rows, function, batch, each, draws)

    def results(
        self, rows: slice, function: LossFunction, batch: tuple[Any, ...], each: bool, draws: Sequence[Draws], alone: bool
    ) -> Any:
        """What `function(model, *batch)` gives for each of these rows, in evaluation mode, stacked."""
        self.model.eval()
        try:
            with torch.no_grad():
                if alone or len(draws) == 1:
                    given = [self._one(index, function, batch, each, d)[0] for index, d in _counted(rows, draws)]
                    return merged(given, torch.stack)
                return self._together(self._tensors(rows, leaves=False), rows, function, batch, each, draws)
        finally:
            for module, training in zip(self.model.modules(), self._training, strict=True):
                module.training = training

    def _gradients_together(
        self, rows: slice, function: LossFunction, batch: tuple[Any, ...], each: bool, draws: Sequence[Draws]
    ) -> tuple[Tensor, dict[str, Tensor | None]]:
        tensors = self._tensors(rows, leaves=True)
        with nullcontext() if self.biggest_bytes else self._noting_sizes(len(draws)):
            losses = self._together(tensors, rows, function, batch, each, draws)
        if not isinstance(losses, Tensor) or losses.shape != (len(draws),):
            raise no_loss(losses[0] if isinstance(losses, Tensor) else losses)
        leaves = [tensors[name] for name in self.trained]
        return losses.detach(), dict(zip(self.trained, _backward(losses.sum(), leaves), strict=True))

    @contextmanager
    def _noting_sizes(self, members: int) -> Iterator[None]:
        sizes = [1]

        def note(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            yield
        self.biggest_bytes = max(sizes) // members

    def _gradients_alone(
        self, rows: slice, function: LossFunction, batch: tuple[Any, ...], each: bool, draws: Sequence[Draws]
    ) -> tuple[Tensor, dict[str, Tensor | None]]:
        losses, found = [], []
        for index, own in _counted(rows, draws):
            loss, tensors = self._one(index, function, batch, each, own)
            if not isinstance(loss, Tensor) or loss.dim():
                raise no_loss(loss)
            losses.append(loss.detach())
            found.append(_backward(loss, [tensors[name] for name in self.trained]))
        columns = zip(self.trained, zip(*found, strict=True), strict=True)
        return torch.stack(losses), {name: _column(column) for name, column in columns}

    def _one(
        self, index: int, function: LossFunction, batch: tuple[Any, ...], each: bool, draws: Draws
    ) -> tuple[Any, dict[str, Tensor]]:
        """The result of one member alone, and the tensors that it was computed from."""
        tensors = {name: t[0] for name, t in self._tensors(slice(index, index + 1), leaves=False).items()}
        for name in self.trained:
            tensors[name].requires_grad_()
        with draws.lent():
            result, changed = self._call(tensors, function, cut(batch, index) if each else batch)
        for name, value in changed.items():
            self.buffers[name][index].copy_(value.detach())
        return result, tensors

    def _together(
        self, tensors: dict[str, Tensor], rows: slice, function: LossFunction, batch: tuple[Any, ...], each: bool,
        draws: Sequence[Draws],
    ) -> Any:  # fmt: skip
        own_batches = cut(batch, rows) if each else ()

        def one(lane: Tensor, tensors: dict[str, Tensor], own_batch: tuple[Any, ...]) -> Any:
            with standing_in(lane, draws):
                return self._call(tensors, function, own_batch if each else batch)

        lanes = torch.arange(len(draws), device=self.device)
        run = torch.vmap(one, in_dims=(0, 0, dims(own_batches)), randomness="error")
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # vmap cannot see into it
        try:
            result, changed = run(lanes, tensors, own_batches)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._one(rows.start, function, batch, each, draws[0])  # if it fails alone too, that is what the script should see
            raise self._refusal(error, lambda: run(lanes, tensors, own_batches)) from error
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        with torch.no_grad():
            for name, value in changed.items():
                self.buffers[name][rows].copy_(value)
        return result

    def _call(self, tensors: dict[str, Tensor], function: LossFunction, batch: tuple[Any, ...]) -> tuple[Any, dict[str, Tensor]]:
        """The result, and buffers that the model replaced instead of writing into them."""
        lent = {f"model.{name}": tensor for name, tensor in tensors.items()}
        result = functional_call(self._script, lent, (function, *batch), tie_weights=self._has_ties)
        after = {name: lent[f"model.{name}"] for name in self.buffers}
        return result, {name: value for name, value in after.items() if value is not tensors[name]}

    def _tensors(self, rows: slice, leaves: bool) -> dict[str, Tensor]:
        tensors = {name: t[rows].detach() for name, t in (*self.parameters.items(), *self.buffers.items())}
        if leaves:
            for name in self.trained:
                tensors[name].requires_grad_()
        return tensors

    def _refusal(self, error: Exception, again: Callable[[], Any]) -> ScriptError:
        said = str(error).strip().splitlines()
        return ScriptError(
            f"{self._culprit(again)} cannot be trained with its members stacked: "
            f"{reason(said[0] if said else type(error).__name__)}; "
            "change it there, or give restow.sweep exact=True, which trains the members one after the other"
        )

    def _culprit(self, again: Callable[[], Any]) -> str:
        """The innermost module at work when the pass fails."""
        inside: list[tuple[str, nn.Module]] = []
        hooks = []
        for name, module in self.model.named_modules():
            hooks.append(module.register_forward_pre_hook(lambda m, _, name=name: inside.append((name, m))))
            hooks.append(module.register_forward_hook(lambda *_: inside.pop() and None))
        try:
            again()
        except Exception:  # the same as before, this time with witnesses
            if inside:
                name, module = inside[-1]
                return f"module {name or '(the model itself)'} ({type(module).__name__})"
        finally:
            for hook in hooks:
                hook.remove()
        return "the loss function"


# ---------------------------------------------------------------- small things


def _backward(loss: Tensor, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    if not loss.requires_grad:
        raise ScriptError("the loss does not depend on a parameter; return what should become small, computed from model(...)")
    return torch.autograd.grad(loss, leaves, allow_unused=True)


def _empty(tensor: Tensor) -> Tensor:
    return tensor.detach().new_empty((0, *tensor.shape))


def _counted(rows: slice, draws: Sequence[Draws]) -> Iterator[tuple[int, Draws]]:
    return zip(range(rows.start, rows.stop), draws, strict=True)


def _column(column: Sequence[Tensor | None]) -> Tensor | None:
    """One parameter's gradients of several members."""
    present = [gradient for gradient in column if gradient is not None]
    if 0 < len(present) < len(column):
        raise ScriptError("a parameter took part in some members' losses and not in others'; give each kind a sweep of its own")
    if len(present) == 1:
        return present[0].unsqueeze(0)
    return torch.stack(present) if present else None
