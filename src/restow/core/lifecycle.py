"""The two tables: how a job's state changes, and how a switch goes from phase to phase.

The tables are the documentation; what is not in them cannot happen. What a state or a phase means stands in job.py, who
notices each cause in gang.py and switching.py.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from restow.errors import IllegalTransition
from restow.job import Job, JobState, Phase, Switch


class Cause(Enum):
    """What changes a job's state."""

    PLACED = "placed"  # adopted slots are free: a generation is started on them
    GANG_STARTED = "gang started"  # every rank was reported alive
    GANG_FINISHED = "gang finished"  # every rank exited with 0
    STOP = "stop"  # an error, a cancel, a preemption or a restart elsewhere: the rest is told to leave
    GONE_FAILED = "gone after a failure"
    GONE_CANCELLED = "gone after a cancel"
    GONE_STOPPED = "gone to be started again"
    SUSPENDED = "suspended"  # its state is in the vault, its ranks leave
    CANCELLED_UNPLACED = "cancelled before it held a slot"


PENDING, STARTING, RUNNING, STOPPING, DONE, FAILED, CANCELLED = JobState

TRANSITIONS = {
    (PENDING, Cause.PLACED): STARTING,
    (PENDING, Cause.CANCELLED_UNPLACED): CANCELLED,
    (STARTING, Cause.GANG_STARTED): RUNNING,
    (STARTING, Cause.GANG_FINISHED): DONE,  # a short script may end before its last sibling is reported
    (STARTING, Cause.STOP): STOPPING,
    (RUNNING, Cause.GANG_FINISHED): DONE,
    (RUNNING, Cause.STOP): STOPPING,
    (RUNNING, Cause.SUSPENDED): PENDING,
    (STOPPING, Cause.GONE_FAILED): FAILED,
    (STOPPING, Cause.GONE_CANCELLED): CANCELLED,
    (STOPPING, Cause.GONE_STOPPED): PENDING,  # a migration of a job that cannot switch is this row
}

GONE = {FAILED: Cause.GONE_FAILED, CANCELLED: Cause.GONE_CANCELLED, PENDING: Cause.GONE_STOPPED}


def step(job: Job, cause: Cause) -> Job:
    """`job` after `cause`. Raises IllegalTransition on our own mistake."""
    after = TRANSITIONS.get((job.state, cause))
    if after is None:
        raise IllegalTransition(f"job {job.id}, generation {job.generation}, is {job.state.value}: {cause.value}")
    return replace(job, state=after)


class Turn(Enum):
    """What moves a switch on."""

    ALL_PARKED = "all parked"  # TwinParked from every moved rank, each signature as the old rank's
    ALL_CONNECTED = "all connected"  # RankConnected from staying ranks, leavers and twins
    ALL_CONNECTED_SHADOW = "all connected, state follows in the background"
    ALL_SHADOWING = "all shadowing"  # ShadowReady from every twin
    ALL_ACCEPTED = "all accepted"  # StepAccepted from every node with old ranks: the decision is written
    FAILED = "failed"  # a twin exited, SwitchFailed, a time-out, a node lost, a cancel, the job's own end
    ROLLED_BACK = "rolled back"  # the verdict of the ranks: the old generation goes on from the switch step
    ALL_SWITCHED = "all switched"  # the verdict of the ranks: the new generation trains
    LEAVER_LOST = "leaver lost"  # a moved rank died although nothing was decided: the ranks decide without us
    TWINS_GONE = "twins gone"


STANDBY, CONNECT, SHADOW, PROPOSE, COMMIT, RESCUE, ABORT = Phase

TURNS: dict[tuple[Phase, Turn], Phase | None] = {  # None: the switch is over
    (STANDBY, Turn.ALL_PARKED): CONNECT,
    (STANDBY, Turn.FAILED): ABORT,
    (CONNECT, Turn.ALL_CONNECTED): PROPOSE,
    (CONNECT, Turn.ALL_CONNECTED_SHADOW): SHADOW,
    (CONNECT, Turn.FAILED): ABORT,
    (SHADOW, Turn.ALL_SHADOWING): PROPOSE,
    (SHADOW, Turn.FAILED): ABORT,
    (PROPOSE, Turn.ALL_ACCEPTED): COMMIT,
    (PROPOSE, Turn.FAILED): ABORT,
    (STANDBY, Turn.LEAVER_LOST): RESCUE,
    (CONNECT, Turn.LEAVER_LOST): RESCUE,
    (SHADOW, Turn.LEAVER_LOST): RESCUE,
    (PROPOSE, Turn.LEAVER_LOST): RESCUE,
    (RESCUE, Turn.ALL_SWITCHED): None,
    (RESCUE, Turn.ROLLED_BACK): ABORT,
    (COMMIT, Turn.ALL_SWITCHED): None,  # also when all are in the vault
    (COMMIT, Turn.ROLLED_BACK): ABORT,
    (ABORT, Turn.TWINS_GONE): None,
}


def turn(switch: Switch, cause: Turn, time_s: float) -> Switch | None:
    """`switch` after `cause`, None when it is over. Raises IllegalTransition on our own mistake."""
    if (switch.phase, cause) not in TURNS:
        raise IllegalTransition(
            f"the switch to generation {switch.generation} is in {switch.phase.value}: {cause.value}"
        )
    after = TURNS[switch.phase, cause]
    return None if after is None else replace(switch, phase=after, phase_s=time_s)
