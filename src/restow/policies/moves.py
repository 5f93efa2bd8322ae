"""One job's way from where it is to another placement, as policies propose it."""

from __future__ import annotations

from restow.cluster import Snapshot
from restow.job import Job
from restow.perf import RESTART_PAUSE_S, move_cost, predict_step_s, steps_left
from restow.placement import Move, Placement


def move_to(job: Job, then: Placement, snapshot: Snapshot, reason: str) -> Move:
    """With what it is predicted to cost and to bring."""
    cost = move_cost(job, job.placement, then, snapshot)
    step_now_s = job.profile.step_s
    step_then_s = predict_step_s(job.profile, job.placement, then, snapshot)
    saves_s = steps_left(job, snapshot.now_s) * (step_now_s - step_then_s) - cost.downtime_s
    predicted = f"{step_now_s:.3g} → {step_then_s:.3g} s per step predicted, " if step_now_s > 0 else ""
    loses = " and what its own checkpoint does not hold" if cost.downtime_s == RESTART_PAUSE_S else ""
    return Move(
        job=job.id, now=job.placement, then=then, step_now_s=step_now_s, step_then_s=step_then_s,
        downtime_s=cost.downtime_s, wire_bytes=cost.wire_bytes, saves_s=saves_s,
        reason=f"{reason}: {predicted}a pause of about {cost.downtime_s:.2g} s{loses}",
    )  # fmt: skip
