"""A job that came to devices of others, and so was never alone, is seen alone once: the others stand still for some of its steps.

What it would be alone cannot be computed: a step less its waits at the gate is longer than a step alone wherever the others take
cores, caches and the link from it, too. So without a look whoever came later seems to lose nothing by sharing.

Stateless: what was seen is in Job.sharing. Where a job is protected its guard says who stands still (protection.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from restow.job import Job, JobState, Sharing
from restow.policies.protection import alone_s, since


@dataclass(frozen=True, slots=True, kw_only=True)
class NewcomerConfig:
    settle_steps: int = 18  # of it, before its step counts: medians are over the last 15
    look_s_max: float = 20.0  # the longest that the others stand still


def newcomer_of(jobs: Sequence[Job]) -> Job | None:
    """The first of them that nobody has seen alone."""
    return next((job for job in jobs if not job.profile.alone_step_s and not (job.sharing and job.sharing.alone_step_s)), None)


def seen_alone(newcomer: Job, others: Sequence[Job], now_s: float, config: NewcomerConfig) -> dict[str, Sharing]:
    """What changes, by job: a look begins, or has ended. All of them share already, in turns inside a step."""
    mine, theirs = newcomer.sharing, {job.id: job.sharing for job in others if job.sharing}
    if mine is None or newcomer.state is not JobState.RUNNING or newcomer.profile.step_s <= 0:
        return {}
    if not all(sharing.held_part for sharing in theirs.values()):
        held = {id: replace(sharing, part=0.0, held_part=1.0) for id, sharing in theirs.items()}
        return {newcomer.id: replace(mine, **since(newcomer, newcomer, now_s)), **held}
    is_seen = newcomer.steps_done - mine.since_steps[0] >= config.settle_steps
    if not is_seen and now_s - mine.since_s < config.look_s_max:
        return {}
    step_s = 0.0 if is_seen else alone_s(newcomer)  # 0 where it seems only to wait: its step counts then, or looks would never end
    back = {job.id: replace(theirs[job.id], part=1.0, held_part=0.0, **since(job, job, now_s)) for job in others}
    return {newcomer.id: replace(mine, alone_step_s=step_s or newcomer.profile.step_s, **since(newcomer, newcomer, now_s)), **back}
