"""What to make of a node's answer to "what runs there?", after a controller or an agent was away. Pure.

An agent keeps its events until they are journalled, but an agent that is killed takes its unread ones with it. So what
runs is compared with what is believed, and the difference becomes ordinary events and commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from restow.job import Job, JobState
from restow.messages import Command, Event, RankExited, RankStarted, Stop

SETTLED_S = 60.0  # after the last move
UNKNOWN_CODE = -9  # nobody saw the exit status; the reason says so


def compare(
    jobs: Mapping[str, Job], status: Mapping[str, Any], now_s: float, *, was_lost: bool = False
) -> tuple[list[Event], list[Command]]:  # fmt: skip
    """Events that bring the belief to what `status` says, and commands that end what should not run. `was_lost`: the node has just
    come back, and whatever ran there and is not believed to was given up."""
    node = status["node"]
    running = {(p["job"], p["generation"], p["rank"]): p for p in status["processes"] if p["role"] == "rank"}
    present = {(p["job"], p["rank"]) for p in status["processes"] if _may_be_a_rank(p, jobs.get(p["job"]))}
    events: list[Event] = []
    for job in jobs.values():
        for rank, slot in enumerate(job.placement):
            if slot.node != node or job.state.is_final or job.switch:
                continue  # in a switch a rank may be leaving or have left already; its outcome is reported by the ranks
            process = running.get((job.id, job.generation, rank))
            if process and rank not in job.alive | job.exited:
                events.append(
                    RankStarted(
                        time_s=now_s, job=job.id, generation=job.generation, node=node, rank=rank, pid=process["pid"]
                    )
                )
            if (job.id, rank) not in present and rank in job.alive:
                reason = f"ended while the agent of {node} was away; its exit code is unknown"
                events.append(
                    RankExited(
                        time_s=now_s, job=job.id, generation=job.generation, node=node, rank=rank, role="rank",
                        code=UNKNOWN_CODE, reason=reason,
                    )
                )  # fmt: skip
    return events, list(_endings(jobs, status["processes"], node, now_s, was_lost))


def _may_be_a_rank(process: Mapping[str, Any], job: Job | None) -> bool:
    """After a switch an agent that was away still knows a process by its old number, or as a twin, until it has spoken."""
    return job is not None and (process["role"] == "rank" or process["generation"] == job.generation)


def _endings(
    jobs: Mapping[str, Job], processes: Iterable[Mapping[str, Any]], node: str, now_s: float, was_lost: bool
) -> Iterable[Command]:
    """A node that was lost and came back may still run what was given up meanwhile."""
    stale = {
        (p["job"], p["generation"]) for p in processes
        if p["job"] not in jobs or jobs[p["job"]].state.is_final or _is_left_behind(p, jobs[p["job"]], node, now_s)
        or (was_lost and _was_given_up(p, jobs[p["job"]], node))
    }  # fmt: skip
    for name, generation in sorted(stale):
        grace_s = jobs[name].spec.stop_grace_s if name in jobs else 10.0
        yield Stop(job=name, generation=generation, grace_s=grace_s)


def _was_given_up(process: Mapping[str, Any], job: Job, node: str) -> bool:
    """It ran when the node was lost. Only a gang that lies there as a whole was waited for."""
    rank, generation = process["rank"], process["generation"]
    is_here = bool(job.placement) and job.placement[rank].node == node and generation == job.generation
    coming = job.switch.placement if job.switch and generation == job.switch.generation else ()
    return not is_here and not (coming and coming[rank].node == node)


def _is_left_behind(process: Mapping[str, Any], job: Job, node: str, now_s: float) -> bool:
    """A rank of an older generation, on a node where its job is no more: it was given up while the node did not answer. Right
    after a move it may be a leaver whose words its agent has not heard."""
    if process["role"] != "rank" or process["generation"] >= job.generation or job.switch or job.state is JobState.STOPPING:
        return False
    is_here = bool(job.placement) and job.placement[process["rank"]].node == node
    return not is_here and now_s - (job.moved_s or 0.0) > SETTLED_S
