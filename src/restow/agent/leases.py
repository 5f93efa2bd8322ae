"""What the agent does when its node's lease is over: ranks whose gang lies on other machines too are halted.

The controller counts them as lost from now on, and the others go on without them. A gang that lies here as a whole trains on:
nobody else has its state, so the controller waits for us.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from restow.agent.folders import Folders
from restow.agent.ranks import Ranks
from restow.lease import LeaseFile

log = logging.getLogger(__name__)

LOOK_S = 0.1


def pulse_of(folders: Folders) -> dict[str, Any] | None:
    """Where this node's pulse is to be felt: {"host", "port", "secret", "pid"}; None without one."""
    try:
        wire: dict[str, Any] = json.loads(folders.pulse.read_text())
    except (OSError, ValueError):
        return None
    return wire


class Leases:
    """`is_switching(job)`: a gang in the middle of a switch is not halted: what becomes of it, its ranks agree upon themselves."""

    def __init__(self, folders: Folders, ranks: Ranks, is_switching: Callable[[str], bool]):
        self._ranks, self._is_switching = ranks, is_switching
        self._lease = LeaseFile(folders.lease)
        self._was_over = False

    async def watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Halt whom it concerns, once per lease that runs out."""
        is_over = self._lease.is_over
        if is_over and not self._was_over:
            self._halt()
        self._was_over = is_over

    def _halt(self) -> None:
        here = [worker for worker in self._ranks.workers if worker.role == "rank" and worker.channel]
        count = Counter((worker.job, worker.generation) for worker in here)
        for worker in here:
            if count[worker.job, worker.generation] < worker.world and not self._is_switching(worker.job):
                log.warning("the lease of this node is over: rank %d of %s is halted", worker.rank, worker.job)
                assert worker.channel
                worker.channel.send({"type": "halt", "generation": worker.generation})
