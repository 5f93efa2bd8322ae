"""The state of one training process by name: what replicas hold too, what is this rank's alone, and what is no tensor.

`tensors()` are the live tensors that are equal on all ranks of a data-parallel job; transport.py writes into them in
place. Everything else goes into one small blob (`capture_private` / `install_private`). Sharded tensors (FSDP's
DTensor, ZeRO) are refused by name for now. Knows nothing of files, sockets or steps.

A module's plain Python attributes are not state: register an object with state_dict for them.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from restow.errors import ScriptError
from restow.sdk import randomness
from restow.sdk.blob import dump, heads_of, packed, split, write
from restow.sdk.gradients import Gradients, GradientWatch
from restow.sdk.inventory import Inventory, Loose, Parts, Walk, checked, parameters_of, parts_of
from restow.sdk.randomness import RandomState

__all__ = ["GradientWatch", "Gradients", "StateTable"]


_LIVE = Gradients.LIVE.value


class StateTable:
    """Names for all state of `objects` (name → module, optimizer, scheduler, scaler, tensor, or anything with
    state_dict and load_state_dict). A DDP or compiled module counts as the module inside it."""

    def __init__(self, objects: Mapping[str, object]):
        self._modules: dict[str, torch.nn.Module] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._plain: dict[str, torch.Tensor] = {}
        self._others: dict[str, Any] = {}
        for name, thing in objects.items():
            if isinstance(thing, torch.nn.Module):
                self._modules[name] = _inside(thing)
            elif isinstance(thing, torch.optim.Optimizer):
                if type(thing).__name__ == "ZeroRedundancyOptimizer":
                    raise ScriptError(f"{name} is a ZeroRedundancyOptimizer: its state is sharded over the ranks and "
                                      "cannot travel yet; use an ordinary optimizer")
                self._optimizers[name] = thing
            elif isinstance(thing, torch.Tensor):
                self._plain[name] = thing
            elif isinstance(thing, torch.Generator) or _has_state(thing):
                self._others[name] = thing
            else:
                raise ScriptError(f"{name} is a {type(thing).__name__} without state_dict and load_state_dict; "
                                  "give it both, or carry the tensors and objects in it that have them")
        self._parts = {name: parts_of(module) for name, module in self._modules.items()}
        self._inventory = Inventory(self._parts, self._optimizers)
        self._buffers = [part._buffers for parts in self._parts.values() for _, part in parts]
        self._has_extra = [
            (name, prefix, part) for name, parts in self._parts.items() for prefix, part in parts
            if type(part).get_extra_state is not torch.nn.Module.get_extra_state
        ]  # fmt: skip
        self.watch = GradientWatch(self._optimizers)
        self._settled_of: tuple[Any, ...] = ()  # what the settled head of a capture depends on
        self._settled = b""

    def close(self) -> None:
        """Take the watch's hooks off the optimizers."""
        self.watch.close()

    def modules(self) -> list[torch.nn.Module]:
        return list(self._modules.values())

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return list(self._optimizers.values())

    # ------------------------------------------------------------ tensors

    def tensors(self) -> dict[str, torch.Tensor]:
        """The live tensors that every replica holds: `model.<parameter>`, then `optimizer.<index>.<key>`. Shared ones
        come once, under their first name. Not to be changed: the same dict is given to all who ask."""
        return self._inventory.walk().tensors

    def private_tensors(self) -> dict[str, torch.Tensor]:
        """What no other rank holds: buffers (DDP gives rank 0's to all only at the next forward), carried tensors,
        gradients that still matter (`<parameter>.grad`), and tensors in other objects' state_dict."""
        walk = self._inventory.walk()
        found = self._own_tensors() | _live_gradients(walk, self._gradient_words(walk))
        for name, thing in self._others.items():
            found.update(_tensors_inside(name, _state_of(thing)))
        return found

    def version(self) -> int:
        """Another number whenever one of `tensors()` was written to, through torch."""
        return sum(tensor._version for tensor in self.tensors().values())

    def state_bytes(self) -> int:
        return sum(t.nbytes for t in self.tensors().values())

    def device(self) -> torch.device:
        """Where the parameters are."""
        return next((p.device for p in self._parameters().values()), torch.device("cpu"))

    def parameter_bytes(self) -> int:
        return sum(t.nbytes for t in self._parameters().values())

    def private_bytes(self) -> int:
        return sum(t.nbytes for t in self.private_tensors().values())

    # ------------------------------------------------------------ everything else

    def capture_private(self, extra: dict[str, Any]) -> bytes:
        """One blob with `extra`, all state that is not in `tensors()`, private tensors and the random generators' state. Unpickling
        it runs what it says: only for processes of the same job. For twelve parameters and no buffers 0.2 ms, and 0.5 ms between
        two steps, which leave nothing of it in the processor's caches: at most save points only its second head is new."""
        found = self._inventory.walk()
        words = self._gradient_words(found)
        pieces = self._own_tensors() | _live_gradients(found, words)
        fresh = {
            "extra": extra,
            "random": randomness.capture().parts(),
            "options": {name: _options_of(optimizer) for name, optimizer in self._optimizers.items()},
            "others": {name: _state_of(thing) for name, thing in self._others.items()},
            "module_extra": [(name, prefix.removesuffix("."), part.get_extra_state()) for name, prefix, part in self._has_extra],
        }
        return packed((self._settled_head(found, words, pieces), _pickled(fresh)), pieces)

    def _settled_head(self, found: Walk, words: dict[str, str], pieces: dict[str, torch.Tensor]) -> bytes:
        """What hardly ever changes, pickled again only when it has."""
        flags = {name: _flags_of(parts, found.inside[name]) for name, parts in self._parts.items()}
        index = [(name, str(t.dtype), tuple(t.shape)) for name, t in pieces.items()]
        depends_on = (flags, words, index)
        if not self._settled_of or found is not self._settled_of[0] or depends_on != self._settled_of[1]:
            self._settled = _pickled({"flags": flags, "gradients": words, "pieces": index, "loose": found.loose})
            self._settled_of = (found, depends_on)
        return self._settled

    @staticmethod
    def read_extra(blob: bytes) -> dict[str, Any]:
        """The `extra` of a blob without installing anything: what must be known before it is safe to install."""
        return dict(pickle.loads(heads_of(blob, 2)[0][1])["extra"])

    @staticmethod
    def has_gradients(blob: bytes) -> bool:
        """Are there gradients in a blob that the next update needs?"""
        return _LIVE in pickle.loads(heads_of(blob, 1)[0][0])["gradients"].values()

    def install_private(self, blob: bytes) -> dict[str, Any]:
        """Put everything in `blob` back in place (tensors keep their identity) and return its `extra`. Checks before it
        writes: raises ScriptError naming what does not fit."""
        (settled, fresh), start = heads_of(blob, 2)
        head = {**pickle.loads(settled), **pickle.loads(fresh)}
        pieces = split(blob, start, head["pieces"])
        own, parameters = self._own_tensors(), self._parameters()
        self._check(head, own, pieces, parameters)
        with torch.no_grad():
            for name, tensor in own.items():
                write(tensor, pieces[name])
            for name, parameter in parameters.items():
                _install_gradient(parameter, head["gradients"].get(name), pieces.get(f"{name}.grad"))
            for name, module in self._modules.items():
                for sub, training in zip(module.modules(), head["flags"][name][0], strict=True):
                    sub.training = bool(training)
            for name, inner, value in head["module_extra"]:
                self._modules[name].get_submodule(inner).set_extra_state(value)
            for name, thing in self._others.items():
                _install_other(thing, head["others"][name])
            for name, optimizer in self._optimizers.items():  # last: schedulers may write into param_groups
                _install_optimizer(optimizer, head["options"][name], head["loose"][name])
        self._adopt_gradients(head["gradients"])
        randomness.restore(RandomState(*head["random"]))
        return dict(head["extra"])

    def export(self) -> dict[str, Any]:
        """What a checkpoint needs besides `tensors()` to be found by PyTorch's own functions: `names` of tensors there (those of
        optimizers as torch.distributed.checkpoint.state_dict has them), the modules' `buffers` and parameters under further names
        (copied), and the optimizers' `options`."""
        inside = {id(p): name.partition(".")[2] for name, p in self._parameters().items()}
        names: dict[str, str] = {}
        options: dict[str, Any] = {}
        for name, optimizer in self._optimizers.items():
            for index, parameter in enumerate(parameters_of(optimizer)):
                for key, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, torch.Tensor):
                        names[f"{name}.{index}.{key}"] = f"{name}.state.{inside[id(parameter)]}.{key}"
            options[f"{name}.param_groups"] = [
                {**group, "params": [inside[id(p)] for p in group["params"]]} for group in optimizer.param_groups
            ]
        known = self.tensors()
        buffers = {}
        for name, module in self._modules.items():
            for key, value in module.state_dict().items():
                if f"{name}.{key}" not in known:
                    is_tensor = isinstance(value, torch.Tensor)
                    buffers[f"{name}.{key}"] = value.detach().clone() if is_tensor else value
        return {"names": names, "buffers": buffers, "options": options}

    def signature(self) -> str:
        """A hash that is equal where the same script built the same things: names, shapes, dtypes, strides and order of
        parameters and buffers, classes, and which parameters each group of an optimizer has."""
        names = {id(p): name for name, p in self._parameters().items()}
        lines = [
            f"{name} {tuple(p.shape)} {p.dtype} {p.stride()} {p.requires_grad}"
            for name, p in self._parameters().items()
        ]
        lines += [f"{n} {tuple(t.shape)} {t.dtype}" for n, t in self._own_tensors().items()]
        for name, optimizer in self._optimizers.items():
            lines.append(f"{name} {_kind(optimizer)}")
            for group in optimizer.param_groups:
                lines.append(f"{[names[id(p)] for p in group['params']]} {sorted(set(group) - {'params'})}")
        lines += [f"{name} {_kind(thing)}" for name, thing in self._others.items()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    # ------------------------------------------------------------ inside

    def _parameters(self) -> dict[str, torch.Tensor]:
        """Name → parameter, each once; those that only an optimizer knows come as `<optimizer>.<index>`."""
        return self._inventory.walk().parameters

    def _own_tensors(self) -> dict[str, torch.Tensor]:
        """Buffers and carried tensors, each once."""
        found: dict[str, torch.Tensor] = {}
        seen: set[int] = set()
        for name, parts in self._parts.items() if any(self._buffers) else ():
            for prefix, part in parts:
                for key, buffer in part._buffers.items():
                    if buffer is not None and id(buffer) not in seen:
                        seen.add(id(buffer))
                        found[f"{name}.{prefix}{key}"] = checked(f"{name}.{prefix}{key}", buffer)
        for name, tensor in self._plain.items():
            found[name] = checked(name, tensor.detach())
        return found

    def _gradient_words(self, found: Walk) -> dict[str, str]:
        """Parameter that has a gradient → its status; live if no optimizer has it, or two that do not agree."""
        status = {name: self.watch.status(name).value for name in self._optimizers}
        words = {key: status[name] for name, alone in found.trained.items() for key, p in alone if p.grad is not None}
        for key, names in found.shared.items():
            if found.parameters[key].grad is not None:
                said = {status[name] for name in names}
                words[key] = said.pop() if len(said) == 1 else _LIVE
        return words

    def _adopt_gradients(self, words: Mapping[str, str]) -> None:
        """The gradients are as they are there: so is what is known of them. A parameter without a word has none, and says nothing
        of the others; where none has one, all were cleared."""
        for name, alone in self._inventory.walk().trained.items():
            said = {words[key] for key, _ in alone if key in words} or {Gradients.ZERO.value}
            self.watch.adopt(name, Gradients(said.pop()) if len(said) == 1 else Gradients.LIVE)

    def _check(self, head: dict[str, Any], own: dict[str, torch.Tensor], pieces: dict[str, torch.Tensor],
               parameters: dict[str, torch.Tensor]) -> None:
        for kind, mine in (("flags", self._modules), ("others", self._others), ("options", self._optimizers)):
            _same_names(kind, head[kind], mine)
        _same_names("gradients", head["gradients"].keys() - parameters.keys(), ())
        _same_names("buffers and carried tensors", {n for n in pieces if not _is_gradient(n, parameters)}, own)
        for name, piece in pieces.items():
            tensor = parameters[name.removesuffix(".grad")] if _is_gradient(name, parameters) else own[name]
            if piece.shape != tensor.shape or piece.dtype != tensor.dtype:
                raise ScriptError(f"{name} is {tuple(piece.shape)} {piece.dtype} there and {tuple(tensor.shape)} "
                                  f"{tensor.dtype} here; both must run the same script")
        for name, module in self._modules.items():
            flags = head["flags"][name][1]
            if len(flags) != len(list(module.parameters())):
                raise ScriptError(f"{name} has {len(flags)} parameters there and another number here; "
                                  "both must run the same script")
            for (inner, p), flag in zip(module.named_parameters(), flags, strict=True):
                if p.requires_grad != bool(flag):
                    raise ScriptError(f"{name}.{inner} has requires_grad={bool(flag)} there and {p.requires_grad} "
                                      "here; a job that freezes parameters after its first step cannot move")
        for name, optimizer in self._optimizers.items():
            _check_optimizer(name, optimizer, head["loose"][name])


# ---------------------------------------------------------------- modules


def _inside(module: torch.nn.Module) -> torch.nn.Module:
    """The user's module inside DDP, DataParallel and torch.compile, so that names don't depend on wrapping."""
    while True:
        if isinstance(module, (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)):
            module = module.module
        elif isinstance(inner := module.__dict__.get("_modules", {}).get("_orig_mod"), torch.nn.Module):
            module = inner
        else:
            return module


def _flags_of(parts: Parts, parameters: list[torch.Tensor]) -> tuple[bytes, bytes]:
    """Which modules train, and which parameters are trained."""
    return bytes([part.training for _, part in parts]), bytes([p.requires_grad for p in parameters])


def _live_gradients(found: Walk, words: Mapping[str, str]) -> dict[str, torch.Tensor]:
    live = {name: found.parameters[name].grad for name, word in words.items() if word == _LIVE}
    return {f"{name}.grad": gradient for name, gradient in live.items() if gradient is not None}


def _install_gradient(parameter: torch.Tensor, word: str | None, value: torch.Tensor | None) -> None:
    """As it is there: none, zeros, spent (any values do, the script clears them first), or these values."""
    if word is None:
        parameter.grad = None
    elif parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    elif word == "zero":
        parameter.grad.zero_()
    if value is not None and parameter.grad is not None:
        parameter.grad.copy_(value)


# ---------------------------------------------------------------- optimizers


def _options_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _check_optimizer(name: str, optimizer: torch.optim.Optimizer, loose: Loose) -> None:
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != loose.sizes:
        raise ScriptError(f"{name} has parameter groups of {loose.sizes} there and {sizes} here; "
                          "both must run the same script")
    for index, (parameter, there) in enumerate(zip(parameters_of(optimizer), loose.tensors, strict=True)):
        here = {key for key, value in optimizer.state.get(parameter, {}).items() if isinstance(value, torch.Tensor)}
        for key in sorted(set(there) ^ here):
            side, other = ("there", "here") if key in there else ("here", "there")
            raise ScriptError(f"{name}.{index}.{key} exists {side} but not {other}: {name} has not made a step with "
                              f"this parameter {other} yet; let both make their first step before the move")


def _install_optimizer(optimizer: torch.optim.Optimizer, options: list[dict[str, Any]], loose: Loose) -> None:
    for group, values in zip(optimizer.param_groups, options, strict=True):
        for key in group.keys() - values.keys() - {"params"}:
            del group[key]
        for key, value in values.items():
            if isinstance(group.get(key), torch.Tensor) and isinstance(value, torch.Tensor):
                group[key].copy_(value)  # a learning rate that is a tensor is watched by who holds it
            else:
                group[key] = value
    for index, parameter in enumerate(parameters_of(optimizer)):
        optimizer_state = optimizer.state.get(parameter)
        if optimizer_state is not None:
            for key in [key for key, value in optimizer_state.items() if not isinstance(value, torch.Tensor)]:
                del optimizer_state[key]
        if index in loose.state:
            optimizer.state[parameter].update(loose.state[index])
    optimizer.state.update(loose.other)


# ---------------------------------------------------------------- anything else


def _has_state(thing: object) -> bool:
    return callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))


def _state_of(thing: Any) -> Any:
    return thing.get_state() if isinstance(thing, torch.Generator) else thing.state_dict()


def _install_other(thing: Any, state: Any) -> None:
    if isinstance(thing, torch.Generator):
        thing.set_state(state)
    else:
        thing.load_state_dict(state)


def _tensors_inside(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors_inside(f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors_inside(f"{name}.{index}", item)


def _kind(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _same_names(what: str, there: Any, here: Any) -> None:
    for name in sorted(set(there) ^ set(here)):
        side = "there" if name in there else "here"
        raise ScriptError(f"{what}: {name} exists only {side}; both must run the same script")


def _is_gradient(name: str, parameters: dict[str, torch.Tensor]) -> bool:
    return name.endswith(".grad") and name.removesuffix(".grad") in parameters


def _pickled(head: dict[str, Any]) -> bytes:
    try:
        return dump(head)
    except Exception:  # whatever a user's __reduce__ raises; name the culprit
        parts = {**head.get("extra", {}), **head.get("others", {}), **head.get("options", {}), **head.get("loose", {})}
        for name, part in parts.items():
            try:
                dump(part)
            except Exception as error:
                raise ScriptError(f"the state of {name} cannot be pickled: {error}; "
                                  "keep plain values and tensors in it") from None
        raise
