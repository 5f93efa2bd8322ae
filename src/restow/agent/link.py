"""The gate of this node's link, as the agent keeps it: armed while several jobs whose rank 0 is here send in turns.

Nobody is fenced here: who waits for the link is patient for some seconds, and then sends all the same.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from restow.errors import RestowError
from restow.gate import FREE, INTERLEAVE, LINK, Keeper
from restow.job import Sharing

log = logging.getLogger(__name__)

WATCH_S = 0.5  # a rank takes its seat some time after its job was said to share


class LinkGate:
    """Use: `open` once, `share` and `forget` as the controller says, `watch` for as long as the agent lives."""

    def __init__(self, folder: Path, node: str):
        """`folder`: of the gates of this node's devices."""
        self._folder, self._node = folder / LINK, node
        self._keeper: Keeper | None = None
        self._levels: dict[str, int] = {}  # job → its class, of those that pass

    def open(self) -> None:
        """Make or find the page. Raises SetupError when shared memory is full."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._keeper = Keeper(self._folder, 0)

    def close(self) -> None:
        if self._keeper:
            self._keeper.close()

    def share(self, job: str, sharing: Sharing) -> None:
        if sharing.link_node == self._node:
            self._levels[job] = sharing.level
            self._set()
        else:
            self.forget(job)

    def forget(self, job: str) -> None:
        if self._levels.pop(job, None) is not None:
            self._set()

    async def watch(self) -> None:
        while True:
            if self._levels:
                self._set()
            await asyncio.sleep(WATCH_S)

    def _set(self) -> None:
        assert self._keeper
        try:
            view = self._keeper.look()
            seated = {seat.job for seat in view.seats if seat.alive} & self._levels.keys()
            mode = INTERLEAVE if len(seated) > 1 else FREE
            for seat in view.seats:
                if seat.level != self._levels.get(seat.job, seat.level):
                    self._keeper.set_level(seat.job, self._levels[seat.job])
            if view.mode != mode:
                self._keeper.set_mode(mode)
        except RestowError as error:  # tried again at the next watch
            log.warning("gate of the link: %s", error)
