"""Messages as plain JSON values and back: what goes over sockets and into the journal. Checked on the way in."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from restow import messages
from restow.errors import SpecError
from restow.messages import Command, Event
from restow.placement import Slot

_ABSTRACT = {"Command", "Event", "GangEvent"}
TYPES: dict[str, type] = {
    name: thing
    for name, thing in vars(messages).items()
    if isinstance(thing, type) and issubclass(thing, (Command, Event)) and name not in _ABSTRACT
}


def to_json(value: Any) -> Any:
    """A message (or any value inside one) as plain lists, dicts, strings and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields} if type(value).__name__ in TYPES else fields
    if isinstance(value, Slot):
        return [value.node, value.device, value.share]
    if isinstance(value, (list, tuple, frozenset)):
        return [to_json(item) for item in value]
    return value


def from_json(wire: Any) -> Any:
    """The message that `to_json` wrote. Raises SpecError on anything else."""
    if not isinstance(wire, dict) or not isinstance(wire.get("type"), str) or wire["type"] not in TYPES:
        raise SpecError(f"message is {str(wire)[:80]!r}; expected an object whose type is one of {', '.join(sorted(TYPES))}")
    return _build(TYPES[wire["type"]], {k: v for k, v in wire.items() if k != "type"})


def value_from(kind: type, wire: Any) -> Any:
    """The value of this type that `to_json` wrote. Raises SpecError on anything else."""
    return _build(kind, wire)


def arguments_of(method: Callable[..., Any], wire: Any) -> dict[str, Any]:
    """The arguments of a call, by name, checked against what `method` says of them. Raises SpecError, which names the wrong one."""
    name = method.__name__.lstrip("_")
    if not isinstance(wire, dict):
        raise SpecError(f"{name}: arguments are {str(wire)[:80]} (a {type(wire).__name__}); write an object")
    try:
        inspect.signature(method).bind(**wire)
    except TypeError as error:
        raise SpecError(f"{name}: {error}") from None
    hints = typing.get_type_hints(method)
    arguments = {}
    for key, value in wire.items():
        try:
            arguments[key] = _build(hints[key], value)
        except SpecError as error:
            raise SpecError(f"{name}: {key}: {error}") from None
    return arguments


_hints: dict[type, dict[str, Any]] = {}


def _build(kind: Any, wire: Any) -> Any:
    """`wire` as a value of type `kind`, checked."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or (origin is dict and isinstance(wire, dict)):
        return wire
    if origin in (typing.Union, types.UnionType):
        return None if wire is None else _build(next(a for a in args if a is not type(None)), wire)
    if kind is Slot:
        if isinstance(wire, list) and len(wire) == 3:
            return Slot(_build(str, wire[0]), _build(int, wire[1]), _build(float, wire[2]))
    elif origin is tuple and isinstance(wire, list):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_build(args[0], item) for item in wire)
        if len(args) == len(wire):
            return tuple(_build(arg, item) for arg, item in zip(args, wire, strict=True))
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(wire, dict):
        hints = _hints.setdefault(kind, typing.get_type_hints(kind))
        unknown = wire.keys() - {f.name for f in dataclasses.fields(kind)}
        if unknown:
            raise SpecError(f"{kind.__name__} has no field {sorted(unknown)[0]!r}")
        try:
            return kind(**{name: _build(hints[name], item) for name, item in wire.items()})
        except TypeError as error:
            raise SpecError(f"{kind.__name__}: {error}") from None
    elif kind is float and isinstance(wire, (int, float)) and not isinstance(wire, bool):
        return float(wire)
    elif (kind is int and isinstance(wire, int) and not isinstance(wire, bool)) or (kind in (str, bool) and isinstance(wire, kind)):
        return wire
    raise SpecError(f"{str(wire)[:80]!r} is not a {getattr(kind, '__name__', kind)}")
