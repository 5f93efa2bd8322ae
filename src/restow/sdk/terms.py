"""What an attempt to reach the next generation is about, and what came of it: values only. Who acts on them is attempt.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from restow.placement import Placement, Slot, moved_ranks


class Role(Enum):
    STAYING = "staying"
    LEAVING = "leaving"
    ARRIVING = "arriving"
    SUSPENDING = "suspending"  # the whole job leaves its devices, its state goes into the vault


class Outcome(Enum):
    ABORTED = "aborted"  # decided before anybody moved: as if nothing had been
    DONE = "done"
    ROLLED_BACK = "rolled back"
    TROUBLE = "trouble"  # a leaver was lost before everybody had come to the switch step: see guard.py


class AttemptFailed(Exception):
    """This process cannot take part; one line says why. The old generation goes on."""


class Trouble(Exception):
    """A leaver was lost before everybody had come to the switch step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a `connect` message says."""

    generation: int
    present: int  # the generation that is left by it; 0: none is, the job comes back
    now: Placement
    then: Placement
    store: tuple[str, int]
    fill: str
    vault: str = ""  # suspending: the folder of this node's vault for this state
    kept: Placement = ()  # coming back: where each rank was when its state was kept
    kept_replicas: tuple[str, ...] = ()  # nodes where what all hold alike is
    kept_muted: tuple[int, ...] = ()  # ranks that have printed what they print in their first step
    kept_step: int = -1  # ... and how many steps were finished
    kept_generation: int = 0  # whose number the vaults know it by

    @property
    def moved(self) -> tuple[int, ...]:
        return moved_ranks(self.now, self.then)


def read_terms(message: Mapping[str, Any]) -> Terms:
    return Terms(
        generation=int(message["generation"]),
        present=int(message["present"]),
        now=tuple(Slot(*slot) for slot in message["now"]),
        then=tuple(Slot(*slot) for slot in message["then"]),
        store=(message["store"][0], int(message["store"][1])),
        fill=message["fill"],
        vault=message.get("vault", ""),
        kept=tuple(Slot(*slot) for slot in kept["placement"]) if (kept := message.get("kept")) else (),
        kept_replicas=tuple(kept["replicas"]) if kept else (),
        kept_muted=tuple(kept["muted"]) if kept else (),
        kept_step=int(kept["step"]) if kept else -1,
        kept_generation=int(kept["generation"]) if kept else 0,
    )


@dataclass(slots=True)
class Report:
    """What `take_part` or its two halves did, for RankSwitched or RankRolledBack."""

    outcome: Outcome | None = None  # None: not over yet
    reason: str = ""
    wire_bytes: int = 0
    phases: list[tuple[str, float]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)  # arriving: what the leaver handed over besides tensors
    is_muted: bool = False  # arriving: the lost leaver has printed the first step's lines already
    is_takeover: bool = False
    kept_bytes: int = 0  # suspending: what this rank wrote into the vault
    paused_s: float = 0.0  # staying: how long the training thread was held
