"""A switch under way: what each event does to it. The phases and what moves them on stand in lifecycle.py.

Before COMMIT the core may abandon a switch at any time, and the old generation never notices. From COMMIT on the outcome
comes only from the ranks (they share one verdict): every rank says RankSwitched, or an old one says RankRolledBack.

A switch to nowhere suspends the job: what is special about it stands in suspending.py.

Two things happen without us being asked (sdk/guard.py). A moved rank that dies once the store was opened makes the switch a
RESCUE: the ranks take over in the middle of a step, once their twins have come as far as that, or they cannot. And when a twin
dies in its first step, all old ranks say RankRolledBack although the switch was done: the generation before is the job again, as
long as its leavers live.

A proposal K that was refused is decided as `abort` under its own key (`decision/K`): ranks that accepted it and stop there
read that and go on; the next proposal is a later step with a key of its own.
"""

from __future__ import annotations

from dataclasses import replace

from restow.core.config import CoreConfig
from restow.core.lifecycle import Turn, turn
from restow.core.record import Abandoned, Before, Process, Record
from restow.job import JobState, Phase, Switch, is_resized
from restow.messages import (
    RankConnected,
    RankExited,
    RankRolledBack,
    RankSwitched,
    ShadowReady,
    StepAccepted,
    StepProposed,
    StepRefused,
    StoreOpened,
    TwinParked,
)
from restow.perf import choose_fill
from restow.placement import main_node, moved_ranks, nodes_of

DOUBLINGS_MAX = 20  # of the time that a job waits after failures in a row; any further one would only make the number larger


def start(record: Record, time_s: float) -> None:
    """Begin the way to the intended placement, whose slots are free."""
    job = record.job
    generation, then = job.generations + 1, () if is_resized(job) else job.intended
    record.connected, record.dead_steps, record.exits = set(), (), {}
    record.before, record.back = None, frozenset()
    record.nodes_used.update(nodes_of(job.intended))
    fill = choose_fill(job.spec, job.profile, job.placement, then) if then else "vault"
    record.change(generations=generation, switch=Switch(
        generation=generation, placement=then, reason=job.reason, fill=fill, started_s=time_s, phase_s=time_s,
    ))  # fmt: skip


def store_opened(record: Record, event: StoreOpened) -> None:
    """From here on the twins may exist."""
    switch = _switch(record, event.generation, Phase.STANDBY)
    if switch and switch.store is None:
        record.change_switch(store=(event.host, event.port))
        for rank in moved_ranks(record.job.placement, switch.placement):
            if switch.placement:
                record.processes[switch.generation, rank] = Process(switch.placement[rank])
        if not switch.placement:
            _turn(record, Turn.ALL_PARKED, event.time_s)  # there are no twins to wait for


def twin_parked(record: Record, event: TwinParked, config: CoreConfig) -> None:
    job = record.job
    switch = _switch(record, event.generation, Phase.STANDBY) or _switch(record, event.generation, Phase.RESCUE)
    moved = moved_ranks(job.placement, switch.placement) if switch else ()
    if not switch or event.rank not in moved:
        return
    if event.signature != record.signatures.get(event.rank):
        why = f"the twin of rank {event.rank} on {event.node} built something else than the job (other code, shapes or buckets)"
        if switch.phase is Phase.RESCUE:
            _drop(record, Turn.ROLLED_BACK, why, event.time_s, config)
        fail(record, why, event.time_s, config)
        return
    rehearsal_step_s = max(job.profile.rehearsal_step_s if switch.parked else 0.0, event.rehearsal_step_s)
    record.change(profile=replace(job.profile, rehearsal_step_s=rehearsal_step_s))
    record.change_switch(parked=switch.parked | {event.rank})
    if len(switch.parked | {event.rank}) == len(moved) and switch.phase is Phase.STANDBY:
        _turn(record, Turn.ALL_PARKED, event.time_s)


def rank_connected(record: Record, event: RankConnected) -> None:
    switch, job = _switch(record, event.generation, Phase.CONNECT), record.job
    if not switch:
        return
    moved = moved_ranks(job.placement, switch.placement)
    needed = {(rank, slot.node, "rank") for rank, slot in enumerate(job.placement)}
    needed |= {(rank, switch.placement[rank].node, "twin") for rank in moved if switch.placement}
    roles = [event.role] if event.role else ["rank", "twin"]
    record.connected |= {(event.rank, event.node, role) for role in roles} & needed
    ready = {rank for rank, _, _ in needed} - {rank for rank, _, _ in needed - record.connected}
    record.change_switch(connected=frozenset(ready))
    if record.connected == needed:
        _turn(record, Turn.ALL_CONNECTED_SHADOW if switch.fill == "shadow" else Turn.ALL_CONNECTED, event.time_s)
        _all_shadowing(record, event.time_s)


def shadow_ready(record: Record, event: ShadowReady) -> None:
    """May come while ranks on other nodes have not said yet that they are connected; it counts then, too."""
    switch = _switch(record, event.generation, Phase.SHADOW) or _switch(record, event.generation, Phase.CONNECT)
    if switch and event.rank in moved_ranks(record.job.placement, switch.placement):
        record.change_switch(shadowing=switch.shadowing | {event.rank})
        _all_shadowing(record, event.time_s)


def _all_shadowing(record: Record, time_s: float) -> None:
    switch = record.job.switch
    if (
        switch
        and switch.phase is Phase.SHADOW
        and switch.shadowing == set(moved_ranks(record.job.placement, switch.placement))
    ):
        _turn(record, Turn.ALL_SHADOWING, time_s)


def step_proposed(record: Record, event: StepProposed) -> None:
    switch = _switch(record, event.generation, Phase.PROPOSE)
    if switch and switch.step is None:
        record.change_switch(step=event.step, answered=frozenset())


def step_accepted(record: Record, event: StepAccepted) -> None:
    switch = _switch(record, event.generation, Phase.PROPOSE)
    if not switch or switch.step != event.step or event.node not in nodes_of(record.job.placement):
        return
    record.change_switch(answered=switch.answered | {event.node})
    if switch.answered | {event.node} == set(nodes_of(record.job.placement)):
        _turn(record, Turn.ALL_ACCEPTED, event.time_s)


def step_refused(record: Record, event: StepRefused) -> None:
    switch = _switch(record, event.generation, Phase.PROPOSE)
    if switch and switch.step == event.step:
        _kill_proposal(record, event.step, event.at)


def rank_switched(record: Record, event: RankSwitched, config: CoreConfig) -> None:
    switch = _committed(record, event.generation)
    if switch:
        record.change_switch(finished=switch.finished | {event.rank})
        record.known_step = max(record.known_step, event.step)
        decide(record, event.time_s, config)


def rank_rolled_back(record: Record, event: RankRolledBack, config: CoreConfig) -> None:
    """In COMMIT the verdict. Before it: the rank waited too long at a proposal and aborted that one itself. After it, and said
    by every old rank: a twin was lost in its first step, and they went back."""
    switch, job = record.job.switch, record.job
    if switch and event.generation == switch.generation:
        why = f"rolled back at step {event.step}: {event.reason}"
        if record.phase is Phase.PROPOSE and event.step == switch.step:
            _kill_proposal(record, event.step, event.step)
        elif record.is_committed and not switch.finished and event.step == switch.step:
            _drop(record, Turn.ROLLED_BACK, why, event.time_s, config)
        elif record.is_committed and switch.finished:
            record.back |= {event.rank}
            if len(record.back) == job.workers:
                _drop(record, Turn.ROLLED_BACK, why, event.time_s, config)
                _forget_lost_twins(record, switch.generation)
    elif record.before and event.generation == job.generation and job.state is JobState.RUNNING:
        record.back |= {event.rank}
        if len(record.back) == job.workers:
            _go_back(record, f"rolled back at step {event.step}: {event.reason}", event.time_s, config)


def rescue(record: Record, event: RankExited) -> bool:
    """A rank died although nothing is decided yet. True if it is a moved one whose twin may take over: the ranks decide."""
    switch, job = record.job.switch, record.job
    if event.code == 0 or switch is None or switch.store is None or not record.is_uncommitted or not switch.placement:
        return False
    if event.rank not in moved_ranks(job.placement, switch.placement) or job.workers == 1:
        return False
    if switch.step is not None:
        record.dead_steps += (switch.step,)  # nobody comes to it now
    record.change_switch(step=record.known_step)
    _turn(record, Turn.LEAVER_LOST, event.time_s)
    return True


def may_go_back(record: Record, rank: int) -> bool:
    """The process of `rank` in the present generation died: does the leaver whose place it took still live?"""
    before = record.before
    return bool(before and record.job.state is JobState.RUNNING and (before.generation, rank) in record.processes)


def leaver_gone(record: Record) -> None:
    before = record.before
    if before and not any(generation == before.generation for generation, _ in record.processes):
        record.before, record.back = None, frozenset()


def decide(record: Record, time_s: float, config: CoreConfig) -> None:
    """In COMMIT: is the outcome known from what the ranks said and which of them are gone?

    One RankSwitched or one retired leaver proves the verdict `done`. Without either, the switch has failed when every old
    rank ended by itself (the job was over before the switch step), or when nobody is left.
    """
    switch, job = record.job.switch, record.job
    assert switch is not None
    if is_done(record):
        gone = {rank for key in record.exits for generation, rank in [_renamed(record, key)] if generation == switch.generation}
        unseen = {rank for rank, slot in enumerate(switch.placement) if record.unseen.get(slot.node)}
        if len(switch.finished | gone | unseen) == job.workers:
            _complete(record, time_s)
        return
    left = {generation for generation, _ in record.processes}
    if record.phase is Phase.RESCUE:
        if job.generation not in left:
            _drop(record, Turn.ROLLED_BACK, "the old gang ended before a twin could take over", time_s, config)
            return
        both = {rank for generation, rank in record.exits if (job.generation, rank) in record.exits and generation > job.generation}
        if both:
            why = f"rank {min(both)} and its twin were lost"
            _drop(record, Turn.ROLLED_BACK, why, time_s, config)
        return
    if _is_new_gang_gone(record):
        _drop(record, Turn.ROLLED_BACK, "nobody of the new gang is left", time_s, config)
        return
    ended = all(event.code == 0 for (generation, _), event in record.exits.items() if generation == job.generation)
    if job.generation not in left and (ended or switch.generation not in left):
        _drop(record, Turn.ROLLED_BACK, "the old gang ended before the switch step", time_s, config)


def is_done(record: Record) -> bool:
    """Is the verdict known to be `done`: has a rank said that it is there, or a leaver left since it was not needed any more?"""
    switch = record.job.switch
    assert switch is not None
    return bool(switch.finished) or any(event.role == "leaver" for event in record.exits.values())


def has_lost_staying(record: Record) -> bool:
    """Is a rank lost that would have stayed where it is? Whatever the verdict, the gang goes on without it."""
    job, switch = record.job, record.job.switch
    assert switch is not None
    moved = moved_ranks(job.placement, switch.placement)
    return any(event.code < 0 and event.role != "leaver" and event.rank not in moved for event in record.exits.values())


def _is_new_gang_gone(record: Record) -> bool:
    """... and nobody else of those who would be the gang? What is left of the old one goes on then, without waiting for a verdict,
    of which there may be no store any more."""
    job, switch = record.job, record.job.switch
    assert switch is not None
    moved = moved_ranks(job.placement, switch.placement)
    left = any(generation == switch.generation or rank not in moved for generation, rank in record.processes)
    return has_lost_staying(record) and not left


def fail(record: Record, reason: str, time_s: float, config: CoreConfig) -> None:
    """Abandon a switch that cannot go on; the old generation trains on and the next attempt waits."""
    if record.is_uncommitted:
        _drop(record, Turn.FAILED, reason, time_s, config)


def give_up(record: Record, reason: str, time_s: float) -> None:
    """Abandon a switch that nobody needs any more; nobody's fault, no back-off."""
    if record.is_uncommitted:
        _note_abandoned(record, reason)
        _turn(record, Turn.FAILED, time_s)
    elif record.is_committed:
        _note_abandoned(record, reason)


def _drop(record: Record, cause: Turn, reason: str, time_s: float, config: CoreConfig) -> None:
    """The switch failed: intended is what is, and the job waits twice as long after each failure in a row."""
    job = record.job
    assert job.switch is not None
    _note_abandoned(record, reason)
    _turn(record, cause, time_s)
    failures = job.failed_moves + 1
    wait_s = min(config.back_off_s_max, config.back_off_s * 2 ** min(failures - 1, DOUBLINGS_MAX))
    what = f"the move to {' '.join(nodes_of(job.switch.placement))}" if job.switch.placement else "suspending it"
    words = f"{what} failed: {reason}; next try in {wait_s:g} s at the earliest"
    pinned = job.pinned
    if pinned and failures >= config.wishes_max:
        pinned, words = (
            (),
            f"the move to {' '.join(map(str, pinned))} failed {failures} times and is given up: {reason}",
        )
    record.change(
        intended=job.placement,
        reason=words,
        pinned=pinned,
        failed_moves=failures,
        not_before_s=time_s + wait_s,
        moved_s=time_s,
    )


def _complete(record: Record, time_s: float) -> None:
    """Every rank is in the new generation: that is the job now. Moved ranks leave a leaver behind until it is gone."""
    job, switch = record.job, record.job.switch
    assert switch is not None
    generation, moved = switch.generation, moved_ranks(job.placement, switch.placement)
    record.exits = {_renamed(record, key): event for key, event in record.exits.items()}
    for rank in range(job.workers):
        if rank not in moved and (job.generation, rank) in record.processes:
            record.processes[generation, rank] = record.processes.pop((job.generation, rank))
    record.before = Before(generation=job.generation, placement=job.placement, store=record.store)
    record.store, record.progress, record.abandoned = switch.store, {}, {}
    _turn(record, Turn.ALL_SWITCHED, time_s)
    record.change(
        generation=generation, placement=switch.placement, alive=frozenset(range(job.workers)), exited=frozenset(),
        profile=replace(job.profile, step_s=0.0, exposed_s=0.0, waited_s=0.0, held_s=0.0, alone_step_s=0.0),  # anew where it is now
        slow=frozenset(), moves=job.moves + 1, moved_s=time_s, failed_moves=0, not_before_s=0.0,
        steps_done=max(job.steps_done, switch.step or 0),
    )  # fmt: skip


def _go_back(record: Record, reason: str, time_s: float, config: CoreConfig) -> None:
    """Undo `_complete`: the generation before is the job, twins that are left are abandoned."""
    job, before = record.job, record.before
    assert before is not None
    moved = moved_ranks(before.placement, job.placement)
    for rank in range(job.workers):
        if rank not in moved and (job.generation, rank) in record.processes:
            record.processes[before.generation, rank] = record.processes.pop((job.generation, rank))
    switch = Switch(
        generation=job.generation, placement=job.placement, reason=job.reason, phase=Phase.COMMIT, store=record.store,
        step=job.steps_done, phase_s=time_s,
    )  # fmt: skip
    record.store, record.progress, record.before = before.store, {}, None
    record.change(
        generation=before.generation, placement=before.placement, switch=switch, moves=job.moves - 1,
        profile=replace(job.profile, step_s=0.0, exposed_s=0.0),
    )  # fmt: skip
    _drop(record, Turn.ROLLED_BACK, reason, time_s, config)
    _forget_lost_twins(record, switch.generation)


def _forget_lost_twins(record: Record, generation: int) -> None:
    record.exits = {key: event for key, event in record.exits.items() if key[0] != generation}
    record.back = frozenset()


def _renamed(record: Record, key: tuple[int, int]) -> tuple[int, int]:
    """A process by its number after the verdict `done`: a staying rank belongs to the new generation, also when it ended
    before its agent could say so."""
    job, (generation, rank) = record.job, key
    assert job.switch is not None
    stays = rank not in moved_ranks(job.placement, job.switch.placement)
    return (job.switch.generation, rank) if generation == job.generation and stays else key


def _note_abandoned(record: Record, reason: str) -> None:
    job, switch = record.job, record.job.switch
    assert switch is not None
    record.abandoned[switch.generation] = Abandoned(
        reason=reason,
        nodes=nodes_of((*job.placement, *switch.placement)),
        store_node=main_node(switch.placement or job.placement),
        step=switch.step if switch.phase is Phase.PROPOSE else None,
    )


def _kill_proposal(record: Record, step: int, at: int) -> None:
    record.dead_steps += (step,)
    record.known_step = max(record.known_step, at)
    record.change_switch(step=None, answered=frozenset())


def _turn(record: Record, cause: Turn, time_s: float) -> None:
    assert record.job.switch is not None
    record.change(switch=turn(record.job.switch, cause, time_s))


def _committed(record: Record, generation: int) -> Switch | None:
    return _switch(record, generation, Phase.COMMIT) or _switch(record, generation, Phase.RESCUE)


def _switch(record: Record, generation: int, phase: Phase) -> Switch | None:
    """The switch under way if the event is about it and it is in that phase; else the event is late and changes nothing."""
    switch = record.job.switch
    is_current = switch and switch.generation == generation and switch.phase is phase
    return switch if is_current and record.job.state is JobState.RUNNING else None
