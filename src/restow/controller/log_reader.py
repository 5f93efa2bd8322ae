"""What one rank of a job has printed, wherever it was when it did."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restow.controller.loop import Controller

CHUNK_BYTES = 256 * 1024


class LogReader:
    """Reads one rank's log across its generations, wherever they ran."""

    def __init__(self, controller: Controller, job: str, rank: int):
        self._controller = controller
        self._job = job
        self._rank = rank
        self._offsets: dict[tuple[str, int], int] = {}  # (node, generation) → read so far

    async def read(self) -> AsyncIterator[dict[str, Any]]:
        """What is new, older generations first, since a rank that moved goes on printing elsewhere."""
        for generation, node, _ in await self._places():
            async for piece in self._read_one(node, generation):
                yield piece

    async def go_to_tail(self, lines: int) -> None:
        """Leave out all but the last so many lines."""
        for generation, node, nbytes in reversed(await self._places()):
            self._offsets[node, generation] = nbytes
            if lines > 0:
                of = {"job": self._job, "rank": self._rank, "generation": generation}
                answer = await self._controller.agents.ask(node, "logs", **of, tail=lines)
                self._offsets[node, generation] = answer["offset"]
                lines -= answer["lines"]

    async def _places(self) -> list[tuple[int, str, int]]:
        """Generation, node and bytes of each log."""
        places = []
        for node in self._controller.agents.joined:
            listing = await self._controller.agents.ask(node, "logs", job=self._job, rank=self._rank)
            places += [(entry["generation"], node, entry["bytes"]) for entry in listing["logs"]]
        return sorted(places)

    async def _read_one(self, node: str, generation: int) -> AsyncIterator[dict[str, Any]]:
        while True:
            offset = self._offsets.get((node, generation), 0)
            answer = await self._controller.agents.ask(
                node,
                "logs",
                job=self._job,
                rank=self._rank,
                generation=generation,
                offset=offset,
                max_bytes=CHUNK_BYTES,
            )
            if not answer["text"]:
                return
            self._offsets[node, generation] = answer["offset"]
            yield {"rank": self._rank, "generation": generation, "node": node, "text": answer["text"]}
