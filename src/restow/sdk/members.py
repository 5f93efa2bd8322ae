"""Which members a sweep has: what `restow sweep` asked for, or what the script says itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from restow.errors import ScriptError

VARIABLE = "RESTOW_SWEEP"  # a JSON list with one object of settings per member; set by `restow sweep`


def sweep_members(default: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The settings of each member: the grid of `restow sweep --set ...`, else `default`.

    The grid has only the keys that were set; put your own under them: `[{"momentum": 0.9, **m} for m in sweep_members(...)]`.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return [dict(settings) for settings in default]
    try:
        members = json.loads(text)
    except ValueError as error:
        raise ScriptError(f"{VARIABLE} is not JSON ({error}); unset it, or use restow sweep --set") from None
    if not isinstance(members, list) or not members or not all(isinstance(settings, dict) for settings in members):
        raise ScriptError(f"{VARIABLE} is {text[:60]!r}; it must be a JSON list with one object per member")
    return members
