"""What must hold after every event. A violation is a bug of ours: the controller stops and the journal brings it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from restow.errors import IllegalTransition
from restow.job import JobState, Phase, sizes_of
from restow.placement import Slot, Uses

if TYPE_CHECKING:
    from restow.core.record import Record
    from restow.core.state import ClusterState


def check(state: ClusterState) -> None:
    """Raises IllegalTransition naming the first thing that is wrong. O(jobs x ranks)."""
    promised, used = Uses(), Uses()
    for record in state.records.values():
        _check_job(record)
        for slot in record.job.intended:
            _add(promised, slot, record.job.id, "promised")
        for process in record.processes.values():
            slot = process.slot
            _add(used, slot, record.job.id, "held")
            if not state.nodes[slot.node].is_alive and record.job.away != slot.node and not record.unseen.get(slot.node):
                raise IllegalTransition(f"{record.job.id} holds {slot}, a node that is lost")


def _add(uses: Uses, slot: Slot, job: str, word: str) -> None:
    uses.add(slot, job)
    if not uses.fits(slot):
        raise IllegalTransition(f"slot {slot} is {word} twice: by {' and '.join(uses.jobs(slot))}")


def _check_job(record: Record) -> None:
    job, switch = record.job, record.job.switch
    wrong = None
    sizes = (job.workers, *sizes_of(job.spec))
    if (job.placement and len(job.placement) != job.workers) or (job.intended and len(job.intended) not in sizes):
        wrong = "holds or is promised half a gang"
    elif bool(job.placement) != (job.state in (JobState.STARTING, JobState.RUNNING, JobState.STOPPING)):
        wrong = f"is {job.state.value} with {len(job.placement)} slots"
    elif job.generation > job.generations or (switch and not job.generation < switch.generation <= job.generations):
        wrong = f"counts its generations wrong ({job.generation} of {job.generations})"
    elif switch and job.state is not JobState.RUNNING:
        wrong = f"has a switch while it is {job.state.value}"
    elif switch and switch.phase in (Phase.COMMIT, Phase.RESCUE) and switch.step is None:
        wrong = "is committed to no step"
    elif job.alive & job.exited or not (job.alive | job.exited) <= set(range(job.workers)):
        wrong = f"has ranks both alive and gone, or ranks that are none: {sorted(job.alive)} {sorted(job.exited)}"
    elif job.state is JobState.RUNNING and len(job.alive | job.exited) != job.workers:
        wrong = "runs without all its ranks"
    elif job.state is JobState.STOPPING and record.ending is None:
        wrong = f"is {job.state.value} and to end as {record.ending}"
    if wrong:
        raise IllegalTransition(f"job {job.id}, generation {job.generation}, {wrong}")
