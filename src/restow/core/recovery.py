"""A gang that has lost ranks: its state is put into the vaults from what is left of it, and the job comes back from there.

A lost rank makes the others' collectives fail, of which their scripts never hear: they are halted where they are, before they
change their state again. All say which steps they hold; of the lost, their node says which private state is left in shared memory,
or, where that node is lost, another one that has a replica. The step is the latest that somebody holds as a whole (or the ranks
of a node in stripes, those of its lost ranks, too) and for which every rank's private state is there. It is kept, the survivors
leave, and the job is pending with its state kept, as if it had been suspended (suspending.py).

A loss while the job is being suspended is like any other, unless the ranks had agreed before it that their states are kept: of that
any of them that leaves is proof.

A rank that ended by its own error is not lost: that would happen again.
"""

from __future__ import annotations

from dataclasses import replace

from restow.core import checkpoints, gang, suspending
from restow.core.lifecycle import Cause, step
from restow.core.record import Process, Record, Rescue
from restow.job import Job, JobState, Kept
from restow.messages import RankExited, RankHalted, RankKept
from restow.placement import nodes_of


def begin(record: Record, event: RankExited) -> bool:
    """A rank of a running gang is gone. True if the job is to go on without it."""
    if event.code >= 0 or not _may_go_on(record):
        return False
    _start(record, frozenset({event.rank}), _what(event), _gone(event), event.time_s)
    return True


def halted_on(record: Record, node: str, time_s: float) -> None:
    """Nobody is lost, but ranks on `node` were halted since they heard nothing of us: the gang goes on from where it stands."""
    nodes = nodes_of(record.job.placement)
    if node in nodes and len(nodes) > 1 and _may_go_on(record):
        _start(record, frozenset(), f"{node} heard nothing of the controller for too long", frozenset(), time_s)


def may_save(job: Job) -> bool:
    """Would a gang that has lost a rank now go on without it, were no switch under way?"""
    is_whole = job.state is JobState.RUNNING and job.workers > 1 and not job.exited and not job.cancel_asked
    return is_whole and job.movable and job.spec.recover


def _may_go_on(record: Record) -> bool:
    return may_save(record.job) and (not record.is_committed or suspending.is_suspending(record))


def _start(record: Record, lost: frozenset[int], reason: str, gone: frozenset[str], time_s: float) -> None:
    job = record.job
    suspended = suspending.kept_of(record) if record.is_committed else None
    gang.leave_switch(record, "a rank was lost" if lost else reason, time_s)
    record.torn = job.generations + 1  # those that leave are of an older generation than this
    rescue = Rescue(vault=job.generations + 1, lost=lost, reason=reason, gone=gone, suspended=suspended)
    signatures = tuple(record.signatures.get(rank, "") for rank in range(job.workers))
    record.rescue, record.ending, record.rescue_signatures = rescue, JobState.PENDING, signatures
    record.job = step(record.job, Cause.STOP)
    record.change(  # a move that failed before must not keep it waiting
        switch=None, generations=rescue.vault, reason=f"{rescue.reason}; its state is being saved", not_before_s=0.0,
    )  # fmt: skip


def lose(record: Record, event: RankExited) -> None:
    """Another one is gone meanwhile. One that had left its state in the vault is not needed any more."""
    rescue = record.rescue
    assert rescue is not None
    if event.rank in rescue.kept or event.rank in rescue.lost:
        return
    reason = rescue.reason if event.node in rescue.gone else f"{rescue.reason} and {_what(event)}"
    gone, lost = _gone(event), rescue.lost | {event.rank}
    rescue = replace(rescue, reason=reason, gone=rescue.gone | gone, back=rescue.back - gone)
    if rescue.step is None:
        halted = {rank: word for rank, word in rescue.halted.items() if rank != event.rank}
        said = {**rescue.said, **{rank: word for rank, word in rescue.halted.items() if rank == event.rank}}
        record.rescue = rescue = replace(rescue, lost=lost, halted=halted, said=said)
        if _have_all_answered(record, rescue):  # no node is left that could
            _choose(record, rescue, event.time_s)
        return
    writers = tuple(rank for rank in rescue.replicas if rank != event.rank)
    copied = rescue.copied or (() if writers else _copied(record, rescue).get(rescue.step, ())[:1])
    record.rescue = replace(rescue, lost=lost, replicas=writers, copied=copied)
    if gone or not (writers or copied):  # what it held is not to be had
        give_up(record, f"{_what(event)} while the state was being saved", event.time_s)


def node_back(record: Record, node: str) -> None:
    """A lost node is there again: ranks that it had may have stood still all the time, and it may know what is left of them."""
    rescue = record.rescue
    if rescue and node in rescue.gone:
        record.rescue = replace(rescue, gone=rescue.gone - {node}, back=rescue.back | {node})


def rank_halted(record: Record, event: RankHalted) -> None:
    rescue = record.rescue
    if rescue is None or rescue.step is not None or event.generation != record.job.generation:
        return
    if event.rank in rescue.lost and event.holds:
        if event.node not in rescue.back or event == rescue.said.get(event.rank):
            record.rescue = replace(rescue, said={**rescue.said, event.rank: event})
            return  # it said so before it was lost
        rescue = replace(rescue, lost=rescue.lost - {event.rank})  # it has stood still all the time
        slot = record.job.placement[event.rank]
        record.processes[event.generation, event.rank] = Process(slot=slot, is_started=True)
        record.change(alive=record.job.alive | {event.rank})
    searched, known = rescue.searched, rescue.halted.get(event.rank)
    if event.rank in rescue.lost:
        home = record.job.placement[event.rank].node
        if event.node != home and home not in rescue.gone:
            return  # a replica, which may be older: its own node will answer
        searched |= {(event.rank, event.node)}
        if known and known.privates >= event.privates:
            event = known  # there is more of it elsewhere
    elif known and known.holds and not event.holds:
        return  # its node, when it still counted as lost
    record.rescue = rescue = replace(rescue, halted={**rescue.halted, event.rank: event}, searched=searched)
    if _have_all_answered(record, rescue):
        _choose(record, rescue, event.time_s)


def _have_all_answered(record: Record, rescue: Rescue) -> bool:
    placement = record.job.placement
    left = set(nodes_of(placement)) - rescue.gone
    for rank, slot in enumerate(placement):
        if rank not in rescue.lost:
            if rank not in rescue.halted:
                return False
        elif not {(rank, node) for node in (left if slot.node in rescue.gone else {slot.node})} <= rescue.searched:
            return False
    return True


def _choose(record: Record, rescue: Rescue, time_s: float) -> None:
    holders = _holders(rescue)
    copied = _copied(record, rescue)
    held = {*holders, *copied}
    privates = {rank: set(rescue.halted[rank].privates) if rank in rescue.halted else set() for rank in range(record.job.workers)}
    whole = [step for step in held if all(step in steps for steps in privates.values())]
    if not whole:
        without = [rank for rank, steps in privates.items() if not steps & held]
        why = f"nothing is left of rank {without[0]} for a step that others hold" if without else "no rank holds a whole step"
        if rescue.gone:
            nodes = " and ".join(sorted(rescue.gone))
            record.rescue = replace(rescue, waits=why)
            record.change(reason=f"{rescue.reason}; waits for {nodes} to come back, since {why}")
        else:
            give_up(record, why, time_s)
        return
    chosen = max(whole)
    record.count_loss(chosen)
    if record.hopeless:
        record.rescue, record.ending = None, JobState.FAILED
        record.change(intended=(), reason=f"{rescue.reason}; {record.hopeless}")
        return
    writers = holders.get(chosen, {})
    others = tuple(node for node in copied.get(chosen, ()) if node not in writers)
    record.rescue = replace(rescue, step=chosen, replicas=tuple(sorted(writers.values())), copied=others, waits="")


def _holders(rescue: Rescue) -> dict[int, dict[str, int]]:
    """Step → node → the lowest rank there that holds what all hold alike."""
    found: dict[int, dict[str, int]] = {}
    for rank, word in sorted(rescue.halted.items(), reverse=True):
        for held in word.holds:
            found.setdefault(held, {})[word.node] = rank
    return found


def _copied(record: Record, rescue: Rescue) -> dict[int, tuple[str, ...]]:
    """Step → nodes where all stripes of a copy of it are."""
    found: dict[int, tuple[str, ...]] = {}
    for node in nodes_of(record.job.placement):
        words = [word for word in rescue.halted.values() if word.node == node]
        for held in {held for word in words for held in word.copied}:
            there = {word.stripe for word in words if held in word.copied}
            if any({(index, count) for index in range(count)} <= there for _, count in there):
                found[held] = (*found.get(held, ()), node)
    return found


def rank_kept(record: Record, event: RankKept) -> None:
    rescue = record.rescue
    if rescue and rescue.suspended and rescue.suspended.generation == event.generation:
        # the ranks had agreed that all states are kept before one of them was lost: they leave
        words = f"{rescue.reason}, after its state was kept"
        record.change(kept=rescue.suspended, steps_done=rescue.suspended.step, reason=words, movable=False)
        record.rescue = None
        return
    if rescue is None or rescue.vault != event.generation or rescue.step is None:
        return
    record.rescue = rescue = replace(rescue, kept=rescue.kept | {event.rank})
    if len(rescue.kept) < record.job.workers:
        return
    assert rescue.step is not None
    there = {rank: word.node for rank, word in rescue.halted.items()}  # of the lost: where something is left of them
    placement = tuple(slot._replace(node=there[rank]) for rank, slot in enumerate(record.job.placement))
    kept = Kept(
        generation=rescue.vault, step=rescue.step, placement=placement, signatures=record.rescue_signatures,
        replicas=(*nodes_of(placement[rank] for rank in rescue.replicas), *rescue.copied), is_rescued=True,
        muted=tuple(rank for rank, word in sorted(rescue.halted.items()) if max(word.privates, default=-1) > rescue.step),
    )  # fmt: skip
    record.change(kept=kept, steps_done=rescue.step, reason=f"{rescue.reason}; goes on from step {rescue.step}", movable=False)
    record.rescue = None


def give_up(record: Record, why: str, time_s: float) -> None:
    """The job goes on from its last checkpoint, or is tried again as its spec says, or fails, as it would have without all this."""
    rescue = record.rescue
    assert rescue is not None
    job = record.job
    if rescue.step is None:  # else it is counted already
        record.count_loss(job.steps_done)
    if record.hopeless:
        why = f"{why}; {record.hopeless}"
    elif checkpoints.fall_back(record, f"{rescue.reason}, and nothing else is left: {why}", time_s):
        return
    if job.retried < job.spec.retries and not job.cancel_asked:
        record.rescue, record.ending = None, JobState.PENDING
        again = f"it starts again from its first step, try {job.retried + 2} of {job.spec.retries + 1}"
        reason = f"{rescue.reason}, and nothing is left: {why}; {again}"
        record.change(retried=job.retried + 1, steps_done=0, movable=False, reason=reason)
        return
    record.rescue, record.ending = None, JobState.FAILED
    record.change(intended=(), reason=f"{rescue.reason}, and could not go on: {why}")


def _gone(event: RankExited) -> frozenset[str]:
    return frozenset({event.node} if event.reason.startswith("node ") else ())


def _what(event: RankExited) -> str:
    if event.reason.startswith("node "):
        return f"{event.reason}, and rank {event.rank} with it"
    return f"rank {event.rank} on {event.node} {gang.ending_words(event)}"
