"""A gang's life: launched, alive, ended. What the events about ranks do to one job; switches are in switching.py."""

from __future__ import annotations

from dataclasses import replace

from restow.core import checkpoints, hangs, recovery, suspending, switching
from restow.core.config import CoreConfig
from restow.core.lifecycle import GONE, Cause, step
from restow.core.record import Process, Record
from restow.job import JobState
from restow.messages import LaunchFailed, Progressed, RankExited, RankReady, RankStarted, StoreOpened
from restow.perf import ring_bytes
from restow.placement import Slot, devices_of, is_scattered, main_node, nodes_of

FIRST_STEPS = 3  # until a job can say what it is, and so can be moved
EARLY_LOSSES_MAX = 3  # one that is killed again and again as it starts (memory, most often) is not started for ever
THEN_MAX = 160  # letters of what follows from the reason
LEARNING_BYTES_MIN = 1_000_000  # below it a collective's time is latency and says nothing about a rate


def launch(record: Record, time_s: float) -> None:
    """Start a new generation on the intended slots, which are free."""
    job = record.job
    generation = job.generations + 1
    if job.kept and job.kept.is_shared:  # one of the nodes where it starts gives it out
        node = main_node(job.intended)
        job = replace(job, kept=replace(job.kept, placement=(Slot(node, 0),) * len(job.kept.placement), replicas=(node,)))
    record.job = replace(
        step(job, Cause.PLACED), generation=generation, generations=generation,
        placement=job.intended, world_size=len(job.intended), alive=frozenset(), exited=frozenset(), movable=False, why_not="",
    )  # fmt: skip
    record.store, record.ending, record.torn, record.known_step = None, None, 0, 0
    record.signatures, record.unmovable, record.progress = {}, {}, {}
    record.hung, record.hang_told, record.doomed = {}, False, frozenset()
    record.change(slow=frozenset())
    record.nodes_used.update(nodes_of(job.intended))
    suspending.launched(record)


def store_opened(record: Record, event: StoreOpened) -> None:
    """From here on the ranks may exist, whether their agents have told us or not."""
    if record.job.state is JobState.STARTING and event.generation == record.job.generation and record.store is None:
        record.store = (event.host, event.port)
        for rank, slot in enumerate(record.job.placement):
            record.processes[event.generation, rank] = Process(slot)


def rank_started(record: Record, event: RankStarted) -> None:
    process = record.processes.get((event.generation, event.rank))
    if process is None or process.is_started:
        return
    record.processes[event.generation, event.rank] = replace(process, is_started=True)
    if event.generation != record.job.generation:
        return
    record.change(alive=record.job.alive | {event.rank})
    everybody = len(record.job.alive | record.job.exited) == record.job.workers
    if everybody and record.job.state is JobState.STARTING and not record.job.kept:
        record.job = step(record.job, Cause.GANG_STARTED)
        record.change(started_s=event.time_s if record.job.started_s is None else record.job.started_s)


def rank_ready(record: Record, event: RankReady) -> None:
    job = record.job
    if event.generation != job.generation or job.state.is_final:
        return
    if event.movable:
        record.signatures[event.rank] = event.signature
        record.unmovable.pop(event.rank, None)
    else:
        record.unmovable[event.rank] = event.why_not or "its script cannot hand over its state"
    why_not = "; ".join(dict.fromkeys(why for _, why in sorted(record.unmovable.items())))
    profile = replace(
        job.profile,
        state_bytes=max(job.profile.state_bytes, event.state_bytes),
        private_bytes=max(job.profile.private_bytes, event.private_bytes),
    )
    record.change(movable=not why_not and len(record.signatures) == job.workers, why_not=why_not, profile=profile)


def progressed(record: Record, event: Progressed) -> None:
    """Take over what was measured. The slowest rank computes longest and so waits least: exposed time is the least of all."""
    job = record.job
    is_new = job.switch and record.is_committed and event.generation == job.switch.generation
    if job.state.is_final or not (event.generation == job.generation or is_new):
        return
    record.known_step = max(record.known_step, event.step)
    record.progress[event.rank] = event
    hangs.progressed(record, event)
    latest = list(record.progress.values())
    profile = replace(
        job.profile,
        step_s=max(report.step_s for report in latest),
        exposed_s=min(report.exposed_s for report in latest),
        wire_bytes=max(report.wire_bytes for report in latest),
        memory_bytes=max(report.memory_bytes for report in latest),
        valley_bytes=max(report.valley_bytes for report in latest),
        data_s=min(report.data_s for report in latest),
        waited_s=max(report.waited_s for report in latest),
        held_s=max(report.held_s for report in latest),
    )
    if not job.switch and all(slot.share == 1.0 for slot in job.placement):  # a partner that is told to leave is still there
        profile = replace(profile, alone_step_s=profile.step_s)
    if (
        not is_scattered(job.placement)
        and profile.exposed_s > 0
        and profile.wire_bytes >= LEARNING_BYTES_MIN
        and job.workers > 1
    ):
        profile = replace(profile, local_bytes_per_s=ring_bytes(job.workers, profile.wire_bytes) / profile.exposed_s)
    if job.is_resizable and len(devices_of(job.placement)) == job.workers:
        computing_s = profile.step_s - profile.exposed_s - profile.waited_s
        by_size = {**dict(profile.by_size), job.workers: computing_s}
        profile = replace(profile, by_size=tuple(sorted(by_size.items())))
    total = event.steps_total if event.steps_total is not None else job.steps_total
    steps_done = min(report.step for report in latest)
    record.change(profile=profile, steps_done=steps_done, steps_total=total, seen_s=event.time_s)


def launch_failed(record: Record, event: LaunchFailed, config: CoreConfig) -> None:
    """A rank could not be started (rank -1: the whole gang)."""
    job = record.job
    record.processes.pop((event.generation, event.rank), None)
    if job.switch and event.generation == job.switch.generation:
        twin = f"the twin of rank {event.rank} on {event.node} could not be started" if event.rank >= 0 else "the twins"
        switching.fail(record, f"{twin}: {event.reason}", event.time_s, config)
    elif suspending.is_resuming(record, event.generation):
        who = f"rank {event.rank} on {event.node} could not be started: " if event.rank >= 0 else ""
        suspending.fail(record, who + event.reason, event.time_s, config)
    elif event.generation == job.generation and job.state is JobState.STARTING:
        who = f"rank {event.rank} on {event.node}" if event.rank >= 0 else "the gang"
        is_ours = bool(event.node) and event.rank < 0  # its store could not be opened, which is not the job's fault
        if is_ours and record.early_losses < EARLY_LOSSES_MAX:
            record.early_losses += 1
            end(record, JobState.PENDING, f"{who} could not be started: {event.reason}; it starts again", event.time_s)
            return
        end(record, JobState.FAILED, f"{who} could not be started: {event.reason}", event.time_s)


def rank_exited(record: Record, event: RankExited, config: CoreConfig) -> None:
    """A process is gone: a rank of the gang, a twin, or a leaver; by its key it is found at most once."""
    key = _find(record, event)
    if key is None:
        return
    job, switch = record.job, record.job.switch
    del record.processes[key]
    switching.leaver_gone(record)
    if job.state.is_final or key[0] not in (job.generation, switch.generation if switch else job.generation):
        return  # it was residue
    if suspending.leaver_exited(record, event):
        return
    if suspending.is_resuming(record, key[0]):
        record.change(alive=job.alive - {event.rank})
        suspending.fail(record, f"rank {event.rank} on {event.node} {ending_words(event)}", event.time_s, config)
        return
    if switch and record.is_committed and not switch.placement:
        if event.code != 0:
            gang_exited(record, event)
        else:  # it ended by itself, or it left and nobody could say so: the others know
            record.exits[key] = event
            switching.decide(record, event.time_s, config)
        return
    if switch and record.is_committed:
        stays = switch.placement[event.rank][:2] == job.placement[event.rank][:2]
        if stays and (event.code > 0 or (event.code < 0 and not recovery.may_save(job))):
            earlier = [e for (generation, _), e in record.exits.items() if generation == job.generation and e.code != 0]
            for lost in (*earlier, event):  # whatever the verdict, this rank is needed and lost; the first is the cause
                gang_exited(record, lost)
        else:
            record.exits[key if event.role == "leaver" else (event.generation, event.rank)] = event
            switching.decide(record, event.time_s, config)
    elif switch and key[0] == switch.generation:
        if record.is_uncommitted:
            why = f"the twin of rank {event.rank} on {event.node} {ending_words(event)}"
            switching.fail(record, why, event.time_s, config)
    elif key[0] == job.generation:
        lost_twin = event.code != 0 and switching.may_go_back(record, event.rank)
        rehearses = switch is not None and event.rank not in switch.parked
        is_quicker = rehearses and recovery.may_save(job)  # to come back from what is left than to wait for the twin
        if lost_twin or (not is_quicker and switching.rescue(record, event)):
            record.exits[key] = event
        else:
            gang_exited(record, event)


def catch_up(record: Record) -> None:
    """Exits that had to wait for the verdict of a switch happen now. Errors first: they say why the others left."""
    if not record.exits or record.is_committed:
        return
    held, record.exits = record.exits, {}
    if record.job.state is JobState.RUNNING and not record.job.switch:  # wait for those that may go back
        record.exits = {k: e for k, e in held.items() if k[0] == record.job.generation and switching.may_go_back(record, k[1])}
        held = {key: event for key, event in held.items() if key not in record.exits}
    for (generation, _), event in sorted(held.items(), key=lambda item: (item[1].code == 0, item[0])):
        if generation == record.job.generation and not record.job.state.is_final:
            gang_exited(record, event)
    for event in held.values():
        if event.reason.startswith("node "):  # the verdict may have been that it goes on there
            plan_without(record, event.node, event.reason, event.time_s)


def gang_exited(record: Record, event: RankExited) -> None:
    """A rank of the present generation is gone."""
    record.change(alive=record.job.alive - {event.rank})
    if record.job.state is JobState.STOPPING:
        if record.rescue:
            recovery.lose(record, event)
        return
    if recovery.begin(record, event):
        return
    if event.code != 0:
        is_node_lost = event.reason.startswith("node ")
        reason = f"rank {event.rank} on {event.node} {ending_words(event)}"
        reason = f"{event.reason}, and rank {event.rank} with it" if is_node_lost else reason
        if event.code < 0:
            record.count_loss(record.job.steps_done)
            if record.hopeless:
                reason = f"{reason}; {record.hopeless}"
            elif checkpoints.fall_back(record, reason, event.time_s) or start_anew(record, reason, event.time_s):
                return
        if retry(record, reason, event.time_s):
            return
        record.change(exit_code=event.code)
        gone = ", ".join(f"rank {rank}" for rank in sorted(record.job.exited))
        if gone and event.code > 0:
            then = reason if len(reason) <= THEN_MAX else f"{reason[:THEN_MAX]}..."  # a collective's error, which says little
            reason = f"{gone} ended by itself while others trained; then {then}"
        end(record, JobState.FAILED, reason, event.time_s)
        return
    record.change(exited=record.job.exited | {event.rank})
    switching.give_up(record, "the job ended by itself", event.time_s)
    if len(record.job.exited) == record.job.workers:
        finish(record, event.time_s)


def start_anew(record: Record, reason: str, time_s: float) -> bool:
    """A rank was lost before the job had made its first steps: there is nothing yet that could be lost with it."""
    job = record.job
    has_begun = job.movable or bool(record.unmovable) or job.steps_done >= FIRST_STEPS
    is_ours = bool(record.progress or record.signatures)  # a script without the SDK says nothing; to run it twice may do harm
    may_not = not job.spec.recover or job.cancel_asked or record.early_losses >= EARLY_LOSSES_MAX or record.is_committed
    if has_begun or not is_ours or may_not:
        return False
    record.early_losses += 1
    end(record, JobState.PENDING, f"{reason}, before the job had made its first steps; it starts again", time_s)
    return True


def retry(record: Record, reason: str, time_s: float) -> bool:
    """An error of its own, or a loss that nothing is left of: once more, if its spec wants that, from its last checkpoint or else
    from the start."""
    job = record.job
    if job.retried >= job.spec.retries or job.cancel_asked or job.state is JobState.STOPPING:
        return False
    reason = f"{reason}; try {job.retried + 2} of {job.spec.retries + 1}"
    record.change(retried=job.retried + 1)
    if not checkpoints.fall_back(record, reason, time_s):
        end(record, JobState.PENDING, reason, time_s)
    return True


def finish(record: Record, time_s: float) -> None:
    """Every rank exited with 0."""
    record.job = step(record.job, Cause.GANG_FINISHED)
    record.change(
        placement=(), intended=(), alive=frozenset(), switch=None, ended_s=time_s, exit_code=0, reason="ended by itself"
    )


def end(record: Record, ending: JobState, reason: str, time_s: float) -> None:
    """Stop what is left; `ending` follows when the last process is gone. A cancel or a failure beats a restart, the
    first of them stays."""
    job = record.job
    if job.state is JobState.PENDING:
        record.job = step(job, Cause.CANCELLED_UNPLACED)
        record.change(intended=(), ended_s=time_s, reason=reason)
        suspending.without_kept(record)
        return
    if job.state is JobState.STOPPING and record.ending is not JobState.PENDING:
        return
    if job.state is not JobState.STOPPING:
        leave_switch(record, reason, time_s)
        record.job = step(record.job, Cause.STOP)
        record.change(switch=None)
    record.ending, record.rescue = ending, None
    record.change(reason=reason)
    if ending is not JobState.PENDING:
        record.change(intended=())


def leave_switch(record: Record, reason: str, time_s: float) -> None:
    """The gang ends: a switch under way does, too."""
    if record.job.switch and record.is_committed:
        record.torn = record.job.switch.generation
    switching.give_up(record, reason, time_s)


def gone(record: Record, time_s: float) -> None:
    """The last process of a job that was told to stop is gone."""
    assert record.ending is not None
    record.job = step(record.job, GONE[record.ending])
    record.change(placement=(), alive=frozenset(), exited=frozenset(), movable=False)
    if record.job.state.is_final:
        record.change(ended_s=time_s)
        suspending.without_kept(record)


def plan_without(record: Record, node: str, reason: str, time_s: float) -> None:
    """Nobody can be on `node` any more."""
    if node in nodes_of(record.job.pinned):
        record.change(pinned=())
    job = record.job
    if job.state is JobState.STARTING and node in nodes_of(job.placement):
        end(record, JobState.PENDING, f"node {node} was lost ({reason}) before the job ran", time_s)
    if node in nodes_of(record.job.intended):
        keeps = job.state in (JobState.STARTING, JobState.RUNNING) and node not in nodes_of(job.placement)
        record.change(intended=job.placement if keeps else ())


def ending_words(event: RankExited) -> str:
    """`exited with code 1: ValueError: x`, `was killed by signal 9`, or that its node was lost."""
    if event.reason.startswith("node "):
        return f"is lost: {event.reason}"
    how = f"exited with code {event.code}" if event.code >= 0 else f"was ended by signal {-event.code}"
    return f"{how}: {event.reason}" if event.reason else how


def _find(record: Record, event: RankExited) -> tuple[int, int] | None:
    """The process that the event is about. Staying ranks change their generation during a switch, and a leaver may be
    reported by either number, so both are looked for; a rank that moves is told from its twin by the node and the role."""
    job = record.job
    newer = job.switch.generation if job.switch and record.is_committed else record.torn
    if event.role == "leaver":
        current = newer or job.generation
        for key, process in sorted(record.processes.items()):
            if (
                key[1] == event.rank
                and key[0] < current
                and key[0] <= event.generation
                and process.slot.node == event.node
            ):
                return key
        return None
    key = (event.generation, event.rank)
    if key in record.processes:
        return key
    older = (job.generation, event.rank)
    if (
        newer
        and event.generation == newer
        and older in record.processes
        and record.processes[older].slot.node == event.node
    ):
        return older
    return None
