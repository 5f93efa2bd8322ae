"""Intended and actual: what can begin now, and what the agents are to be told. Both are functions of the state alone.

`settle` begins what has become possible (a launch, a switch, a restart elsewhere) after each event. `wanted` lists every
command whose answer is still missing; the state asks each once, and all of them again after a restart.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from restow.cluster import Node
from restow.core import evacuating, gang, switching
from restow.core.occupancy import Occupancy
from restow.core.record import Record
from restow.job import Job, JobSpec, JobState, Kept, Phase, is_resized
from restow.messages import (
    Abandon,
    Command,
    Connect,
    Decide,
    Discard,
    Forget,
    Guard,
    Halt,
    Keep,
    Kill,
    Launch,
    LetGo,
    OpenStore,
    OpenVault,
    Prepare,
    Propose,
    Share,
    Snapshot,
    Stop,
)
from restow.placement import Slot, main_node, moved_ranks, nodes_of

FORGET_S = 3600.0  # after a restart of the controller, jobs that ended longer ago are not named to the agents again


@dataclass(frozen=True, slots=True)
class Settled:
    """What has changed, by job."""

    changed: frozenset[str]  # all that may be others than before
    again: frozenset[str]  # those that changed without an event of their own: they belong to the next ones that are dirty
    switches: int  # how many began


def settle(records: Mapping[str, Record], dirty: Iterable[str], occupancy: Occupancy, time_s: float) -> Settled:
    """Begin what is possible now, after something has happened to the jobs in `dirty`. Order: by submission, so that the same
    events always give the same state.

    O(dirty + moving jobs, and what is on their devices): who trains where it is to be is not looked at."""
    looked_at = _ordered(records, set(dirty))
    had_switch = {id for id in {*dirty, *occupancy.moving} if records[id].job.switch}
    for record in looked_at:
        gang.catch_up(record)
        _finish_leaving(record, time_s)
        _share_less(record)
        occupancy.note(record)
    again = withdraw(_ordered(records, occupancy.moving), occupancy)
    waiting = _ordered(records, {*dirty, *again, *occupancy.moving})
    for record in waiting:
        before = record.job
        _begin(record, occupancy, time_s)
        if _finish_leaving(record, time_s):  # what was given up just now and has no twins to wait for
            _begin(record, occupancy, time_s)
        if record.job is not before:
            occupancy.note(record)
            again.add(record.job.id)
    switches = sum(1 for record in waiting if record.job.switch and record.job.id not in had_switch)
    return Settled(frozenset({*dirty, *again}), frozenset(again), switches)


def _ordered(records: Mapping[str, Record], ids: Iterable[str]) -> list[Record]:
    return sorted((records[id] for id in ids), key=lambda record: (record.job.submitted_s, record.job.id))


def _finish_leaving(record: Record, time_s: float) -> bool:
    """True if a switch that was given up is over now."""
    job = record.job
    if job.state is JobState.STOPPING and not record.processes and not record.rescue:
        gang.gone(record, time_s)
    elif job.switch and record.phase is Phase.ABORT:
        if not any(generation == job.switch.generation for generation, _ in record.processes):
            record.change(switch=None)
            return True
    return False


def _share_less(record: Record) -> None:
    """Where a job is to have less of the devices that it holds, it has at once: the gate sees to that."""
    job = record.job
    if job.intended == job.placement:
        return
    if job.placement and len(job.intended) == len(job.placement) and not moved_ranks(job.placement, job.intended):
        if all(then.share <= now.share for now, then in zip(job.placement, job.intended, strict=True)):
            _reshare(record)


def _reshare(record: Record) -> None:
    """The same devices, other shares: no process moves."""
    record.change(placement=record.job.intended)
    for (generation, rank), process in list(record.processes.items()):
        if generation == record.job.generation:
            record.processes[generation, rank] = replace(process, slot=record.job.intended[rank])


def withdraw(records: list[Record], occupancy: Occupancy) -> set[str]:
    """When a job stays after all, whoever was promised its slots stays where it is too, and so on. Returns who does.
    `records`: those that are on their way, by submission."""
    withdrawn: set[str] = set()
    while True:
        changing = []
        for record in records:
            job = record.job
            if job.intended == job.placement:
                continue
            for slot in job.intended:
                others = {id: share for id, share in occupancy.stay_on(slot).items() if id != job.id}
                if sum(others.values()) + slot.share > 1.0 + 1e-9:
                    stays = job.placement if job.state in (JobState.STARTING, JobState.RUNNING) else ()
                    record.change(intended=stays, reason=f"waited for slots of {min(others)}, which stays")
                    changing.append(record)
                    break
        for record in changing:
            occupancy.note(record)
            withdrawn.add(record.job.id)
        if not changing:
            return withdrawn


def _begin(record: Record, occupancy: Occupancy, time_s: float) -> None:
    job = record.job
    if job.state is JobState.PENDING and job.intended and are_free(job.intended, record, occupancy):
        gang.launch(record, time_s)
    elif job.state is JobState.RUNNING and (not job.intended or is_resized(job)) and not record.unmovable:
        if job.switch and record.is_uncommitted and job.switch.placement:
            switching.give_up(record, "the plan changed", time_s)
        elif job.movable and not (job.switch or job.exited or record.exits):
            switching.start(record, time_s)  # to nowhere: it is suspended, even if only to come back with more or fewer workers
    elif job.state in (JobState.STARTING, JobState.RUNNING) and not job.intended:
        gang.end(record, JobState.PENDING, job.reason or "its slots were taken away", time_s)
    elif record.is_uncommitted and job.switch and job.intended != job.switch.placement:
        switching.give_up(record, "the plan changed", time_s)
    elif job.state is JobState.RUNNING and not (job.switch or job.exited or record.exits) and job.intended != job.placement:
        moved = moved_ranks(job.placement, job.intended)
        if not moved and more_is_free(record, occupancy):
            _reshare(record)
        if not moved or not are_free([job.intended[rank] for rank in moved], record, occupancy):
            return
        if job.movable:
            switching.start(record, time_s)
        elif record.unmovable:
            why = f"restarts on {' '.join(map(str, job.intended))}, from its own checkpoint: it cannot move while it trains"
            gang.end(record, JobState.PENDING, f"{why} ({job.why_not})", time_s)


def are_free(slots: Iterable[Slot], record: Record, occupancy: Occupancy) -> bool:
    """Does no process hold these devices, leavers and abandoned twins counted? Shares of jobs add up. Of this job, only ranks that
    stay where they are do not count: others may come to take turns with them."""
    restarts = record.job.state is JobState.RUNNING and not record.job.movable  # its own processes will be gone by then
    moved = moved_ranks(record.job.placement, record.job.intended)

    def stays(generation: int, rank: int) -> bool:
        return restarts or (generation == record.job.generation and rank not in moved)

    return all(_fits(slot, occupancy, record.job.id, stays) for slot in slots)


def more_is_free(record: Record, occupancy: Occupancy) -> bool:
    """May this job have the larger shares of its own devices that it is to have?"""
    return all(_fits(slot, occupancy, record.job.id, lambda generation, rank: True) for slot in record.job.intended)


def _fits(slot: Slot, occupancy: Occupancy, job: str, stays: Callable[[int, int], bool]) -> bool:
    """Is there so much left of this device? `stays`: does this process of `job` itself not count?"""
    used = 0.0
    for id, processes in occupancy.processes_on(slot):
        used += max((share for key, share in processes.items() if id != job or not stays(*key)), default=0.0)
    return used + slot.share <= 1.0 + 1e-9


def wanted(record: Record, nodes: Mapping[str, Node], cluster_secret: str, now_s: float) -> list[tuple[str, Command]]:
    """Every command about this job that was not answered yet, with its node, in a fixed order; only nodes that are alive."""
    commands = _abandoning(record)
    if record.job.state.is_final:
        commands += _forgetting(record, now_s)
    elif record.job.state is JobState.STOPPING:
        commands += _stopping(record)
    elif record.job.state is JobState.STARTING:
        commands += _starting(record, cluster_secret)
    elif record.job.switch:
        commands += _switching(record, cluster_secret)
    commands += _snapshot(record, cluster_secret)
    commands += evacuating.wanted(record, secret_of(cluster_secret, record.job.id)) if record.evacuation else []
    if record.job.state is JobState.RUNNING:
        for rank in sorted(record.doomed & record.job.alive):
            kill = Kill(job=record.job.id, generation=record.job.generation, rank=rank)
            commands.append((record.job.placement[rank].node, kill))
        if record.job.exited:
            let_go = LetGo(job=record.job.id, generation=record.job.generation)
            commands += [(node, let_go) for node in nodes_of(record.job.placement)]
    if record.job.sharing and record.job.state in (JobState.STARTING, JobState.RUNNING):
        share = Share(job=record.job.id, generation=record.job.generation, sharing=record.job.sharing)
        commands += [(node, share) for node in nodes_of(record.job.placement)]
    return [(node, command) for node, command in commands if node in nodes and nodes[node].is_alive]


def secret_of(cluster_secret: str, job: str) -> str:
    """What the processes of one job prove to each other: HMAC-SHA256 of its name under the secret of the cluster, hex."""
    return hmac.new(cluster_secret.encode(), job.encode(), hashlib.sha256).hexdigest()


def _spec(job: Job) -> JobSpec:
    """What a process of it is born with: the spec, but for how it may share, which a person may have changed since."""
    return replace(job.spec, share=job.share)


def _starting(record: Record, cluster_secret: str) -> list[tuple[str, Command]]:
    job = record.job
    if record.store is None:
        return [(main_node(job.placement), OpenStore(job=job.id, generation=job.generation))]
    if job.kept:
        return _resuming(record, job.kept, record.store, cluster_secret)
    launch = Launch(
        job=job.id, generation=job.generation, spec=_spec(job), placement=job.placement, store=record.store,
        secret=secret_of(cluster_secret, job.id),
    )  # fmt: skip
    missing = {process.slot.node for _, process in record.gang() if not process.is_started}
    return [(node, launch) for node in nodes_of(job.placement) if node in missing]


def _snapshot(record: Record, cluster_secret: str) -> list[tuple[str, Command]]:
    job, doing, spec = record.job, record.checkpointing, record.job.spec.checkpoint
    if not doing or doing.step is None or doing.generation != job.generation or job.state is not JobState.RUNNING:
        return []
    snapshot = Snapshot(
        job=job.id, generation=job.generation, step=doing.step, folder=f"{folder_of(job.spec)}/{job.id}", keep=spec.keep,
        workers=job.workers, signatures=tuple(record.signatures.get(rank, "") for rank in range(job.workers)),
        secret=secret_of(cluster_secret, job.id),
    )  # fmt: skip
    return [(node, snapshot) for node in nodes_of(job.placement)]


def folder_of(spec: JobSpec) -> str:
    """Where checkpoints of jobs with this spec go."""
    return spec.checkpoint.folder or f"{spec.cwd}/checkpoints"


def _resuming(record: Record, kept: Kept, store: tuple[str, int], cluster_secret: str) -> list[tuple[str, Command]]:
    """Twins of every rank, and vaults that give them the state."""
    job, secret = record.job, secret_of(cluster_secret, record.job.id)
    open_vault = OpenVault(
        job=job.id, generation=job.generation, kept=kept, store=store, secret=secret,
        checkpoint_secret=secret_of(cluster_secret, kept.checkpoint_job or job.id) if kept.checkpoint else "",
    )  # fmt: skip
    commands: list[tuple[str, Command]] = [(node, open_vault) for node in nodes_of(kept.placement)]
    for node in nodes_of(job.placement):
        ranks = tuple(rank for rank, slot in enumerate(job.placement) if slot.node == node)
        if not set(ranks) <= record.parked:
            commands.append((node, Prepare(
                job=job.id, generation=job.generation, spec=_spec(job), placement=job.placement, ranks=ranks, store=store,
                secret=secret)))  # fmt: skip
    if len(record.parked) == job.workers:
        connect = Connect(
            job=job.id, generation=job.generation, present=0, now=(), then=job.placement, store=store, fill="vault", kept=kept
        )
        commands += [(node, connect) for node in nodes_of(job.placement)]
    return commands


def _stopping(record: Record) -> list[tuple[str, Command]]:
    job, rescue = record.job, record.rescue
    if rescue and rescue.step is None:
        halt = Halt(job=job.id, generation=job.generation, lost=tuple(sorted(rescue.lost)))
        return [(node, halt) for node in nodes_of(job.placement)]
    if rescue and rescue.step is not None:
        return [
            (node, Keep(
                job=job.id, generation=job.generation, vault=rescue.vault, step=rescue.step, replicas=rescue.replicas,
                copied=node in rescue.copied,
                lost=tuple(rank for rank in sorted(rescue.lost) if rescue.halted[rank].node == node)))
            for node in nodes_of(job.placement)
        ]  # fmt: skip
    asked = {(process.slot.node, generation) for (generation, _), process in record.processes.items()}
    if record.torn:  # ranks that stay may already be called by the new number
        asked |= {(process.slot.node, record.torn) for process in record.processes.values()}
    grace_s = job.spec.stop_grace_s
    return [(node, Stop(job=job.id, generation=generation, grace_s=grace_s)) for node, generation in sorted(asked)]


def _switching(record: Record, cluster_secret: str) -> list[tuple[str, Command]]:
    job, switch = record.job, record.job.switch
    assert switch is not None
    store_node, phase = main_node(switch.placement or job.placement), switch.phase
    moved, old_nodes = moved_ranks(job.placement, switch.placement), nodes_of(job.placement)
    commands: list[tuple[str, Command]] = []
    for dead in record.dead_steps if phase in (Phase.PROPOSE, Phase.COMMIT, Phase.RESCUE) else ():
        commands.append((store_node, Decide(job=job.id, generation=switch.generation, step=dead, go=False)))
    if phase is Phase.STANDBY and switch.store is None:
        commands.append((store_node, OpenStore(job=job.id, generation=switch.generation)))
    elif phase is Phase.STANDBY or (phase is Phase.RESCUE and not set(moved) <= switch.parked):
        assert switch.store is not None
        guard = Guard(
            job=job.id, generation=switch.generation, present=job.generation, now=job.placement, then=switch.placement,
            store=switch.store, fill=switch.fill,
        )  # fmt: skip
        commands += [(node, guard) for node in old_nodes if job.workers > 1]  # one rank alone has nobody to repeat a step with
        for node in nodes_of(switch.placement[rank] for rank in moved):
            ranks = tuple(rank for rank in moved if switch.placement[rank].node == node)
            if not set(ranks) <= switch.parked:
                commands.append((node, Prepare(
                    job=job.id, generation=switch.generation, spec=_spec(job), placement=switch.placement, ranks=ranks,
                    store=switch.store, secret=secret_of(cluster_secret, job.id))))  # fmt: skip
    elif phase is Phase.CONNECT or phase is Phase.RESCUE:
        assert switch.store is not None
        connect = Connect(
            job=job.id, generation=switch.generation, present=job.generation, now=job.placement, then=switch.placement,
            store=switch.store, fill=switch.fill,
        )  # fmt: skip
        commands += [(node, connect) for node in nodes_of((*job.placement, *switch.placement))]
    elif phase is Phase.PROPOSE and switch.step is not None:
        propose = Propose(job=job.id, generation=switch.generation, step=switch.step)
        commands += [(node, propose) for node in old_nodes if node not in switch.answered]
    elif phase is Phase.COMMIT:
        assert switch.step is not None
        commands.append((store_node, Decide(job=job.id, generation=switch.generation, step=switch.step, go=True)))
    return commands


def _abandoning(record: Record) -> list[tuple[str, Command]]:
    job = record.job
    if job.state.is_final:
        return []  # Forget does it
    commands: list[tuple[str, Command]] = []
    for generation, abandoned in sorted(record.abandoned.items()):
        if abandoned.step is not None:
            decide = Decide(job=job.id, generation=generation, step=abandoned.step, go=False)
            commands.append((abandoned.store_node, decide))
        abandon = Abandon(job=job.id, generation=generation, reason=abandoned.reason)
        commands += [(node, abandon) for node in abandoned.nodes]
    commands += [(node, Discard(job=job.id, generation=generation)) for node, generation in sorted(record.discards.items())]
    return commands


def _forgetting(record: Record, now_s: float) -> list[tuple[str, Command]]:
    job = record.job
    if job.ended_s is None or now_s - job.ended_s > FORGET_S:
        return []
    return [(node, Forget(job=job.id, generation=job.generations)) for node in sorted(record.nodes_used)]
