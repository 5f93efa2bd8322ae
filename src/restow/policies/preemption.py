"""Jobs that step aside: a waiting job of a higher priority gets the devices of running ones of a lower, which are suspended.

The last resort, when neither free devices nor sharing nor fewer devices for somebody else let it in. Nobody loses progress: who
steps aside is pending with its state kept, and goes on as soon as there are devices. Jobs that cannot be suspended stay.
"""

from __future__ import annotations

from restow.cluster import Snapshot
from restow.job import Job, JobState
from restow.placement import Schedule, Slot, devices_of
from restow.policies.board import Board, why_not_back
from restow.policies.layout import start


def preempt(snapshot: Snapshot, schedule: Schedule) -> None:
    """One waiting job per decision, the most important first."""
    board = Board.of(snapshot)
    for id, placement in schedule.placements.items():
        board.take(id, placement)
    for waiting in sorted(snapshot.jobs, key=lambda job: (-job.spec.priority, job.submitted_s, job.id)):
        if not waiting.waits or schedule.placement(waiting.id) or waiting.pinned or why_not_back(waiting, snapshot):
            continue
        victims = _victims(waiting, board.usable(waiting), snapshot, schedule)
        if not victims:
            continue
        devices = [slot for victim in victims for slot in _whole(victim)]
        room = start(waiting, [*board.usable(waiting), *devices], snapshot)
        assert room is not None
        names = " and ".join(victim.id for victim in victims)
        for victim in victims:
            schedule.placements.pop(victim.id)
            higher = f"{waiting.id}, which has a higher priority ({waiting.spec.priority} to {victim.spec.priority})"
            schedule.explain(victim.id, f"suspended to let {higher} in; goes on when there are devices")
        schedule.put(waiting.id, room, f"starts on {' '.join(map(str, devices_of(room)))}, once {names} has made room")
        return


def _victims(waiting: Job, free: list[Slot], snapshot: Snapshot, schedule: Schedule) -> list[Job]:
    """The least important and youngest jobs whose devices are enough, none of them in vain; none where they are not."""
    lower = [
        job for job in snapshot.jobs
        if _may_step_aside(job, schedule) and job.spec.priority < waiting.spec.priority and snapshot.now_s >= job.not_before_s
    ]  # fmt: skip
    chosen: list[Job] = []
    for job in sorted(lower, key=lambda job: (job.spec.priority, -job.submitted_s, job.id)):
        chosen.append(job)
        if _is_enough(waiting, free, chosen, snapshot):
            break
    else:
        return []
    for job in list(chosen):
        rest = [other for other in chosen if other is not job]
        if rest and _is_enough(waiting, free, rest, snapshot):
            chosen = rest
    return chosen


def _is_enough(waiting: Job, free: list[Slot], victims: list[Job], snapshot: Snapshot) -> bool:
    return start(waiting, [*free, *(slot for victim in victims for slot in _whole(victim))], snapshot) is not None


def _whole(victim: Job) -> list[Slot]:
    return [slot._replace(share=1.0) for slot in devices_of(victim.placement)]


def _may_step_aside(job: Job, schedule: Schedule) -> bool:
    stays = schedule.placement(job.id) == job.intended and job.id not in schedule.moves
    return stays and may_be_suspended(job) and not job.sharing


def may_be_suspended(job: Job) -> bool:
    """Can it give its devices back now and keep its state?"""
    is_settled = job.state is JobState.RUNNING and job.intended == job.placement
    return is_settled and job.movable and not (job.switch or job.exited)
