"""AdamW, Adam and SGD over stacked tensors, each member with its own numbers.

The formulas, their order and their roundings are those of torch.optim's plain loops (`foreach=False, fused=False`, its default
on the CPU): where members differ, a Python float becomes a column of the same floats, and a scalar that torch multiplies
into a product is multiplied in at the same place. With `fused` they are those of `fused=True`: torch's kernel itself, once
per member. Does not know models, losses or schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from restow.errors import ScriptError

BLOCK_BYTES = 1 << 20  # of one tensor; with less, calls cost more than the caches bring (measured 32 KB to 64 MB)

KINDS: dict[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
_NUMBERS = {
    "adamw": ("lr", "betas", "eps", "weight_decay"),
    "adam": ("lr", "betas", "eps", "weight_decay"),
    "sgd": ("lr", "momentum", "dampening", "weight_decay", "nesterov"),
}
_ALL = {"betas", "eps", "weight_decay", "lr", "momentum", "dampening", "nesterov", "amsgrad", "maximize", "foreach", "fused",
        "capturable", "differentiable", "decoupled_weight_decay"}  # fmt: skip


def complete(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The optimizer's numbers in a member's settings, with torch's defaults for the rest. Raises ScriptError."""
    for key in sorted((_ALL - set(_NUMBERS[kind])) & settings.keys()):
        raise ScriptError(f"{key} is {settings[key]!r}, but a fused {kind} takes {', '.join(_NUMBERS[kind])}; leave it out")
    given = {key: settings[key] for key in _NUMBERS[kind] if key in settings}
    try:
        group = KINDS[kind]([torch.zeros(1, requires_grad=True)], **given).param_groups[0]
    except (ValueError, TypeError) as error:
        raise ScriptError(f"settings {dict(settings)}: {error}") from None
    return {key: tuple(group[key]) if key == "betas" else group[key] for key in _NUMBERS[kind]}


class FusedOptimizer:
    """State of one optimizer per member, stacked. `parameters` are all of the model's, in its order."""

    def __init__(self, kind: str, parameters: Mapping[str, Tensor], fused: bool = False):
        self.kind, self._fused = kind, fused
        self._names = list(parameters)
        self._keys = ("momentum_buffer",) if kind == "sgd" else ("exp_avg", "exp_avg_sq")
        self.state = {key: {name: torch.zeros_like(p) for name, p in parameters.items()} for key in self._keys}
        self.updates: dict[str, list[int]] = {name: [] for name in parameters}  # per member; 0: torch has no state
        self._kept: dict[tuple[int, torch.dtype], Tensor] = {}
        self._rule: Callable[..., None] = self._sgd if kind == "sgd" else self._adam

    # ------------------------------------------------------------ members

    def append(self, members: Sequence[Mapping[str, Any]]) -> None:
        """Members with the state that `row` or `imported` gave, or `{}`: from the start."""
        for key, stacked in self.state.items():
            for name, old in stacked.items():
                fresh = [old.new_zeros(old.shape[1:]) for _ in members]
                for zeros, member in zip(fresh, members, strict=True):
                    if name in member.get(key, {}):
                        zeros.copy_(member[key][name])
                stacked[name] = torch.cat([old, torch.stack(fresh)]) if fresh else old
        for name, updates in self.updates.items():
            updates.extend(int(member.get("updates", {}).get(name, 0)) for member in members)

    def keep(self, order: Sequence[int]) -> None:
        for stacked in self.state.values():
            for name, old in stacked.items():
                stacked[name] = old[list(order)]
        self.updates = {name: [updates[index] for index in order] for name, updates in self.updates.items()}

    def row(self, index: int) -> dict[str, Any]:
        """One member's state; tensors are live views. A parameter that was never updated is left out."""
        made = {name: updates[index] for name, updates in self.updates.items() if updates[index]}
        return {"updates": made, **{key: {name: stacked[name][index] for name in made} for key, stacked in self.state.items()}}

    def exported(self, row: Mapping[str, Any], numbers: Mapping[str, Any], lr: float) -> dict[str, Any]:
        """What `state_dict()` of torch's optimizer over `model.parameters()` would be."""
        group = self._torchs(len(self._names), numbers).state_dict()["param_groups"][0]
        if lr != numbers["lr"]:
            group |= {"initial_lr": numbers["lr"], "lr": lr}  # as a scheduler leaves it
        state: dict[int, dict[str, Any]] = {}
        for index, name in enumerate(self._names):
            if name in row["updates"] and self._counts(numbers):
                state[index] = {key: row[key][name].detach().clone() for key in self._keys}
                if self.kind != "sgd":
                    state[index] = {"step": torch.tensor(float(row["updates"][name])), **state[index]}
        return {"state": state, "param_groups": [group]}

    def imported(self, saved: Mapping[str, Any], steps: int) -> dict[str, Any]:
        """A row from what `exported` gives. Raises ScriptError."""
        row: dict[str, Any] = {"updates": {}, **{key: {} for key in self._keys}}
        groups = saved["param_groups"]
        if len(groups) != 1 or len(groups[0]["params"]) != len(self._names):
            raise ScriptError(
                f"the checkpoint's optimizer has parameter groups of {[len(g['params']) for g in groups]}, "
                f"a sweep's has one of {len(self._names)}; give the optimizer model.parameters()"
            )
        for index, entry in saved["state"].items():
            name = self._names[index]
            if not set(self._keys) <= entry.keys():
                raise ScriptError(
                    f"the checkpoint's optimizer state has {', '.join(entry)}; a {self.kind} has {', '.join(self._keys)}"
                )
            if entry[self._keys[0]] is not None:
                row["updates"][name] = int(entry["step"]) if "step" in entry else max(1, steps)
                for key in self._keys:
                    row[key][name] = entry[key]
        return row

    def _torchs(self, parameters: int, numbers: Mapping[str, Any]) -> torch.optim.Optimizer:
        how: dict[str, Any] = {"fused": True} if self._fused else {}
        return KINDS[self.kind]([torch.zeros(1, requires_grad=True) for _ in range(parameters)], **numbers, **how)

    # ------------------------------------------------------------ one update

    @torch.no_grad()
    def update(
        self, rows: slice, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None],
        numbers: Sequence[Mapping[str, Any]], rates: Sequence[float],
    ) -> None:  # fmt: skip
        """One step of these members. `parameters` are all members' and change in place; `gradients`, `numbers` and `rates`
        (the learning rate of this step) are of these rows. A parameter without a gradient is passed over, as in torch."""
        present = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        for name in present:
            made = self.updates[name]
            made[rows] = [count + self._counts(own) for count, own in zip(made[rows], numbers, strict=True)]
        if self._fused:
            self._update_by_member(rows, parameters, present, numbers, rates)
        else:
            self._update_by_parameter(rows, parameters, present, numbers, rates)

    def _update_by_parameter(
        self, rows: slice, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor],
        numbers: Sequence[Mapping[str, Any]], rates: Sequence[float],
    ) -> None:  # fmt: skip
        """All members' rows of one parameter after another, in blocks that stay in the caches from one operation to the next."""
        columns: dict[tuple[int, ...], dict[str, _Column]] = {}
        for name, gradient in gradients.items():
            parameter = parameters[name][rows]
            states = [stacked[name][rows] for stacked in self.state.values()]
            made = tuple(self.updates[name][rows])
            if made not in columns:
                columns[made] = self._columns(made, numbers, rates, parameter)
            size = max(1, BLOCK_BYTES // max(1, parameter[0].nbytes)) if parameter.device.type == "cpu" else len(made)
            tensors = (parameter, gradient, *states)
            for start in range(0, len(made), size):
                block = slice(start, min(start + size, len(made)))
                cut = {word: column.of(block, parameter.dim()) for word, column in columns[made].items()}
                self._rule(*(tensors if size >= len(made) else (tensor[block] for tensor in tensors)), **cut)

    def _update_by_member(
        self, rows: slice, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor],
        numbers: Sequence[Mapping[str, Any]], rates: Sequence[float],
    ) -> None:  # fmt: skip
        """torch's kernel, which takes each number once for all tensors of a call."""
        whole = [parameters, *self.state.values()]
        tensors = [[stacked[name][rows].unbind(0) for name in gradients] for stacked in whole]
        lone_gradients = [gradient.unbind(0) for gradient in gradients.values()]
        for index, (own, rate) in enumerate(zip(numbers, rates, strict=True)):
            mine, *states = [[row[index] for row in columns] for columns in tensors]
            theirs = [row[index] for row in lone_gradients]
            made = [self.updates[name][rows][index] for name in gradients]
            rest = {"lr": rate, "weight_decay": own["weight_decay"], "maximize": False, "grad_scale": None, "found_inf": None}
            if self.kind == "sgd":
                rest |= {"momentum": own["momentum"], "dampening": own["dampening"], "nesterov": own["nesterov"]}
                kept = states[0] if own["momentum"] else []
                torch._fused_sgd_(mine, theirs, kept, **rest, is_first_step=made[:1] == [1])
            else:
                kernel: Callable[..., None] = torch._fused_adamw_ if self.kind == "adamw" else torch._fused_adam_
                steps = [torch.tensor(float(count), device=mine[0].device) for count in made]
                beta1, beta2 = own["betas"]
                kernel(mine, theirs, *states, [], steps, **rest, beta1=beta1, beta2=beta2, eps=own["eps"], amsgrad=False)

    def _counts(self, numbers: Mapping[str, Any]) -> bool:
        """Does an update with these numbers leave state behind? torch's SGD without momentum has none."""
        return self.kind != "sgd" or bool(numbers["momentum"])

    def _columns(
        self, made: tuple[int, ...], numbers: Sequence[Mapping[str, Any]], rates: Sequence[float], like: Tensor
    ) -> dict[str, _Column]:
        """The scalars of torch's formulas, per member, computed in double as torch computes them."""
        words: dict[str, list[Any]]
        decay = [n["weight_decay"] for n in numbers]
        if self.kind == "sgd":
            going = [count > 1 for count in made]  # before that torch has no buffer and begins with the gradient
            words = {
                "decay": decay,
                "momentum": [n["momentum"] for n in numbers],
                "kept": [n["momentum"] * on for n, on in zip(numbers, going, strict=True)],
                "added": [1 - n["dampening"] if on else 1.0 for n, on in zip(numbers, going, strict=True)],
                "nesterov": [bool(n["nesterov"]) for n in numbers],
                "rate": [-rate for rate in rates],
            }
        else:
            beta1, beta2 = [n["betas"][0] for n in numbers], [n["betas"][1] for n in numbers]
            words = {
                "decay": [1 - r * d for r, d in zip(rates, decay, strict=True)] if self.kind == "adamw" else decay,
                "toward": [1 - b for b in beta1],
                "beta2": beta2,
                "added": [1 - b for b in beta2],
                "root": [(1 - b**count) ** 0.5 for b, count in zip(beta2, made, strict=True)],
                "eps": [n["eps"] for n in numbers],
                "rate": [-(r / (1 - b**count)) for r, b, count in zip(rates, beta1, made, strict=True)],
            }
        return {word: _Column(values, like) for word, values in words.items()}

    def _adam(
        self, parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, *, decay: Any, toward: Any, beta2: Any,
        added: Any, root: Any, eps: Any, rate: Any,
    ) -> None:  # fmt: skip
        if self.kind == "adamw":
            if _matters(decay, 1.0):
                parameter.mul_(decay)
        elif _matters(decay, 0.0):
            gradient = _plus(gradient, parameter, decay)
        mean.lerp_(gradient, toward)
        square.mul_(beta2)
        if isinstance(added, Tensor):
            square.addcmul_(torch.mul(gradient, added, out=self._room(0, square)), gradient)
        else:
            square.addcmul_(gradient, gradient, value=added)
        denominator = torch.sqrt(square, out=self._room(0, square)).div_(root).add_(eps)
        if isinstance(rate, Tensor):
            parameter.addcdiv_(torch.mul(mean, rate, out=self._room(1, mean)), denominator)
        else:
            parameter.addcdiv_(mean, denominator, value=rate)

    def _room(self, number: int, like: Tensor) -> Tensor:
        """Memory for an intermediate result, kept: fresh memory costs more than what is computed in it."""
        key = (number, like.dtype)
        if key not in self._kept or self._kept[key].numel() < like.numel() or self._kept[key].device != like.device:
            self._kept[key] = like.new_empty(like.numel())
        return self._kept[key][: like.numel()].view(like.shape)

    def _sgd(
        self, parameter: Tensor, gradient: Tensor, buffer: Tensor, *, decay: Any, momentum: Any, kept: Any, added: Any,
        nesterov: Any, rate: Any,
    ) -> None:  # fmt: skip
        if _matters(decay, 0.0):
            gradient = _plus(gradient, parameter, decay)
        if _matters(momentum, 0.0):
            buffer.mul_(kept)
            _add(buffer, gradient, added)
            if isinstance(nesterov, Tensor):
                gradient = torch.where(nesterov, _plus(gradient, buffer, momentum), buffer)
            else:
                gradient = _plus(gradient, buffer, momentum) if nesterov else buffer
        _add(parameter, gradient, rate)


class _Column:
    """One scalar of a formula for each member of a pass: a float where they agree, else a column to broadcast."""

    def __init__(self, values: list[Any], like: Tensor):
        self._values = values
        self._agree = all(value == values[0] for value in values)
        kind = torch.bool if isinstance(values[0], bool) else torch.float64 if like.dtype == torch.float64 else torch.float32
        self._column = None if self._agree else torch.tensor(values, dtype=kind, device=like.device)

    def of(self, block: slice, dims: int) -> Any:
        if self._column is None or block.stop - block.start == 1:
            return self._values[block.start]
        return self._column[block].view(-1, *[1] * (dims - 1))


def _matters(scalar: Any, neutral: float) -> bool:
    return isinstance(scalar, Tensor) or scalar != neutral


def _plus(tensor: Tensor, other: Tensor, scale: Any) -> Tensor:
    """tensor + scale * other, as `tensor.add(other, alpha=scale)`."""
    return torch.addcmul(tensor, other, scale) if isinstance(scale, Tensor) else tensor.add(other, alpha=scale)


def _add(tensor: Tensor, other: Tensor, scale: Any) -> None:
    if isinstance(scale, Tensor):
        tensor.addcmul_(other, scale)
    else:
        tensor.add_(other, alpha=scale)
