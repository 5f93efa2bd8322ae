"""The state of suspended jobs leaves nodes that are drained, so that these can be switched off: what each event does to it.

It moves as it lies there, file by file, from the vault of the one node into that of another, and only when all of it is there is it
removed from the first. Until then the job is as it was: it may come back at any time, from where its state is. A move that fails
is tried again, later after each failure in a row, and elsewhere where there is another node.

A checkpoint is not moved: it lies in a folder of the user's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from restow.cluster import Node
from restow.core.config import CoreConfig
from restow.core.record import Evacuation, Record
from restow.job import Job, Kept
from restow.messages import (
    Command,
    Event,
    OfferVault,
    TakeVault,
    VaultMoved,
    VaultMoveFailed,
    VaultMoveProposed,
    VaultOffered,
)
from restow.placement import nodes_of

AT_ONCE = 2  # moves off one node: they share its link with the jobs that still train there
DOUBLINGS_MAX = 20


def in_vaults(job: Job) -> Kept | None:
    """The state of this job, if vaults are all that it lies in and nobody is about to fetch it."""
    kept = job.kept
    return kept if kept and job.is_suspended and not kept.checkpoint else None


def target_of(job: Job, source: str, nodes: Iterable[Node], jobs: Iterable[Job], failed: Collection[str] = ()) -> str:
    """The node to which what `source` keeps of this job is to move; empty if there is none. The one on which such a move has failed
    least often lately (`failed`), then one that holds a part of this state, then the one that keeps the least for others, then
    the one on which the fewest ranks train."""
    kept = job.kept
    assert kept
    keeps: Counter[str] = Counter()
    trains: Counter[str] = Counter()
    for other in jobs:
        trains.update(slot.node for slot in other.placement)
        if other.kept and other.id != job.id:
            keeps.update(nodes_of(other.kept.placement))
    failures, holders = Counter(failed), nodes_of(kept.placement)
    fit = [node.name for node in nodes if node.name != source and is_fit(node)]
    return min(fit, key=lambda node: (failures[node], node not in holders, keeps[node], trains[node], node), default="")


def planned(jobs: Iterable[Job], nodes: Iterable[Node], source: str) -> list[tuple[Job, str]]:
    """What would become of the states that `source` keeps: each job with the node to which its state moves, empty where none can
    take it. Among them jobs that are to go on from a checkpoint that only `source` sees, which does not move."""
    all_jobs, nodes = list(jobs), list(nodes)
    plan = []
    for at, job in enumerate(all_jobs):
        kept = job.kept
        if kept and job.is_suspended and not kept.is_shared and source in nodes_of(kept.placement):
            target = "" if kept.checkpoint else target_of(job, source, nodes, all_jobs)
            plan.append((job, target))
            if target:
                all_jobs[at] = replace(job, kept=moved_kept(kept, source, target))  # it counts for the next one
    return plan


def is_fit(node: Node) -> bool:
    return node.is_alive and not node.is_draining and not node.is_cordoned


def is_leaving(node: Node) -> bool:
    return node.is_alive and node.is_draining


# ---------------------------------------------------------------- by the clock


def due(records: Iterable[Record], nodes: Mapping[str, Node], now_s: float, config: CoreConfig) -> list[Event]:
    """Moves that are to begin now, and those of which nothing was heard for too long. O(nodes) while none is drained."""
    leaving = {name for name, node in nodes.items() if is_leaving(node)}
    if not leaving or not any(map(is_fit, nodes.values())):
        return []
    records = list(records)
    begun = Counter(record.evacuation.source for record in records if record.evacuation)
    jobs = [record.job for record in records]
    events: list[Event] = []
    for at, record in enumerate(records):
        job, doing = record.job, record.evacuation
        kept = in_vaults(job)
        if doing and now_s - doing.began_s > config.move_vault_s:
            why = f"it did not arrive within {config.move_vault_s:g} s"
            events.append(VaultMoveFailed(
                time_s=now_s, job=job.id, generation=doing.generation, node="", attempt=doing.attempt, reason=why
            ))  # fmt: skip
        if doing or not kept or job.intended or now_s < record.evacuate_after_s:
            continue
        source = next((node for node in nodes_of(kept.placement) if node in leaving and begun[node] < AT_ONCE), "")
        target = source and target_of(job, source, nodes.values(), jobs, record.evacuation_failures)
        if not target:
            continue
        begun[source] += 1
        jobs[at] = replace(job, kept=moved_kept(kept, source, target))  # it counts for the next one
        events.append(VaultMoveProposed(
            time_s=now_s, job=job.id, generation=kept.generation, node=source, target=target, attempt=record.evacuations + 1
        ))  # fmt: skip
    return events


# ---------------------------------------------------------------- what happened


def asked(record: Record) -> None:
    """A person asks for it (again): earlier failures do not hold it up any more."""
    record.evacuation_failures, record.evacuation_why, record.evacuate_after_s = (), "", 0.0


def proposed(record: Record, event: VaultMoveProposed) -> None:
    kept = in_vaults(record.job)
    if kept and kept.generation == event.generation and event.attempt == record.evacuations + 1:
        record.evacuations = event.attempt
        record.evacuation = Evacuation(
            attempt=event.attempt, generation=event.generation, source=event.node, target=event.target, began_s=event.time_s
        )  # fmt: skip
        record.nodes_used.add(event.target)
        record.discards.pop(event.target, None)  # of a state that had left it, and comes back


def offered(record: Record, event: VaultOffered) -> None:
    doing = record.evacuation
    if doing and doing.attempt == event.attempt:
        record.evacuation = replace(doing, address=(event.host, event.port))


def moved(record: Record, event: VaultMoved) -> None:
    """True whatever became of the attempt since, as long as no later one was begun: its source may be switched off already."""
    kept = in_vaults(record.job)
    is_said_first = kept and kept.generation == event.generation and event.source in nodes_of(kept.placement)
    if not kept or not is_said_first or event.attempt != record.evacuations:
        return
    record.evacuation = None
    asked(record)
    record.discards[event.source] = kept.generation
    record.change(kept=moved_kept(kept, event.source, event.node))


def failed(record: Record, event: VaultMoveFailed, config: CoreConfig) -> None:
    doing = record.evacuation
    if not doing or doing.attempt != event.attempt:
        return
    failures = (*record.evacuation_failures, doing.target)
    wait_s = min(config.back_off_s_max, config.back_off_s * 2 ** min(len(failures) - 1, DOUBLINGS_MAX))
    record.evacuation, record.evacuation_failures, record.evacuate_after_s = None, failures, event.time_s + wait_s
    record.evacuation_why = f"{event.node}: {event.reason}" if event.node else event.reason


def catch_up(record: Record, nodes: Mapping[str, Node]) -> None:
    """A move is over where it is not needed any more or cannot be: the job comes back, its node is in use again, or one is lost."""
    doing = record.evacuation
    if doing and not (in_vaults(record.job) and is_leaving(nodes[doing.source]) and is_fit(nodes[doing.target])):
        record.evacuation = None


def moved_kept(kept: Kept, source: str, target: str) -> Kept:
    """The same state with `target` in the place of `source`."""
    placement = tuple(slot._replace(node=target) if slot.node == source else slot for slot in kept.placement)
    replicas = tuple(dict.fromkeys(target if node == source else node for node in kept.replicas))
    return replace(kept, placement=placement, replicas=replicas)


# ---------------------------------------------------------------- what is to be done


def wanted(record: Record, secret: str) -> list[tuple[str, Command]]:
    doing, kept = record.evacuation, in_vaults(record.job)
    if not doing or not kept:
        return []
    if doing.address is None:
        offer = OfferVault(job=record.job.id, generation=kept.generation, attempt=doing.attempt, kept=kept, secret=secret)
        return [(doing.source, offer)]
    return [(doing.target, TakeVault(
        job=record.job.id, generation=kept.generation, attempt=doing.attempt, kept=kept, source=doing.source, address=doing.address,
        secret=secret,
    ))]  # fmt: skip
