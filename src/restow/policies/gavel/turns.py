"""Whose turn it is on each kind of device: who has had least of it against its part of the time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

LEAST_ROUND_S = 1.0
DIGITS = 6  # of a claim: what differs less is the same, and only rounding


def _seconds() -> dict[str, dict[str, float]]:
    return defaultdict(lambda: defaultdict(float))


@dataclass(slots=True)
class Turns:
    """Job → kind → seconds, in all of these. Every job is taken to have had half a round of each kind, so that one that has had
    nothing yet does not count infinitely. Source: `_update_priorities` of Gavel's scheduler, with its `deficits`."""

    _parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    _received: dict[str, dict[str, float]] = field(default_factory=_seconds)  # since the parts were found
    _owed: dict[str, dict[str, float]] = field(default_factory=_seconds)  # from the time before that
    _asked_s: float = 0.0
    _began_s: float = 0.0  # when the parts were found
    _half_round_s: float = LEAST_ROUND_S / 2

    def pass_to(self, now_s: float, running: Mapping[str, str], here: Iterable[str]) -> None:
        """`running`: job → kind, in the round that is over; `here`: the jobs that there still are."""
        passed_s = now_s - self._asked_s
        self._asked_s = now_s
        self._half_round_s = max(passed_s, LEAST_ROUND_S) / 2
        for id, kind in running.items():
            self._received[id][kind] += passed_s
        for gone in (self._received.keys() | self._owed.keys()) - set(here):
            self._received.pop(gone, None)
            self._owed.pop(gone, None)

    def begin(self, parts: Mapping[str, Mapping[str, float]], now_s: float) -> None:
        """Other parts from now on. What was not received of the ones before, or received beyond them, is kept in mind."""
        for id, before in self._parts.items():
            for kind, part in before.items():
                self._owed[id][kind] += part * (now_s - self._began_s) - self._received[id][kind]
        self._received = _seconds()
        self._parts, self._began_s = parts, now_s

    def claim(self, kind: str, jobs: int) -> Callable[[str], tuple[float, float]]:
        """Job → what it is ranked by on this kind, the largest first."""
        total_s = sum(received[kind] for received in self._received.values()) + jobs * self._half_round_s

        def of(id: str) -> tuple[float, float]:
            part = self._parts.get(id, {}).get(kind, 0.0)
            return round(part * total_s / (self._received[id][kind] + self._half_round_s), DIGITS), self._owed[id][kind]

        return of
