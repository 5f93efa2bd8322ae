"""Processes of suspended jobs that stay for when their job comes back: ended when memory is short, or after a while.

Their state is in the vault, so nothing is lost by it: the job then comes back by new processes, which start and rehearse.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from restow.agent.ranks import Ranks
from restow.agent.workers import Worker
from restow.free_memory import free_part

log = logging.getLogger(__name__)

LOOK_S = 2.0
FREE_PART_MIN = 0.15  # of this machine's memory
SLEEP_S_MAX = 3600.0


class Sleepers:
    """Of one node."""

    def __init__(self, ranks: Ranks, now_s: Callable[[], float], free: Callable[[], float] = free_part):
        self._ranks, self._now_s, self._free = ranks, now_s, free
        self._since_s: dict[int, float] = {}  # pid → when it was first seen asleep

    async def watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """End whoever is in the way."""
        asleep = {worker.pid: worker for worker in self._ranks.workers if worker.role == "sleeper" and not worker.abandoned}
        self._since_s = {pid: self._since_s.get(pid, self._now_s()) for pid in asleep}
        for worker, why in self._unwanted(asleep):
            log.info("%s rank %d, suspended, is not kept any longer: %s", worker.job, worker.rank, why)
            self._ranks.end_sleeper(worker)

    def _unwanted(self, asleep: dict[int, Worker]) -> list[tuple[Worker, str]]:
        if asleep and self._free() < FREE_PART_MIN:
            return [(worker, "memory is short") for worker in asleep.values()]
        return [(w, "nobody wanted it") for pid, w in asleep.items() if self._now_s() - self._since_s[pid] > SLEEP_S_MAX]
