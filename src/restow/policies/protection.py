"""The guard of a protected job: how much of its idle time the others on its devices get.

Additive increase, multiplicative decrease (Chiu and Jain, 1989; as TGS, NSDI 2023, does it for launch rates). What its steps are
held against is what they were alone, and not long ago: if they are others than that and it is old, everybody else stands still
for a look. A machine that has become slower, or a protected job that has become another, is so not blamed on those beside it.

Stateless: what was learned is in Job.sharing. Knows neither gates nor why jobs share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from restow.job import Job, Sharing


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectionConfig:
    settle_s: float = 4.0  # after a change, before what is measured counts ...
    settle_steps: int = 15  # ... and so many steps: medians are over the last 15
    decrease: float = 0.7  # of a best-effort job's part when the protected job is hurt
    increase: float = 0.05  # added when it is not
    part_min: float = 0.05  # below it the best-effort job stands still, and is parted where that is possible
    severe: float = 3.0  # a step longer by so many times what is allowed is believed at once, a lesser one when seen twice in a row
    fresh_s: float = 30.0  # what the protected job was alone is believed for so long ...
    fresh_steps: int = 60  # ... or for so many of its steps, whichever takes longer


def alone_s(job: Job) -> float:
    """Seconds per step alone: measured when it was, else what is left without the waits at the gate. 0: not known."""
    learned_s = job.sharing.alone_step_s if job.sharing else 0.0
    return learned_s or job.profile.alone_step_s or max(0.0, job.profile.step_s - job.profile.waited_s)


def slowdown_of(job: Job) -> float:
    """How much longer its steps are than alone, as a part (0.03: 3 %). In time slices the others' turns count."""
    alone = alone_s(job)
    if alone <= 0 or job.profile.step_s <= 0:
        return 0.0
    turns = 1 + len(job.sharing.partners) if job.sharing and job.sharing.mode == "time-slice" else 1
    return turns * job.profile.step_s / alone - 1.0


def since(job: Job, guard: Job, now_s: float) -> dict[str, Any]:
    """The fields that say from when on a change counts."""
    return {"since_s": now_s, "since_steps": (job.steps_done, guard.steps_done)}


def is_settled(job: Job, guard: Job, now_s: float, config: ProtectionConfig) -> bool:
    """Does what is measured of the protected job tell of this job's present part?"""
    if not job.sharing or guard.profile.step_s <= 0:
        return False
    made = guard.steps_done - job.sharing.since_steps[1 if guard is not job else 0]
    return now_s - job.sharing.since_s >= config.settle_s and made >= config.settle_steps


def guarded(guard: Job, others: Sequence[Job], now_s: float, config: ProtectionConfig) -> dict[str, Sharing]:
    """What changes after one more look at the protected job, by job. All of them share already; `others`: best effort."""
    assert guard.sharing
    sharings = {job.id: job.sharing for job in others if job.sharing}
    settled = [job for job in others if is_settled(job, guard, now_s, config)]
    if not settled:
        return {}
    hurt, allowed = slowdown_of(guard), guard.share.slowdown_max
    is_fresh = now_s - guard.sharing.alone_at_s < max(config.fresh_s, config.fresh_steps * guard.profile.step_s)
    stand_still = not any(sharing.part for sharing in sharings.values())
    if stand_still and not is_fresh and len(settled) == len(others):
        found = {guard.id: replace(guard.sharing, alone_step_s=guard.profile.step_s, alone_at_s=now_s)}
        for job in others:  # who could not be parted tries again, too
            before = sharings[job.id]
            part = before.held_part or config.part_min
            found[job.id] = replace(before, part=part, held_part=0.0, **since(job, guard, now_s))
        return found
    is_sure = abs(hurt) > config.severe * allowed or any(sharings[job.id].is_doubted for job in settled)
    begins_look = not stand_still and not is_fresh and is_sure and abs(hurt) > allowed
    found = {}
    for job in others if begins_look else settled:
        before = sharings[job.id]
        if begins_look:
            part, held_part, is_doubted = 0.0, before.part or before.held_part, False
        else:
            part, held_part = _next_part(job, before, hurt, allowed, config), before.held_part
            is_doubted = (hurt > allowed and part == before.part > 0) or (hurt < -allowed and not is_fresh)
        if (part, is_doubted) != (before.part, before.is_doubted):
            found[job.id] = replace(
                before, part=part, held_part=held_part, is_doubted=is_doubted, **since(job, guard, now_s)
            )
    return found


def _next_part(job: Job, sharing: Sharing, hurt: float, allowed: float, config: ProtectionConfig) -> float:
    """A job that made no step meanwhile has hurt nobody, which does not say that it may have more."""
    if hurt > allowed and (sharing.is_doubted or hurt > config.severe * allowed):
        part = sharing.part * config.decrease
        return part if part >= config.part_min else 0.0
    if hurt < allowed / 2 and job.steps_done > sharing.since_steps[0] and sharing.part:
        return min(1.0, sharing.part + config.increase)
    return sharing.part
