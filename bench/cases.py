"""The moves that are measured: how much state, from where, to where."""

from __future__ import annotations

from dataclasses import dataclass

WORLD_SIZE = 3
RATE_BITS_PER_S = 200e6

SCATTERED = ("m1", "m1", "m2")
ON_M1 = ("m1", "m1", "m1")
ON_M2 = ("m2", "m2", "m2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Three ranks go from `now` to `then` (rank → node). The link is at its full rate in the window that is measured."""

    name: str
    state_mb: float
    now: tuple[str, ...]
    then: tuple[str, ...]
    fill: str  # what restow is told to use: replica, copy or shadow
    before: int  # steps at the full rate before the move
    after: int = 12  # steps after it
    warm: int = 3  # first steps, which are not looked at
    between: int = 30  # steps while a job moves out again before its next move; enough for the state to cross the open link

    @property
    def steps(self) -> int:
        """Optimizer steps of a run with one move."""
        return self.warm + self.before + self.after

    @property
    def crosses(self) -> bool:
        """Does no rank that stays or goes hold the state at the destination?"""
        return not set(self.then) & set(self.now)

    def lower_bound_bytes(self, state_bytes: int) -> int:
        """Bytes that must cross the link: the state once for each node that needs it and has none of it.

        Private state (random generators, data position: some kilobytes per rank) is left out.
        """
        return state_bytes * len(set(self.then) - set(self.now))


CASES = {
    case.name: case
    for case in (
        Case(name="local-100MB", state_mb=100, now=SCATTERED, then=ON_M1, fill="replica", before=6),
        Case(name="local-1GB", state_mb=1000, now=SCATTERED, then=ON_M1, fill="replica", before=4, between=16),
        Case(name="shadow-100MB", state_mb=100, now=SCATTERED, then=ON_M1, fill="shadow", before=6),
        Case(name="cross-100MB", state_mb=100, now=ON_M1, then=ON_M2, fill="copy", before=12),
    )
}
