"""The agent's side of the pages: proposing a switch step, and reading how far ranks are."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from restow.agent.workers import Worker
from restow.messages import Progressed

_fence = threading.Lock()


@dataclass(frozen=True, slots=True)
class Refusal:
    at: int  # how far the furthest rank is; -1: a rank has no process or no page here


def propose(old: Sequence[Worker], expected: Sequence[int], generation: int, step: int) -> Refusal | None:
    """Write `step` where the old ranks look. None: all of them will see it in time. Else it is taken back where it can be."""
    pages = {worker.rank: worker.shared for worker in old}
    if not old or set(expected) - pages.keys() or not all(pages.values()):
        return Refusal(-1)
    shared = [page for page in pages.values() if page]
    for page in shared:
        page.set("switch_generation", generation)
        page.set("switch_step", step)
    with _fence:  # an atomic operation of the processor: our stores are seen before the loads below (page.py)
        pass
    steps = [int(page.get("step")) for page in shared]
    if max(steps) < step:
        return None
    for page, at in zip(shared, steps, strict=True):
        if at < step:
            page.set("switch_step", -1)
    return Refusal(max(steps))


def progress_of(worker: Worker, node: str, time_s: float) -> Progressed | None:
    """What a rank's page says, if it says something new."""
    page = worker.shared
    if page is None or worker.role != "rank" or not page.get("generation"):
        return None
    steps_total = int(page.get("steps_total"))
    step = int(page.get("step"))  # read first: a step of the new generation is never taken for one of the old
    progress = Progressed(
        time_s=time_s,
        job=worker.job,
        generation=int(page.get("generation")),  # an agent that was away may know it by its old one
        node=node,
        rank=worker.rank,
        step=step,
        steps_total=None if steps_total < 0 else steps_total,
        step_s=float(page.get("step_s")),
        exposed_s=float(page.get("exposed_s")),
        wire_bytes=int(page.get("wire_bytes")),
        memory_bytes=int(page.get("memory_bytes")),
        valley_bytes=int(page.get("valley_bytes")),
        data_s=float(page.get("data_s")),
        waited_s=float(page.get("waited_s")),
        held_s=float(page.get("held_s")),
        values=_values(page.read_text()),
    )
    told = (progress.generation, progress.step, steps_total, progress.step_s, progress.values, progress.memory_bytes)
    if told == worker.progress:
        return None
    worker.progress = told
    return progress


def _values(text: str) -> tuple[tuple[str, float], ...]:
    """What the script reported; what is not a number by a name is left out."""
    try:
        values = json.loads(text or "{}")
    except ValueError:
        return ()
    if not isinstance(values, dict):
        return ()
    return tuple((str(k), float(v)) for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool))
