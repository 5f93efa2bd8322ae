"""What a link lets through: rates and delays, how people write them, and the numbers that the kernel is given.

Values only; network.py applies them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from restow.errors import SpecError

MTU_BYTES = 9000
"""Jumbo frames: headers are 66 of 9014 bytes, so 100 MB of payload cost 100.7 MB at most; at 1500 it is 4.6 % more."""

RATE_BITS_PER_S_MIN = 10e3
RATE_BITS_PER_S_MAX = 30e9  # the kernel's word for a tbf rate ends at 34 Gbit/s
DELAY_S_MAX = 10.0

_RATE_UNITS = {"": 1.0, "bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_DELAY_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
_NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One link. Of a node: its NIC, the same in both directions. Of a pair: on top of both NICs, each way."""

    rate_bits_per_s: float | None = None  # None: as fast as the machine is
    delay_s: float = 0.0  # one way, between two nodes with the same delay; with different ones, the mean of both
    is_cut: bool = False

    def __post_init__(self) -> None:
        rate = self.rate_bits_per_s
        if rate is not None and not RATE_BITS_PER_S_MIN <= rate <= RATE_BITS_PER_S_MAX:
            raise SpecError(f"rate is {rate:g} bit/s; choose 10kbit to 30gbit, or none for an unshaped link")
        if not 0 <= self.delay_s <= DELAY_S_MAX:
            raise SpecError(f"delay_s is {self.delay_s:g}; choose 0 to {DELAY_S_MAX:g} seconds")


OPEN = Shape()


def burst_bytes(rate_bits_per_s: float) -> int:
    """How much may pass at once after a pause.

    A packet as the sender's TCP hands it over (GSO) has up to 64 KiB and passes whole only if it fits; smaller bursts
    make the kernel cut it up, which costs CPU time. 4 ms of the rate keep fast links exact although timers fire late.
    Below 20 Mbit/s a whole packet would be a long free ride, so there it is cut up: two frames.
    """
    if rate_bits_per_s < 20e6:
        return 20_000
    return max(80_000, int(rate_bits_per_s / 8 * 0.004))


def queue_bytes(rate_bits_per_s: float) -> int:
    """How much may wait: 100 ms of the rate, as a switch with a deep buffer; what is beyond is dropped."""
    return min(32 << 20, max(256_000, int(rate_bits_per_s / 8 * 0.1)))


def parse_rate(text: str) -> float | None:
    """`200mbit`, `1gbit`, `100kbit`, a number of bits per second, or `none`: bits per second. Raises SpecError."""
    if text.strip().lower() == "none":
        return None
    rate = _parse(text, _RATE_UNITS)
    if rate is None:
        raise SpecError(f"rate is {text!r}; write for example 200mbit, 1gbit, 100kbit or none")
    return Shape(rate_bits_per_s=rate).rate_bits_per_s


def parse_delay(text: str) -> float:
    """`10ms`, `500us`, `0.01s` or a number of seconds: seconds. Raises SpecError."""
    delay_s = _parse(text, _DELAY_UNITS)
    if delay_s is None:
        raise SpecError(f"delay is {text!r}; write for example 10ms, 500us or 0.01s")
    return Shape(delay_s=delay_s).delay_s


def _parse(text: str, units: dict[str, float]) -> float | None:
    match = _NUMBER.fullmatch(text.strip().lower())
    if not match or match[2] not in units:
        return None
    return float(match[1]) * units[match[2]]


def format_rate(rate_bits_per_s: float | None) -> str:
    """The rate as `parse_rate` reads it."""
    if rate_bits_per_s is None:
        return "none"
    for unit in ("gbit", "mbit", "kbit"):
        if rate_bits_per_s >= _RATE_UNITS[unit]:
            return f"{rate_bits_per_s / _RATE_UNITS[unit]:g}{unit}"
    return f"{rate_bits_per_s:g}bit"
