"""Jobs that stand still and ranks that are slow: who is the cause, and what is done about it, as the spec says.

All ranks of a gang stand still when one does. The cause is whoever does not answer; else whoever has given less to collectives than
the others; else whoever does not wait in one. Where all wait for each other it is nobody: the network, or the script.
"""

from __future__ import annotations

from statistics import median

from restow.core.config import CoreConfig
from restow.core.record import Record
from restow.job import JobState
from restow.messages import Event, JobHung, Progressed, RankHung, RankSlow

SLOW_TIMES, SLOW_S_MIN = 2.0, 0.005  # of the others' median, and so much longer at least


def rank_hung(record: Record, event: RankHung) -> None:
    if event.generation == record.job.generation and record.job.state is JobState.RUNNING:
        record.hung[event.rank] = event


def progressed(record: Record, event: Progressed) -> None:
    """It goes on: nothing was wrong, or is any more."""
    if record.hung and any(event.step > hung.step for hung in record.hung.values()):
        record.hung, record.hang_told = {}, False
        if record.job.reason.startswith("stands still"):
            record.change(reason="goes on by itself")


def hang_due(record: Record, now_s: float, config: CoreConfig) -> list[Event]:
    """Everybody has said where it is, or had the time to."""
    job, hung = record.job, record.hung
    if not hung or record.hang_told or job.state is not JobState.RUNNING:
        return []
    first_s = min(event.time_s for event in hung.values())
    if len(hung) < job.workers and now_s - first_s < config.hung_s:
        return []
    causes = causes_of(list(hung.values()))
    silent_s = max(event.silent_s for event in hung.values())
    names = [_where(hung[rank]) for rank in causes]
    why = " and ".join(names) if names else "all ranks wait for each other"
    reason = f"stands still for {silent_s:.0f} s at step {min(event.step for event in hung.values())}: {why}"
    return [JobHung(time_s=now_s, job=job.id, generation=job.generation, node="", ranks=causes, reason=reason)]


def causes_of(hung: list[RankHung]) -> tuple[int, ...]:
    """The ranks for which the others wait; none where all wait alike."""
    silent = [event.rank for event in hung if event.given < 0]
    if silent:
        return tuple(sorted(silent))
    least, most = min(event.given for event in hung), max(event.given for event in hung)
    if least < most:
        return tuple(sorted(event.rank for event in hung if event.given == least))
    return tuple(sorted(event.rank for event in hung if not event.waits))


def job_hung(record: Record, event: JobHung) -> None:
    """Said to the user; where the spec wants it, the cause is ended, and so is lost as if it had died by itself."""
    job = record.job
    if event.generation != job.generation or job.state is not JobState.RUNNING:
        return
    record.hang_told = True
    record.change(reason=event.reason)
    if job.spec.on_hang == "replace" and job.movable:
        record.doomed = frozenset(event.ranks)


def slow_due(record: Record, now_s: float) -> list[RankSlow]:
    """A rank that computes much longer than its peers, by the last word of all of them."""
    job, words = record.job, record.progress
    if job.state is not JobState.RUNNING or job.switch or job.sharing or len(words) < max(2, job.workers):
        return []
    own = {rank: word.step_s - word.exposed_s - word.waited_s - word.data_s for rank, word in words.items()}
    found: list[RankSlow] = []
    for rank, seconds in sorted(own.items()):
        others = median(s for other, s in own.items() if other != rank)
        if rank not in job.slow and seconds > SLOW_TIMES * others and seconds - others > SLOW_S_MIN:
            found.append(RankSlow(
                time_s=now_s, job=job.id, generation=job.generation, node="", rank=rank, own_s=seconds, others_s=others
            ))  # fmt: skip
    return found


def rank_slow(record: Record, event: RankSlow) -> None:
    if event.generation == record.job.generation:
        slot = record.job.placement[event.rank]
        times, spent = event.own_s / event.others_s if event.others_s > 0 else 0.0, f"{1e3 * event.own_s:.0f} ms of a step"
        words = f"rank {event.rank} on {slot} computes {times:.1f} times as long as the others ({spent})"
        record.change(slow=record.job.slow | {event.rank}, reason=words)


def _where(event: RankHung) -> str:
    if event.given < 0:
        return f"rank {event.rank} on {event.node} does not answer (stopped, or in a call that holds its interpreter)"
    return f"rank {event.rank} on {event.node} is at {event.at or 'an unknown place'}"
