"""Checkpoints of a job: when one is made, at which step, and how a job goes on from one when nothing else is left of it.

A step is proposed to all ranks ahead of time, as for a switch; a rank that has passed it refuses, and a later one is proposed. One
checkpoint at a time, and only of a job whose gang is whole and does not move; a switch that begins meanwhile makes it begin anew.
"""

from __future__ import annotations

import math
from dataclasses import replace

from restow.core import gang
from restow.core.config import CoreConfig
from restow.core.record import Checkpointing, Record
from restow.job import Job, JobState, Kept, Saved
from restow.messages import (
    CheckpointAsked,
    CheckpointFailed,
    CheckpointProposed,
    CheckpointWritten,
    Event,
    SnapshotRefused,
)
from restow.placement import Slot

OVER_FIRST = "the job is over first"
KEPT_MAX = 16  # checkpoints of a job that are remembered


def ask(record: Record, time_s: float) -> None:
    """Make one as soon as the job can; nothing if one is being made."""
    if record.checkpointing is None and not record.job.state.is_final:
        record.checkpointing = Checkpointing(asked_s=time_s)
        record.checkpoint_tried_step = record.known_step


def proposed(record: Record, event: CheckpointProposed) -> None:
    doing = record.checkpointing
    if doing and event.generation == record.job.generation and record.job.state is JobState.RUNNING:
        record.checkpointing = replace(doing, step=event.step, generation=event.generation)


def refused(record: Record, event: SnapshotRefused) -> None:
    doing = record.checkpointing
    if doing and doing.step == event.step:
        record.known_step = max(record.known_step, event.at)
        record.checkpointing = replace(doing, step=None, tries=doing.tries + 1)


def written(record: Record, event: CheckpointWritten) -> None:
    doing = record.checkpointing
    if doing is None or doing.step != event.step:
        return
    signatures = tuple(record.signatures.get(rank, "") for rank in range(record.job.workers))
    is_shared = record.job.spec.checkpoint.shared or "://" in event.path
    saved = Saved(
        step=event.step, path=event.path, node=event.node, signatures=signatures, time_s=event.time_s, is_shared=is_shared
    )  # fmt: skip
    record.checkpointing = None
    others = tuple(other for other in record.job.saved if other.step != event.step)
    count = min(KEPT_MAX, record.job.spec.checkpoint.keep or KEPT_MAX)
    record.change(saved=(*others, saved)[-count:], checkpoint_tried_s=event.time_s, checkpoint_why="")


def failed(record: Record, event: CheckpointFailed) -> None:
    doing = record.checkpointing
    if doing and event.step in (doing.step, -1):
        record.checkpointing = None
        record.checkpoint_tried_step = max(record.checkpoint_tried_step, _upcoming(record))
        why = event.reason if event.reason != OVER_FIRST else record.job.checkpoint_why
        record.change(checkpoint_tried_s=event.time_s, checkpoint_why=why)


def due(record: Record, now_s: float, config: CoreConfig) -> list[Event]:
    """What is due by the clock: the next periodic one, and the choice of its step."""
    job, doing, spec = record.job, record.checkpointing, record.job.spec.checkpoint
    common = {"time_s": now_s, "job": job.id, "generation": job.generation, "node": ""}
    if job.state is not JobState.RUNNING or not job.movable or job.switch or job.exited:
        return []
    upcoming = _upcoming(record)
    if doing is None:
        last = job.saved[-1] if job.saved else None
        since_s = max(job.checkpoint_tried_s, last.time_s if last else 0.0, job.started_s or 0.0)
        is_late = 0 < spec.every_s <= now_s - since_s
        is_far = 0 < upcoming <= record.known_step + 2 * _ahead(record, 0, config)
        return [CheckpointAsked(time_s=now_s, job=job.id)] if is_late or is_far else []
    if doing.step is not None and doing.generation == job.generation:
        why = f"it was not written within {config.checkpoint_s:g} s; does its folder still answer?"
        is_stuck = now_s - doing.asked_s > config.checkpoint_s
        return [CheckpointFailed(**common, rank=-1, step=doing.step, reason=why)] if is_stuck else []  # type: ignore[arg-type]
    if doing.tries >= config.proposals_max:
        return [CheckpointFailed(**common, rank=-1, step=-1, reason=f"{doing.tries} steps were refused")]  # type: ignore[arg-type]
    ahead = _ahead(record, doing.tries, config)
    step = record.known_step + ahead
    if step <= upcoming <= step + ahead:
        step = upcoming  # what the spec asks for is near
    if job.steps_total is not None and step >= job.steps_total:
        return [CheckpointFailed(**common, rank=-1, step=-1, reason=OVER_FIRST)]  # type: ignore[arg-type]
    return [CheckpointProposed(**common, step=step)]  # type: ignore[arg-type]


def _upcoming(record: Record) -> int:
    """The next step after which its spec wants one: a multiple of `every_steps`; 0: it does not say."""
    every, saved = record.job.spec.checkpoint.every_steps, record.job.saved
    behind = max(saved[-1].step if saved else 0, record.checkpoint_tried_step)
    return (behind // every + 1) * every if every else 0


def _ahead(record: Record, tries: int, config: CoreConfig) -> int:
    """A proposal reaches every rank before it has made so many steps, counted from the furthest that is known."""
    step_s = record.job.profile.step_s
    ahead = math.ceil((config.propose_ahead_s * 2**tries + config.progress_age_s_max) / step_s) if step_s > 0 else 0
    return max(config.propose_ahead_steps, ahead)


# ---------------------------------------------------------------- going on from one


def fall_back(record: Record, why: str, time_s: float) -> bool:
    """Nothing else is left of a job that was lost: it goes on from its last checkpoint, if it has one and its spec lets it.

    It has to be stopped then, or is.
    """
    job = record.job
    if not job.saved or not job.spec.recover or job.cancel_asked:
        return False
    saved = job.saved[-1]
    if job.state is not JobState.STOPPING:
        gang.end(record, JobState.PENDING, why, time_s)
    record.ending, record.rescue = JobState.PENDING, None
    record.change(
        kept=kept_of(saved, job.generations + 1), generations=job.generations + 1, steps_done=saved.step,
        movable=False, reason=f"{why}; goes on from its checkpoint of step {saved.step}",
    )  # fmt: skip
    return True


def kept_of(saved: Saved, generation: int) -> Kept:
    """A checkpoint as a kept state, of as many workers as there were."""
    return Kept(
        generation=generation, step=saved.step, placement=(Slot(saved.node, 0),) * len(saved.signatures), replicas=(saved.node,),
        signatures=saved.signatures, checkpoint=saved.path, checkpoint_job=saved.job, is_shared=saved.is_shared,
    )  # fmt: skip


def is_elsewhere(job: Job) -> bool:
    """Can a job that is away go on from its last checkpoint on other nodes?"""
    return bool(job.saved) and job.spec.recover and (job.saved[-1].is_shared or job.saved[-1].node != job.away)


def older(record: Record) -> Saved | None:
    """The checkpoint before the one that the job was to go on from; None: there is no other, or that is no checkpoint."""
    job = record.job
    kept = job.kept
    return next((saved for saved in reversed(job.saved) if kept and kept.checkpoint and saved.step < kept.step), None)


def go_back(record: Record, saved: Saved) -> None:
    """It goes on from this one instead, at once."""
    kept = record.job.kept
    assert kept is not None
    record.change(kept=kept_of(saved, kept.generation), steps_done=saved.step, failed_moves=0, not_before_s=0.0)
