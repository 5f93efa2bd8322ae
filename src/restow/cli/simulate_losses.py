"""What of `restow simulate` may go wrong in the cluster: machines that fail, and devices that are slow for a time."""

from __future__ import annotations

import math

from restow.errors import SpecError
from restow.sim.losses import LossConfig
from restow.sim.stragglers import StragglerConfig

HOUR_S = 3600.0
H_MIN = 0.01  # more often than every half minute no job would end
TIMES_MAX = 1e6


def losses_of(mtbf_h: float | None, repair_s: float | None, checkpoint_s: float | None) -> LossConfig:
    """None: as usual; nothing fails without `mtbf_h`. Raises SpecError."""
    usual, given_s = LossConfig(), {"--repair-s": repair_s, "--checkpoint-s": checkpoint_s}
    if mtbf_h is None:
        _check_alone(given_s, "--mtbf-h", "no machine fails")
        return usual
    _check_hours("--mtbf-h", mtbf_h)
    for name, value in given_s.items():
        _check_seconds(name, value)
    repair_s = usual.repair_s if repair_s is None else repair_s
    return LossConfig(mtbf_s=mtbf_h * HOUR_S, repair_s=repair_s, checkpoint_s=checkpoint_s or 0.0)


def stragglers_of(times: float | None, every_h: float | None, lasts_s: float | None) -> StragglerConfig:
    """None: as usual; nothing is slow without `times`. Raises SpecError."""
    usual = StragglerConfig()
    if times is None:
        _check_alone({"--straggler-h": every_h, "--straggler-s": lasts_s}, "--stragglers", "no device is slow")
        return usual
    if not 1 <= times <= TIMES_MAX:
        raise SpecError(f"--stragglers is {times:g}; write how many times as long a step takes there, 1 or more, for example 2.5")
    if every_h is not None:
        _check_hours("--straggler-h", every_h)
    _check_seconds("--straggler-s", lasts_s)
    return StragglerConfig(
        times=times, every_s=usual.every_s if every_h is None else every_h * HOUR_S,
        lasts_s=usual.lasts_s if lasts_s is None else lasts_s,
    )  # fmt: skip


def _check_alone(given: dict[str, float | None], needed: str, why: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise SpecError(f"{name} says nothing without {needed}: {why}")


def _check_hours(name: str, hours: float) -> None:
    if not H_MIN <= hours < math.inf:
        raise SpecError(f"{name} is {hours:g}; write hours, {H_MIN:g} or more")


def _check_seconds(name: str, seconds: float | None) -> None:
    if seconds is not None and not 0 <= seconds < math.inf:
        raise SpecError(f"{name} is {seconds:g}; write seconds, 0 or more")
