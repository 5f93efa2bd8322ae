"""One member of a sweep: its settings read, its model made as its separate run would make it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from restow.errors import ScriptError
from restow.sdk import randomness
from restow.sdk.fused_checks import check
from restow.sdk.fused_draws import Draws
from restow.sdk.fused_optimizer import complete

Settings = Mapping[str, Any]


@dataclass(slots=True)
class Member:
    """What a sweep keeps of a member beside its tensors."""

    settings: dict[str, Any]  # as the script gave them
    numbers: dict[str, Any]  # the optimizer's among them, complete
    draws: Draws
    steps: int = 0  # updates made


def make_as_alone(
    make: Callable[[], nn.Module], settings: Settings, device: torch.device | None
) -> tuple[nn.Module, Draws]:
    """A member's model after `torch.manual_seed(settings["seed"])`, on `device`, and its generators as they are then. The
    process's own generators stay where they are."""
    kept = randomness.capture()
    try:
        seed = int(settings.get("seed", 0))
        randomness.seed_all(seed)
        torch.manual_seed(seed)  # CUDA's generators too
        model = make()
        check(model)
        if device is not None:
            model = model.to(device)
        at = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        return model, Draws(at).take()
    finally:
        randomness.restore(kept)


def read(kind: str, settings: Settings) -> dict[str, Any]:
    """The optimizer's numbers among a member's settings; other keys are the script's own, misspelt ones are refused."""
    if not isinstance(settings, Mapping):
        raise ScriptError(f"a member is {settings!r}; give a dict of settings, for example {{'lr': 0.1}}")
    numbers = complete(kind, settings)
    for key in settings.keys() - numbers.keys() - {"seed"}:
        close = difflib.get_close_matches(str(key), [*numbers, "seed"], n=1, cutoff=0.8)
        if close:
            raise ScriptError(f"a member has the setting {key!r}; did you mean {close[0]!r}?")
    return numbers
