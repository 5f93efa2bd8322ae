"""Nodes that are lost, or only out of sight: what a job had there, and what it waits for. What the loss of a process does to it is
gang.py's."""

from __future__ import annotations

from restow.core import gang, recovery, switching
from restow.core.config import CoreConfig
from restow.core.record import Record
from restow.job import JobState, Phase
from restow.messages import RankExited
from restow.placement import nodes_of


def lose(record: Record, node: str, reason: str, time_s: float, config: CoreConfig) -> None:
    """Everything that the job had on `node` counts as gone: ranks there stop themselves when their lease is over.

    But a gang that trains there as a whole is waited for: nobody else has its state, and the node may only be out of sight. And
    after the commit of a switch to it the ranks agree among themselves on what comes out: nothing is lost before they have.
    """
    job = record.job
    if record.is_uncommitted and job.switch and node in nodes_of(job.switch.placement):
        switching.fail(record, f"node {node} was lost ({reason})", time_s, config)
    job = record.job
    if record.phase is Phase.COMMIT and job.switch and node in nodes_of(job.switch.placement):
        record.unseen[node] = reason
        switching.decide(record, time_s, config)
        return
    is_away = job.state is JobState.RUNNING and nodes_of(job.placement) == (node,) and not record.is_committed
    if is_away:
        record.change(
            away=node,
            intended=job.placement,
            reason=f"node {node} is lost ({reason}); the whole job is there and is waited for",
        )
    _lose_processes(record, node, reason, time_s, config, spared=job.generation if is_away else None)
    if not is_away:
        gang.plan_without(record, node, reason, time_s)


def stop_waiting(record: Record, time_s: float, config: CoreConfig) -> None:
    """The job does not wait for its lost node any more: what it has there counts as gone, and stops when the node is back."""
    node = record.job.away
    record.change(away="")
    _lose_processes(record, node, "it is not waited for any more", time_s, config)
    if record.rescue:
        recovery.give_up(record, "no rank is left", time_s)
    record.change(intended=())


def look_again(record: Record, time_s: float, config: CoreConfig) -> None:
    """What came out of a switch is known: what is out of sight counts as it does without one."""
    if record.unseen and record.phase is not Phase.COMMIT:
        unseen, record.unseen = record.unseen, {}
        for node, reason in unseen.items():
            if reason:
                lose(record, node, reason, time_s, config)


def give_up_unseen(record: Record, time_s: float, config: CoreConfig) -> None:
    """The ranks of a switch have not agreed in time: those that are, or were, out of sight are gone."""
    unseen, record.unseen = record.unseen, {}
    for node, reason in unseen.items():
        _lose_processes(record, node, reason or "nothing was heard of its ranks since it is back", time_s, config)
        if reason:
            gang.plan_without(record, node, reason, time_s)


def is_back(record: Record, node: str) -> None:
    """What became of its ranks meanwhile, the node's agent says."""
    if node in record.unseen:
        record.unseen[node] = ""
    recovery.node_back(record, node)
    if record.job.away == node:
        record.change(away="", reason=f"node {node} is back")


def _lose_processes(
    record: Record, node: str, reason: str, time_s: float, config: CoreConfig, *, spared: int | None = None
) -> None:
    job = record.job
    is_starting = job.state is JobState.STARTING
    for (generation, rank), process in sorted(record.processes.items()):
        if process.slot.node != node or generation == spared:
            continue
        if is_starting and generation == job.generation and not job.kept:
            gang.end(record, JobState.PENDING, f"node {node} was lost ({reason}) before the job ran", time_s)
        is_gang = generation == job.generation
        gang.rank_exited(record, RankExited(
            time_s=time_s, job=job.id, generation=generation, node=node, rank=rank, role="rank" if is_gang else "twin",
            code=-9, reason=f"node {node} was lost ({reason})"), config)  # fmt: skip
