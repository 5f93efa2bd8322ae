"""Agents whose gangs make checkpoints when the core wants them, in a folder that every machine sees.

The core asks by the clock, for a step ahead of what it was told; so a gang says how far it is each time that one is due.
"""

from __future__ import annotations

import math
from typing import Any

from restow.messages import CheckpointWritten, Snapshot, SnapshotRefused
from restow.sim.agents import Agents


class Saving(Agents):
    """`checkpoint_s`: from one checkpoint to the next; 0: none is made."""

    def __init__(self, *arguments: Any, checkpoint_s: float = 0.0, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._checkpoint_s = checkpoint_s
        self._asked: dict[str, tuple[str, Snapshot]] = {}  # job → the checkpoint that it is to make, and the node that does
        self._words: dict[str, int] = {}  # job → number of its next word about its progress: earlier ones are not said
        self._obey |= {Snapshot: self._snapshot}

    def _train(self, job: str, generation: int) -> None:
        super()._train(job, generation)
        self._speak_later(job)
        if job in self._asked:
            self._write_when_there(job)

    def _speak_later(self, job: str) -> None:
        if not self._checkpoint_s:
            return
        number = self._words[job] = self._words.get(job, 0) + 1
        at_s = self._clock.now_s + self._checkpoint_s
        while at_s - self._clock.now_s < self._checkpoint_s:
            at_s = math.nextafter(at_s, math.inf)  # the core subtracts, and would find it too early
        self._clock.at(at_s, lambda: self._speak(job, number))

    def _speak(self, job: str, number: int) -> None:
        if number == self._words[job] and self.gangs[job].placement:
            self._say_how_far(job)
            self._speak_later(job)

    def _snapshot(self, node: str, command: Snapshot) -> None:
        """The node of rank 0 writes it; that takes no time."""
        gang = self.gangs[command.job]
        if gang.ranks.get(command.generation, {}).get(0) != node:
            return
        at = int(gang.steps_at(self._clock.now_s))
        if at >= command.step:
            self._say(SnapshotRefused, command.job, command.generation, node, rank=0, step=command.step, at=at)
        else:
            self._asked[command.job] = node, command
            self._write_when_there(command.job)

    def _write_when_there(self, job: str) -> None:
        """One that stands still, or is another gang by then, does not come to that step."""
        gang = self.gangs[job]
        if job not in self._asked or not gang.placement or not math.isfinite(gang.step_s):
            return
        node, command = self._asked[job]
        if gang.generation != command.generation:
            del self._asked[job]
            return
        now_s = self._clock.now_s
        there_s = now_s + (command.step - gang.steps_at(now_s)) * gang.step_s
        if there_s > now_s:
            self._clock.at(there_s, lambda: self._write_when_there(job))
            return
        del self._asked[job]
        self._say(
            CheckpointWritten, job, command.generation, node, rank=0, step=command.step, path=f"{command.folder}/{command.step}",
            bytes=0, blocked_s=0.0, write_s=0.0,
        )  # fmt: skip
        self._speak_later(job)
