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


def _worth() -> Policy:
    from restow.policies.worth.policy import Worth  # and numpy with it

    return Worth()


def _gavel(program: str) -> Policy:
    from restow.policies.gavel import programs  # and scipy with it, which takes a second
    from restow.policies.gavel.policy import Gavel

    return Gavel(getattr(programs, program))


def _muri(knows_lengths: bool) -> Policy:
    from restow.policies.muri.policy import Muri

    return Muri(knows_lengths=knows_lengths)


def _pollux() -> Policy:
    from restow.policies.pollux.policy import Pollux

    return Pollux()


def _fgd() -> Policy:
    from restow.policies.fgd import Fgd  # and numpy with it

    return Fgd()


def _bestfit() -> Policy:
    from restow.policies.bestfit import BestFit

    return BestFit()


POLICIES: Mapping[str, Callable[[], Policy]] = {
    "restow": Restow,
    "worth": _worth,
    "fifo": Fifo,
    "fifo-strict": lambda: Fifo(backfill=False),
    "srtf": Srtf,
    "srsf": lambda: Srtf(counts_devices=True),
    "las": Las,
    "muri-s": lambda: _muri(True),
    "muri-l": lambda: _muri(False),
    "gavel": lambda: _gavel("max_min"),
    "gavel-makespan": lambda: _gavel("least_makespan"),
    "gavel-maxsum": lambda: _gavel("max_sum"),
    "gavel-ftf": lambda: _gavel("finish_time_fairness"),
    "pollux": _pollux,
    "fgd": _fgd,
    "bestfit": _bestfit,
    "gandiva": Gandiva,
    "edf": Edf,
    "deadline": Deadline,
    "fair": Fair,
}
