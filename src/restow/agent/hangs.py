"""Ranks here that have made no step for much longer than usual: where they are is asked and told. Decides nothing, see
core/hangs.py."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from restow.agent.events import EventLog
from restow.agent.workers import Worker, Workers, now_s
from restow.messages import RankHung

LOOK_S = 1.0
ANSWER_S = 5.0  # a thread of the SDK answers, unless the process is stopped or one call holds its interpreter
USUAL_TIMES, LEAST_S = 20.0, 60.0  # where the spec says nothing: so many times the usual step, and at least so long
STEPS_MIN = 3  # the first steps take what they take


class Hangs:
    """Of one node."""

    def __init__(self, node: str, events: EventLog, workers: Workers):
        self._node, self._events, self._workers = node, events, workers
        self._asked: dict[int, tuple[int, float]] = {}  # pid → step that it stands at, and when it was asked
        self._told: dict[int, int] = {}  # pid → step at which it was told of

    async def watch(self) -> None:
        while True:
            for worker in self._workers:
                self._look(worker)
            alive = set(self._workers.by_pid)
            self._asked = {pid: asked for pid, asked in self._asked.items() if pid in alive}
            self._told = {pid: step for pid, step in self._told.items() if pid in alive}
            await asyncio.sleep(LOOK_S)

    def _look(self, worker: Worker) -> None:
        silent_s = silence_of(worker)
        step = worker.step()
        if silent_s == 0.0 or self._told.get(worker.pid) == step:
            return
        asked = self._asked.get(worker.pid)
        if asked is None or asked[0] != step:
            self._asked[worker.pid] = (step, time.monotonic())
            if worker.channel:
                worker.channel.send({"type": "where"})
        elif time.monotonic() - asked[1] > ANSWER_S:
            self._tell(worker, step, {"at": "", "stack": [], "waits": False, "given": -1})

    def said(self, worker: Worker, message: dict[str, Any]) -> None:
        """Where it is. What is malformed counts as no answer."""
        step, asked = worker.step(), self._asked.get(worker.pid)
        if asked and asked[0] == step and isinstance(message.get("stack"), list):
            self._tell(worker, step, message)

    def _tell(self, worker: Worker, step: int, where: dict[str, Any]) -> None:
        self._told[worker.pid] = step
        self._asked.pop(worker.pid, None)
        self._events.put(RankHung(
            time_s=now_s(), job=worker.job, generation=worker.generation, node=self._node, rank=worker.rank, step=step,
            silent_s=silence_of(worker), at=str(where.get("at", ""))[:200], waits=bool(where.get("waits")),
            given=int(where.get("given", -1)), stack=tuple(str(line)[:200] for line in where["stack"][:12]),
        ))  # fmt: skip


def silence_of(worker: Worker) -> float:
    """Seconds since its last step, if that is much longer than usual, else 0."""
    page = worker.shared
    if page is None or worker.role != "rank" or worker.hang_s < 0 or worker.step() < STEPS_MIN or not page.get("last_step_ns"):
        return 0.0
    silent_s = (time.monotonic_ns() - int(page.get("last_step_ns"))) / 1e9
    limit_s = worker.hang_s or max(LEAST_S, USUAL_TIMES * float(page.get("step_s")))
    return silent_s if silent_s > limit_s else 0.0
