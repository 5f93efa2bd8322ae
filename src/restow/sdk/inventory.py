"""The names of a process's parameters and of its optimizers' tensors, and what is loose in an optimizer.

It is asked for at every save point, and to walk through all of it costs several times what it costs to see that nothing was put
in the place of something else. So what a walk found is good until then. Knows nothing of what the tensors are needed for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from restow.errors import ScriptError

Parts = list[tuple[str, torch.nn.Module]]
"""A module and all modules in it, each once, with the beginning of the names of what is in them."""


def parts_of(module: torch.nn.Module) -> Parts:
    return [(f"{name}." if name else "", part) for name, part in module.named_modules()]


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


@dataclass(frozen=True, slots=True)
class Loose:
    """What an optimizer holds besides its options and tensors: the names of those tensors by parameter, the lengths of its groups,
    state of a parameter that is no tensor, and state of no parameter."""

    tensors: list[tuple[str, ...]]
    sizes: list[int]
    state: dict[int, dict[str, Any]]
    other: dict[Any, Any]


@dataclass(frozen=True, slots=True)
class Walk:
    """What was found: nobody may change it."""

    marks: tuple[int, ...]  # what it depends on
    held: tuple[Any, ...]  # keeps it alive, so that no address in `marks` is used again
    live: list[torch.Tensor]  # all tensors of it, each once
    addresses: list[int]  # of what is in them
    parameters: dict[str, torch.Tensor]  # each once, under its first name: `<module>.<name>`, or else `<optimizer>.<index>`
    tensors: dict[str, torch.Tensor]  # the same, detached, then `<optimizer>.<index>.<key>`
    loose: dict[str, Loose]  # by optimizer
    trained: dict[str, list[tuple[str, torch.Tensor]]]  # optimizer → parameters that only it trains
    shared: dict[str, list[str]]  # parameter → optimizers, where there are none or several
    inside: dict[str, list[torch.Tensor]]  # module → its parameters, each once

    @property
    def is_settled(self) -> bool:
        """Are there only tensors? What else there is may change without a trace."""
        return not any(loose.state or loose.other for loose in self.loose.values())


_address = torch.Tensor.data_ptr


class Inventory:
    """Of `modules` (name → parts_of) and `optimizers`."""

    def __init__(self, modules: Mapping[str, Parts], optimizers: Mapping[str, torch.optim.Optimizer]):
        self._modules, self._optimizers = modules, optimizers
        self._owners = [part._parameters for parts in modules.values() for _, part in parts]
        self._last: Walk | None = None

    def walk(self) -> Walk:
        """What there is now. Raises ScriptError for a tensor that cannot travel. Any thread may ask."""
        held, marks = self._look()
        last = self._last
        if last is None or last.marks != marks or last.addresses != [*map(_address, last.live)] or not last.is_settled:
            self._last = last = self._walk(held, marks)
        return last

    def _look(self) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        """Everything that a walk depends on, and marks by which another look can be told from it."""
        named: list[Any] = list(chain.from_iterable(map(dict.values, self._owners)))
        sizes, states = [], list[Any]()
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                sizes.append(len(group["params"]))
                named += group["params"]
            states += optimizer.state.values()
        values = list(chain.from_iterable(state.values() for state in states if isinstance(state, dict)))
        return (named, states, values), (*map(id, named), *map(id, states), *map(id, values), *sizes)

    def _walk(self, held: tuple[Any, ...], marks: tuple[int, ...]) -> Walk:
        parameters = self._named_parameters()
        tensors: dict[str, torch.Tensor] = {name: p.detach() for name, p in parameters.items()}
        live = list(parameters.values())
        for name, optimizer in self._optimizers.items():
            for index, parameter in enumerate(parameters_of(optimizer)):
                for key, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, torch.Tensor):
                        tensors[f"{name}.{index}.{key}"] = value
                        live.append(value)
        loose = {name: loose_of(optimizer) for name, optimizer in self._optimizers.items()}
        of = {name: set(map(id, parameters_of(optimizer))) for name, optimizer in self._optimizers.items()}
        by = {key: [name for name, ids in of.items() if id(p) in ids] for key, p in parameters.items()}
        trained = {name: [(key, parameters[key]) for key, names in by.items() if names == [name]] for name in of}
        shared = {key: names for key, names in by.items() if len(names) != 1}
        inside: dict[str, list[torch.Tensor]] = {
            name: list[torch.Tensor]({id(p): p for _, part in parts for p in part._parameters.values() if p is not None}.values())
            for name, parts in self._modules.items()
        }
        return Walk(marks, held, live, [*map(_address, live)], parameters, tensors, loose, trained, shared, inside)

    def _named_parameters(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        seen: set[int] = set()
        candidates: list[tuple[str, torch.Tensor]] = []
        for name, parts in self._modules.items():
            candidates += [
                (f"{name}.{prefix}{key}", p) for prefix, part in parts for key, p in part._parameters.items() if p is not None
            ]
        for name, optimizer in self._optimizers.items():
            candidates += [(f"{name}.{index}", p) for index, p in enumerate(parameters_of(optimizer))]
        for name, parameter in candidates:
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found[name] = checked(name, parameter)
        return found


def loose_of(optimizer: torch.optim.Optimizer) -> Loose:
    state: dict[int, dict[str, Any]] = {}
    tensors: list[tuple[str, ...]] = []
    parameters = list(parameters_of(optimizer))
    for index, parameter in enumerate(parameters):
        held = optimizer.state.get(parameter, {})
        names = tuple(key for key, value in held.items() if isinstance(value, torch.Tensor))
        tensors.append(names)
        if len(names) < len(held):
            state[index] = {key: value for key, value in held.items() if not isinstance(value, torch.Tensor)}
    other: dict[Any, Any] = {}
    if len(optimizer.state) > sum(p in optimizer.state for p in parameters):
        other = {key: value for key, value in optimizer.state.items() if not isinstance(key, torch.Tensor)}
    return Loose(tensors, [len(group["params"]) for group in optimizer.param_groups], state, other)


def checked(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if hasattr(tensor, "device_mesh") or tensor.layout is not torch.strided or tensor.is_quantized:
        what = "a sharded tensor (DTensor)" if hasattr(tensor, "device_mesh") else f"a {tensor.layout} tensor"
        raise ScriptError(f"{name} is {what}, which cannot travel yet; "
                          "restow moves data-parallel jobs with dense tensors")
    return tensor
