"""The policies that come with restow, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from restow.policies.base import Policy
from restow.policies.deadline import Deadline, Edf
from restow.policies.fair import Fair
from restow.policies.fifo import Fifo
from restow.policies.gandiva.policy import Gandiva
from restow.policies.las import Las
from restow.policies.restow import Restow
from restow.policies.srtf import Srtf
from restow.policies.worth.policy import Worth


def _gavel() -> Policy:
    from restow.policies.gavel import Gavel  # and scipy with it, which takes a second

    return Gavel()


POLICIES: Mapping[str, Callable[[], Policy]] = {
    "restow": Restow,
    "worth": Worth,
    "fifo": Fifo,
    "fifo-strict": lambda: Fifo(backfill=False),
    "srtf": Srtf,
    "srsf": lambda: Srtf(counts_devices=True),
    "las": Las,
    "gavel": _gavel,
    "gandiva": Gandiva,
    "edf": Edf,
    "deadline": Deadline,
    "fair": Fair,
}
