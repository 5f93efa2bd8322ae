"""What policies are told of the jobs' speeds: the world's truth, wrong by as much as is asked for. Seeded: the same everywhere."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Sequence

from restow.job import Job
from restow.placement import Placement, is_scattered, nodes_of
from restow.policies.room import Room
from restow.sim.rows import Row
from restow.sim.world import Nodes, World, kind_of


class Believed:
    """`error`: each model's speed on each kind of devices, together or spread, is believed wrong by at most this part either
    way."""

    def __init__(self, world: World, row_now: Callable[[str], Row], nodes: Nodes, *, error: float = 0.0, seed: int = 0):
        self._world, self._row_now, self._nodes, self._error, self._seed = world, row_now, nodes, error, seed
        self._alone_s: dict[Hashable, float] = {}  # alike, workers → seconds of a step
        self._places: dict[int, list[Placement]] = {}  # workers → a place of each kind

    def step_s(self, job: Job, placement: Placement, beside: Sequence[tuple[Job, Placement]] = ()) -> float:
        others = [(self._row_now(other.id), there) for other, there in beside]
        true_s = self._world.step_s(self._row_now(job.id), placement, self._nodes, others)
        return true_s * self._factor(job, placement) if self._error else true_s

    def alone_s(self, job: Job) -> float:
        """On the devices that suit it best, as many as it wants, all of one kind and on one machine, if one has so many."""
        workers = self._row_now(job.id).workers
        key = self.alike(job), workers
        if key not in self._alone_s:
            self._alone_s[key] = min((self.step_s(job, there) for there in self.places(workers)), default=math.inf)
        return self._alone_s[key]

    def alike(self, job: Job) -> Hashable:
        row = self._row_now(job.id)
        return (self._world.alike(row), self._named(job)) if self._error else self._world.alike(row)

    def place(self, placement: Placement) -> Hashable:
        kind, place = kind_of(placement, self._nodes), self._world.place(placement, self._nodes)
        return (kind, place, is_scattered(placement), len(nodes_of(placement))) if self._error else (kind, place)

    def stages_s(self, job: Job) -> tuple[float, float, float] | None:
        """As the trace has them."""
        return self._row_now(job.id).stages_s

    def places(self, workers: int) -> list[Placement]:
        """One place for each kind of machine: on one of them, or on as many as it takes."""
        if workers not in self._places:
            self._places[workers] = self._find_places(workers)
        return self._places[workers]

    def _find_places(self, workers: int) -> list[Placement]:
        kinds: dict[str, list[str]] = {}
        for name, node in self._nodes.items():
            kinds.setdefault(node.devices[0].kind, []).append(name)
        found = []
        for kind, names in kinds.items():
            placement = Room([self._nodes[name] for name in names]).find(workers, kind)
            if placement:
                found.append(placement)
        return found

    def _factor(self, job: Job, placement: Placement) -> float:
        place = f"{kind_of(placement, self._nodes)} {is_scattered(placement)} {len(nodes_of(placement))}"
        words = f"{self._seed} {self._named(job)} {place}"
        number = int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little") / 2**64
        return 1.0 + self._error * (2.0 * number - 1.0)

    def _named(self, job: Job) -> str:
        return f"{self._row_now(job.id).model or job.id} {job.workers}"
