"""The policies that come with restow, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from restow.policies.base import Policy
from restow.policies.fifo import Fifo
from restow.policies.las import Las
from restow.policies.restow import Restow
from restow.policies.srtf import Srtf


def _worth() -> Policy:
    from restow.policies.worth.policy import Worth  # and numpy with it

    return Worth()


def _gavel() -> Policy:
    from restow.policies.gavel import Gavel  # and scipy with it, which takes a second

    return Gavel()


def _pollux() -> Policy:
    from restow.policies.pollux.policy import Pollux

    return Pollux()


POLICIES: Mapping[str, Callable[[], Policy]] = {
    "restow": Restow,
    "worth": _worth,
    "fifo": Fifo,
    "fifo-strict": lambda: Fifo(backfill=False),
    "srtf": Srtf,
    "srsf": lambda: Srtf(counts_devices=True),
    "las": Las,
    "gavel": _gavel,
    "pollux": _pollux,
}
