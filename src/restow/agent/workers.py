"""The ranks and twins that live on this node, and what the agent knows of each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restow.errors import SetupError
from restow.page import Page, open_page

if TYPE_CHECKING:
    from restow.agent.channel import Channel

_LABEL = ("job", "generation", "rank", "role", "born", "secret", "page", "log", "parked", "greeted", "device", "world", "hang_s")


@dataclass(kw_only=True)
class Worker:
    """One process. What is in the label outlives the agent: the nursery keeps it."""

    pid: int
    job: str
    generation: int  # the one it trains in; grows with each switch
    rank: int
    role: str  # "rank", "twin", "leaver", or "sleeper": suspended, and there for when its job comes back
    born: int  # its generation at birth, which its files are named after
    secret: str
    page: str  # path
    log: str  # path of what it prints now or, as a twin, first
    device: int = -1  # index of the one that it computes on; -1: not known
    hang_s: float = 0.0  # without a step for so long it stands still; 0: some usual steps; below 0: never
    world: int = 1  # ranks of its gang, wherever they are
    parked: bool = False  # a twin that has rehearsed
    shared: Page | None = None
    channel: Channel | None = None
    greeted: bool = False  # it has spoken to an agent
    abandoned: bool = False  # a twin that was told to go, or a sleeper that is being ended
    progress: tuple[Any, ...] = field(default=())  # what was last reported

    def label(self) -> dict[str, Any]:
        return {"kind": "rank", **{name: getattr(self, name) for name in _LABEL}}

    @classmethod
    def from_label(cls, pid: int, label: Mapping[str, Any]) -> Worker:
        worker = cls(pid=pid, **{name: label[name] for name in _LABEL if name in label})
        with suppress(SetupError):  # somebody removed it: no progress and no switch for this one, but it runs
            worker.shared = open_page(Path(worker.page))
        return worker

    @property
    def key(self) -> tuple[str, int, int]:
        """Names it for good: (job, generation at birth, rank)."""
        return (self.job, self.born, self.rank)

    def step(self) -> int:
        """Finished steps, -1 where they are not known."""
        return int(self.shared.get("step")) if self.shared else -1

    def close(self) -> None:
        if self.shared:
            self.shared.close()
            self.shared = None


class Workers:
    """All of this node's, by pid."""

    def __init__(self) -> None:
        self.by_pid: dict[int, Worker] = {}
        self.seen: set[tuple[str, int, int]] = set()  # keys of all that were ever started: none is started twice

    def add(self, worker: Worker) -> None:
        self.by_pid[worker.pid] = worker
        self.seen |= {worker.key, (worker.job, worker.generation, worker.rank)}

    def remove(self, pid: int) -> Worker | None:
        """Its page is still open."""
        return self.by_pid.pop(pid, None)

    def of(self, job: str) -> list[Worker]:
        """By rank, older generations first."""
        return sorted((w for w in self.by_pid.values() if w.job == job), key=lambda w: (w.rank, w.born))

    def old_ranks(self, job: str, generation: int) -> list[Worker]:
        """Those that a switch to `generation` would take from their present one."""
        return [w for w in self.of(job) if w.role == "rank" and w.generation < generation]

    def twins(self, job: str, generation: int) -> list[Worker]:
        return [w for w in self.of(job) if w.role == "twin" and w.generation == generation]

    def sleeper(self, job: str, rank: int, device: int, world: int) -> Worker | None:
        """Who could be this rank again at once: it computed on the same device, in a gang of the same size."""
        asleep = [w for w in self.of(job) if w.role == "sleeper" and not w.abandoned]
        return next((w for w in reversed(asleep) if (w.rank, w.device, w.world) == (rank, device, world)), None)

    def keys(self) -> set[tuple[str, int, int]]:
        return {worker.key for worker in self.by_pid.values()}

    def forget(self, job: str) -> None:
        self.seen = {key for key in self.seen if key[0] != job}

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self.by_pid.values()))


def now_s() -> float:
    """The wall clock, as events carry it."""
    return time.time()
