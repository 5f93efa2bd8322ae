"""How near a job's own end is to the end of all that is there: who is behind everybody else decides when the last one is done.

The end of all is no nearer than that of the longest job, nor than what is left of all of them by the devices that there are
(McNaughton, 1959). A job whose own end is far before it may wait; one whose end is near it makes all of it later by waiting. Of
jobs that do not say how long they are nothing is known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Urgency:
    """A job whose end is that of all is worth `most` times more than for itself, one that is at half of it `most` by 2^`power`."""

    most: float = 4.0
    power: float = 4.0

    def factors(self, usual_s: Mapping[str, float], work_s: Iterable[float], devices: int) -> dict[str, float]:
        """Job → how many times more it is worth. `usual_s`: job → until its end at its usual speed; `work_s`: the same by its
        devices."""
        end_s = max(max(usual_s.values(), default=0.0), sum(work_s) / max(1, devices))
        if end_s <= 0:
            return dict.fromkeys(usual_s, 1.0)
        return {id: 1.0 + self.most * (seconds / end_s) ** self.power for id, seconds in usual_s.items()}
