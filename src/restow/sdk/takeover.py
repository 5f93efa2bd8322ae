"""What the store of the next generation says when a leaver was lost, and what follows from it: a pure decision.

Each old rank that is stuck writes where it stands; the twin of a lost leaver writes that it is lost. From these words everybody
computes the same `Takeover`, and the first who writes it wins. Knows no store, no process and no tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from restow.placement import Placement, moved_ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """Where an old rank stands when a collective failed it."""

    step: int  # steps finished
    first: int  # the earliest step whose collectives it can do again
    holds: tuple[int, ...]  # steps whose state (as of their beginning) it can give
    why_not: str = ""  # why it cannot do anything again; empty: it can

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def read_stuck(raw: bytes) -> Stuck:
    word = json.loads(raw)
    return Stuck(step=word["step"], first=word["first"], holds=tuple(word["holds"]), why_not=word["why_not"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """The twins begin with `step`, and everybody does that step's collectives again with them."""

    step: int = -1
    sources: dict[int, int] = field(default_factory=dict)  # moved rank → old rank that gives its twin the state
    muted: tuple[int, ...] = ()  # moved ranks whose old process finished that step: what it printed is not printed again
    why_not: str = ""  # it cannot be done; empty: it can

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def read_takeover(raw: bytes) -> Takeover:
    word: dict[str, Any] = json.loads(raw)
    sources = {int(rank): source for rank, source in word["sources"].items()}
    return Takeover(step=word["step"], sources=sources, muted=tuple(word["muted"]), why_not=word["why_not"])


def choose(now: Placement, then: Placement, stuck: Mapping[int, Stuck], private: Mapping[int, tuple[int, ...]]) -> Takeover:
    """`stuck`: the old ranks that are alive. `private`: moved rank → steps whose private state is in the store.

    The step is the latest that everybody can begin: no survivor is behind it, and each leaver left private state for it.
    """
    moved = moved_ranks(now, then)
    for rank, word in sorted(stuck.items()):
        if word.why_not:
            return Takeover(why_not=f"rank {rank} cannot repeat the step: {word.why_not}")
    for rank in moved:
        if not private.get(rank):
            return Takeover(why_not=f"rank {rank} left no private state behind")
    if not stuck:
        return Takeover(why_not="no rank of the old gang is left")
    step = min(*(word.step for word in stuck.values()), *(max(private[rank]) for rank in moved), 1 << 62)
    for rank in moved:
        if step not in private[rank]:
            return Takeover(why_not=f"the private state of rank {rank} for step {step} is missing")
    for rank, word in sorted(stuck.items()):
        if not word.first <= step:
            return Takeover(why_not=f"rank {rank} kept the collectives from step {word.first} on, step {step} is needed")
    sources = {}
    for rank in moved:
        able = [source for source, word in sorted(stuck.items()) if step in word.holds]
        near = [source for source in able if now[source].node == then[rank].node]
        if not able:
            return Takeover(why_not=f"no rank holds the state of step {step} any more")
        sources[rank] = (near or able)[0]
    muted = tuple(r for r in moved if max(private[r]) > step or (r in stuck and stuck[r].step > step))
    return Takeover(step=step, sources=sources, muted=muted)


def keepers(now: Placement, then: Placement) -> set[int]:
    """Old ranks that keep a copy of their state as of the last save point while a switch is being prepared: the lowest
    staying rank of each destination, else the lowest staying rank, else (all leave, so any may be lost) everybody."""
    moved = set(moved_ranks(now, then))
    staying = [rank for rank in range(len(now)) if rank not in moved]
    near = {
        next((rank for rank in staying if now[rank].node == then[moving].node), staying[0]) for moving in moved if staying
    }
    return near or set(range(len(now)))
