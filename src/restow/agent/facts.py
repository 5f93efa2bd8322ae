"""What a rank said, as the event that the controller gets. Pure."""

from __future__ import annotations

import dataclasses
from typing import Any

from restow.codec import TYPES, from_json
from restow.errors import SpecError
from restow.messages import GangEvent

_ABOUT_THE_SWITCH = {  # they name the generation of the switch; the others are of the rank's own
    "connected": "RankConnected",
    "shadowing": "ShadowReady",
    "failed": "SwitchFailed",
    "switched": "RankSwitched",
    "kept": "RankKept",
    "rolled_back": "RankRolledBack",
}
_ABOUT_ITSELF = {"ready": "RankReady", "parked": "TwinParked", "halted": "RankHalted"}


def event_of(
    message: dict[str, Any], *, job: str, generation: int, rank: int, role: str, node: str, time_s: float
) -> GangEvent | None:
    """The event; None for what needs none. Raises SpecError when the message is malformed. Unknown fields are dropped: a
    script may run under another version of restow."""
    kind = message["type"]
    name = _ABOUT_THE_SWITCH.get(kind) or _ABOUT_ITSELF.get(kind)
    if name is None:
        if kind == "retired":
            return None
        raise SpecError(f"message is {kind[:40]!r}; nobody knows it")
    known = {field.name for field in dataclasses.fields(TYPES[name])}
    said = {field: value for field, value in message.items() if field in known and field != "type"}
    if kind in _ABOUT_ITSELF:
        said["generation"] = generation
    if kind == "connected":
        said["role"] = "twin" if role == "twin" else "rank"
    event = from_json({**said, "type": name, "job": job, "rank": rank, "node": node, "time_s": time_s})
    assert isinstance(event, GangEvent)
    return event
