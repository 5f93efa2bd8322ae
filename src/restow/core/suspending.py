"""A job that leaves its devices with its state kept, and one that comes back: what each event does to it.

To suspend is a switch to nowhere (switching.py): the phases are the same, there are no twins, and at the switch step every rank
writes its state into the vault of its node instead of handing it over. One RankKept proves that all did, since the ranks share one
verdict; then the job is pending with its state kept.

To come back, the gang starts as twins of a new generation: they rehearse, connect, take the state from the vaults and go on.
Whatever fails before all of them train ends the attempt, and the job is pending again, its state untouched.
"""

from __future__ import annotations

from dataclasses import replace

from restow.core import checkpoints, gang, switching
from restow.core.config import CoreConfig
from restow.core.lifecycle import Cause, Turn, step, turn
from restow.core.record import Record
from restow.job import JobState, Kept, Phase
from restow.messages import Event, RankConnected, RankExited, RankKept, RankSwitched, TwinParked, VaultNotOnDisk
from restow.placement import devices_of, nodes_of

# ---------------------------------------------------------------- going


def is_suspending(record: Record) -> bool:
    """Is a switch to nowhere under way?"""
    switch = record.job.switch
    return switch is not None and not switch.placement


def rank_kept(record: Record, event: RankKept) -> None:
    switch = record.job.switch
    if switch and is_suspending(record) and switch.generation == event.generation and switch.phase is Phase.COMMIT:
        record.change_switch(finished=switch.finished | {event.rank})
        _decide(record, event)


def leaver_exited(record: Record, event: RankExited) -> bool:
    """A rank is gone while the job is being suspended and that is decided. True if this was all there is to say about it."""
    switch = record.job.switch
    if not switch or not is_suspending(record) or switch.phase is not Phase.COMMIT:
        return False
    is_safe = bool(switch.finished) or event.role == "leaver"
    if not is_safe:
        return False
    record.change_switch(finished=switch.finished | {event.rank})
    _decide(record, event)
    return True


def _decide(record: Record, event: Event) -> None:
    """Everybody's state is in the vault once one rank says so; wait for the others to say it or to be gone."""
    job, switch = record.job, record.job.switch
    assert switch is not None
    if len(switch.finished) < job.workers:
        return
    kept = kept_of(record)
    record.change(switch=turn(switch, Turn.ALL_SWITCHED, event.time_s))
    record.job = step(record.job, Cause.SUSPENDED)
    record.store, record.progress, record.abandoned, record.before = None, {}, {}, None
    record.change(
        generation=switch.generation, placement=(), alive=frozenset(), exited=frozenset(), movable=False, kept=kept,
        steps_done=kept.step, failed_moves=0, not_before_s=0.0, moved_s=event.time_s, sharing=None,
        suspensions=job.suspensions + 1,
    )  # fmt: skip


def kept_of(record: Record) -> Kept:
    """The state that the ranks put into their vaults when the job is suspended."""
    job, switch = record.job, record.job.switch
    assert switch is not None
    assert switch.step is not None
    signatures = tuple(record.signatures.get(rank, "") for rank in range(job.workers))
    return Kept(
        generation=switch.generation, step=switch.step, placement=job.placement, signatures=signatures,
        replicas=nodes_of(job.placement),
    )  # fmt: skip


def not_on_disk(record: Record, event: VaultNotOnDisk) -> None:
    kept = record.job.kept
    if kept and kept.generation == event.generation and not kept.checkpoint and event.node not in kept.in_memory:
        record.change(kept=replace(kept, in_memory=(*kept.in_memory, event.node)))


# ---------------------------------------------------------------- coming back


def is_resuming(record: Record, generation: int | None = None) -> bool:
    """Is the gang being started from its kept state (in this generation)?"""
    job = record.job
    return job.state is JobState.STARTING and job.kept is not None and generation in (None, job.generation)


def twin_parked(record: Record, event: TwinParked, config: CoreConfig) -> None:
    kept = record.job.kept
    if kept and kept.signatures and not _is_alike(kept, event, record.job.workers):
        why = f"rank {event.rank} on {event.node} built something else than what was suspended (other code, shapes or buckets)"
        fail(record, why, event.time_s, config)
        return
    record.parked |= {event.rank}


def _is_alike(kept: Kept, event: TwinParked, workers: int) -> bool:
    """Has the rank built what was built when its state was kept? In a gang of another size buckets and collectives may differ.
    Nobody knows (empty) where a rank was lost before it had said so."""
    before = kept.signatures[event.rank % len(kept.signatures)]
    if not before:
        return True
    if workers != len(kept.signatures):
        return event.signature.partition(".")[0] == before.partition(".")[0]
    return event.signature == before


def rank_connected(record: Record, event: RankConnected) -> None:
    record.connected |= {(event.rank, event.node, "twin")}


def rank_switched(record: Record, event: RankSwitched) -> None:
    record.came_back |= {event.rank}
    record.known_step = max(record.known_step, event.step)
    job = record.job
    if len(record.came_back) < job.workers:
        return
    assert job.kept is not None
    nodes = (*nodes_of(job.kept.placement), *job.kept.replicas, *sorted(record.nodes_used))
    record.discards = dict.fromkeys(nodes, job.kept.generation)  # and with it whatever is older there
    record.job = step(job, Cause.GANG_STARTED)
    has_fewer = len(devices_of(job.placement)) < job.workers  # as it was allowed to, having lost some
    record.change(is_rescued=job.kept.is_rescued or (job.is_rescued and has_fewer))
    record.change(kept=None, alive=frozenset(range(job.workers)), failed_moves=0, not_before_s=0.0, moved_s=event.time_s)


def fail(record: Record, reason: str, time_s: float, config: CoreConfig, *, is_source: bool = False) -> None:
    """This attempt is over; the state stays where it is, and the next attempt waits longer after each failure in a row. With
    another number of workers than before there is none: it comes back as it was, at once. `is_source`: the state is not to be had;
    if it was a checkpoint, the one before takes its place."""
    size = len(_kept(record).placement)
    if record.job.is_resizable and record.job.workers != size:
        record.change(workers_asked=size, pinned=(), failed_moves=0, not_before_s=0.0)
        words = f"could not go on with {record.job.workers} workers: {reason}; goes on with {size} as before"
        gang.end(record, JobState.PENDING, words, time_s)
        record.change(intended=())
        return
    failures = record.job.failed_moves + 1
    wait_s = min(config.back_off_s_max, config.back_off_s * 2 ** min(failures - 1, switching.DOUBLINGS_MAX))
    older = checkpoints.older(record) if is_source else None
    there = "its state is kept"
    if is_source and _kept(record).checkpoint:
        there = "there is no older checkpoint: bring that one back, or cancel the job"
    then = f"{there}, next try in {wait_s:g} s at the earliest"
    if older:
        then = f"goes on from its checkpoint of step {older.step} instead"
    words = f"could not go on from step {_kept(record).step}: {reason}; {then}"
    record.change(failed_moves=failures, not_before_s=time_s + wait_s)
    gang.end(record, JobState.PENDING, words, time_s)
    record.change(intended=())
    if older:
        checkpoints.go_back(record, older)


def launched(record: Record) -> None:
    """A gang was launched: nobody of it has come so far."""
    record.parked, record.came_back, record.connected = frozenset(), frozenset(), set()
    record.evacuation = None  # it comes back from where its state is


def _kept(record: Record) -> Kept:
    kept = record.job.kept
    assert kept is not None
    return kept


def without_kept(record: Record) -> None:
    """The job is final: whatever the vaults still hold of it goes with it (Forget)."""
    if record.job.kept:
        record.nodes_used.update(slot.node for slot in record.job.kept.placement)
        record.job = replace(record.job, kept=None)
