"""Which jobs share devices, and how: who may join whom, what each one's gate does, and when they part again.

A pending gang that finds no free devices may join running ones on exactly their devices, when the linear-programming bound
(bound.py) of what was measured of them promises enough and nobody forbids it. Afterwards the measurement counts, not the
promise: a protected job's step time cuts the share of who runs in its gaps (multiplicatively; it grows again slowly), and
jobs that together bring no more than taking turns are put on turns, or moved apart as soon as there are free devices.

Stateless: what was tried is in the jobs (Job.sharing, Job.friendliness). Does not know how a gate works, nor when devices are free.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from restow.bound import Demand, best_total
from restow.cluster import Snapshot
from restow.job import Job, JobState, Profile, ShareSpec, Sharing
from restow.perf import communication_s
from restow.placement import Placement

PROTECTED, ORDINARY, BEST_EFFORT = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingConfig:
    total_min: float = 1.2  # promised sum of relative speeds from which on a pair is tried
    kept_min: float = 1.05  # measured sum below which it is given up
    steps_min: int = 20  # of a running job before its measurement counts
    jobs_max: int = 3  # on one device: with more, hand-overs and caches eat what is gained
    settle_s: float = 4.0  # after a change, before what is measured counts ...
    settle_steps: int = 15  # ... and so many steps: medians are over the last 15
    decrease: float = 0.7  # of a best-effort job's part when the protected job is hurt
    increase: float = 0.05  # added when it is not
    part_min: float = 0.05  # below it the best-effort job is parted
    swap_budget: float = 0.05  # of the time that swapping between turns may take
    quantum_s: float = 5.0  # of a turn where nothing is swapped: long against a step, short against a person's patience


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """A pending job joins `hosts` on their devices."""

    hosts: tuple[Job, ...]
    total: float  # promised sum of relative speeds

    @property
    def placement(self) -> Placement:
        return shared(self.hosts[0].intended, len(self.hosts) + 1)


def shared(placement: Placement, jobs: int) -> Placement:
    """The same devices, as one of so many jobs on them."""
    return tuple(slot._replace(share=1.0 / jobs) for slot in placement)


def devices_of(placement: Placement) -> frozenset[tuple[str, int]]:
    return frozenset(slot[:2] for slot in placement)


def demand_of(job: Job, snapshot: Snapshot) -> Demand:
    """What one step needs, as measured. Of a job that never ran: that it computes all the time, the worst case for sharing."""
    profile = job.profile
    if profile.step_s <= 0:
        return Demand(period_s=1.0, device_s=1.0, network_s=0.0)
    period_s = alone_s(profile)
    hidden_s = communication_s(job.intended, profile.wire_bytes, snapshot, profile.local_bytes_per_s) if job.intended else 0.0
    network_s = min(period_s, max(profile.exposed_s, hidden_s))
    device_s = profile.held_s or period_s - profile.exposed_s - profile.data_s
    return Demand(period_s=period_s, device_s=max(0.0, min(period_s, device_s)), network_s=network_s)


def alone_s(profile: Profile) -> float:
    """Seconds per step alone: measured when it was, else what is left without the waits at the gate."""
    return profile.alone_step_s or profile.step_s - profile.waited_s


def speed_of(job: Job) -> float:
    """Relative to alone; 1.0 while nothing is known."""
    return min(1.0, alone_s(job.profile) / job.profile.step_s) if job.profile.step_s > 0 else 1.0


# ---------------------------------------------------------------- who joins whom


def pairing_for(job: Job, snapshot: Snapshot, config: SharingConfig) -> tuple[Pairing | None, str]:
    """The best devices to share for a pending job, or why there are none (empty: nothing worth saying)."""
    if not job.share.allow or job.share.mode == "exclusive":
        return None, "its spec does not let it share devices"
    found, reasons = [], []
    for hosts in groups(snapshot):
        why_not = hindrance(job, hosts, snapshot, config)
        if why_not:
            reasons.append(why_not)
            continue
        total = best_total([demand_of(other, snapshot) for other in (*hosts, job)])
        if total < config.total_min and job.share.mode == "auto":
            names = " and ".join(host.id for host in hosts)
            reasons.append(f"with {names} it would bring {total:.2f} of one job alone, worth it from {config.total_min:g} on")
            continue
        found.append(Pairing(hosts=hosts, total=total))
    if not found:
        return None, reasons[0] if reasons else ""
    return min(found, key=lambda pairing: (-pairing.total, len(pairing.hosts), [host.id for host in pairing.hosts])), ""


def groups(snapshot: Snapshot) -> Iterator[tuple[Job, ...]]:
    """Running jobs by the devices that they hold, oldest first."""
    by_devices: dict[frozenset[tuple[str, int]], list[Job]] = {}
    for job in snapshot.jobs:
        if job.intended and job.state in (JobState.RUNNING, JobState.STARTING):
            by_devices.setdefault(devices_of(job.intended), []).append(job)
    yield from map(tuple, by_devices.values())


def hindrance(job: Job, hosts: Sequence[Job], snapshot: Snapshot, config: SharingConfig) -> str:
    """Why this pending job cannot join these; empty when it can."""
    everybody = [*hosts, job]
    names = " and ".join(host.id for host in hosts)
    if len(everybody) > config.jobs_max:
        return f"{names} share their devices already"
    for host in hosts:
        if not host.share.allow or host.share.mode == "exclusive":
            return f"{host.id} does not share its devices"
        if host.workers != job.workers:
            return f"{host.id} has {host.workers} workers, and jobs that share must have the same devices"
        if host.state is not JobState.RUNNING or host.switch or host.intended != host.placement or host.exited:
            return f"{host.id} is starting, moving or ending"
        if host.steps_done < config.steps_min or host.profile.step_s <= 0:
            return f"{host.id} has not made {config.steps_min} steps yet"
        known = dict(host.friendliness).get(job.id)
        if known is not None and known < config.kept_min:
            return f"with {host.id} it brought {known:.2f} of one job alone when it was tried"
    if sum(other.share.protect for other in everybody) > 1:
        return f"{names} and it are both protected"
    return memory_hindrance(everybody, snapshot)


def memory_hindrance(jobs: Sequence[Job], snapshot: Snapshot) -> str:
    """Why the devices cannot hold these jobs together, not even in turns with what does not fit swapped out; empty: they can."""
    size = device_bytes(jobs, snapshot)
    largest = max(peak_bytes(job) for job in jobs)
    if size and largest > size:
        return f"one of them alone needs {largest / 1e9:.3g} GB of the {size / 1e9:.3g} GB of a device"
    return ""


def device_bytes(jobs: Iterable[Job], snapshot: Snapshot) -> int:
    """Memory of the smallest device that they use; 0: not known."""
    found = []
    for job in jobs:
        for slot in job.intended:
            node = snapshot.node(slot.node)
            found += [d.memory_bytes for d in (node.devices if node else ()) if d.index == slot.device and d.memory_bytes]
    return min(found, default=0)


def peak_bytes(job: Job) -> int:
    """Of one worker: what its limit allows, else what was measured or declared."""
    return job.share.memory_bytes or max(job.profile.memory_bytes, job.spec.memory_bytes)


def valley_bytes(job: Job) -> int:
    return min(peak_bytes(job), job.profile.valley_bytes or job.profile.state_bytes or peak_bytes(job))


def fits(jobs: Sequence[Job], snapshot: Snapshot) -> str:
    """`peaks`: all fit at once; `valleys`: all but one at a save point, so turns inside a step do; `swap`: only in turns."""
    size = device_bytes(jobs, snapshot)
    if not size or sum(map(peak_bytes, jobs)) <= size:
        return "peaks"
    largest = max(peak_bytes(job) - valley_bytes(job) for job in jobs)
    return "valleys" if sum(map(valley_bytes, jobs)) + largest <= size else "swap"


def overflow_bytes(job: Job, jobs: Sequence[Job], snapshot: Snapshot) -> int:
    """What a worker of `job` must move out between its turns: its part of what the others and their largest peak leave no room
    for. At most its state. Rounded up to 1 MB, so that a measurement that trembles changes nothing."""
    size = device_bytes(jobs, snapshot)
    if not size:
        return 0
    others = [other for other in jobs if other is not job]
    growth = max((peak_bytes(other) - valley_bytes(other) for other in others), default=0)
    too_much = sum(map(valley_bytes, jobs)) + growth - size
    return max(0, min(valley_bytes(job), -(-too_much // 2**20) * 2**20))


# ---------------------------------------------------------------- how a group shares


def regulated(jobs: Sequence[Job], snapshot: Snapshot, config: SharingConfig) -> dict[str, Sharing]:
    """How the jobs of one group are to share from now on, by job. The same again while nothing new was measured."""
    mode = mode_of(jobs, snapshot, config)
    levels = levels_of(jobs)
    guard = next((job for job in jobs if levels[job.id] == PROTECTED), None)
    total = best_total([demand_of(job, snapshot) for job in jobs])
    found = {}
    for job in jobs:
        before = job.sharing
        wanted = Sharing(
            mode=mode,
            partners=tuple(sorted(other.id for other in jobs if other is not job)),
            level=levels[job.id],
            part=before.part if before and before.level == levels[job.id] == BEST_EFFORT else 1.0,
            quantum_s=(job.share.quantum_s or config.quantum_s) if mode == "time-slice" else 0.0,
            swap_bytes=overflow_bytes(job, jobs, snapshot) if mode == "time-slice" else 0,
        )
        if before and replace(wanted, since_s=before.since_s, total_predicted=before.total_predicted) == before:
            wanted = before
            if guard and levels[job.id] == BEST_EFFORT and is_settled(job, guard, snapshot.now_s, config):
                wanted = guarded(before, guard, snapshot.now_s, config)
        else:
            wanted = replace(wanted, since_s=snapshot.now_s, total_predicted=total)
        found[job.id] = wanted
    return found


def mode_of(jobs: Sequence[Job], snapshot: Snapshot, config: SharingConfig) -> str:
    """free, interleave or time-slice, for all of them: what any was asked to do, else what memory demands, else turns inside a
    step unless these jobs were measured to bring nothing that way."""
    asked = {job.share.mode for job in jobs}
    if "time-slice" in asked or fits(jobs, snapshot) == "swap":
        return "time-slice"
    if "free" in asked:
        return "free"
    if "interleave" not in asked and not any(job.share.protect or job.share.mode == "best-effort" for job in jobs):
        names = {job.id for job in jobs}
        totals = [total for job in jobs for other, total in job.friendliness if other in names]
        if totals and min(totals) < config.kept_min:
            return "time-slice"
    return "interleave"


def levels_of(jobs: Sequence[Job]) -> dict[str, int]:
    """Beside a protected job everybody else is best effort."""
    protected = any(job.share.protect for job in jobs)
    return {
        job.id: PROTECTED if job.share.protect else BEST_EFFORT if protected or job.share.mode == "best-effort" else ORDINARY
        for job in jobs
    }


def is_settled(job: Job, guard: Job, now_s: float, config: SharingConfig) -> bool:
    """Does what is measured of the protected job tell of this job's present part?"""
    assert job.sharing
    return now_s - job.sharing.since_s >= max(config.settle_s, config.settle_steps * guard.profile.step_s)


def guarded(sharing: Sharing, guard: Job, now_s: float, config: SharingConfig) -> Sharing:
    """The part of a best-effort job after one more look at the job that it must not hurt: additive increase, multiplicative
    decrease (Chiu and Jain, 1989; as TGS, NSDI 2023, does it for launch rates)."""
    hurt = slowdown_of(guard)
    if hurt > guard.share.slowdown_max:
        return replace(sharing, part=max(0.0, sharing.part * config.decrease), since_s=now_s)
    if hurt < guard.share.slowdown_max / 2 and sharing.part < 1.0:
        return replace(sharing, part=min(1.0, sharing.part + config.increase), since_s=now_s)
    return sharing


def slowdown_of(job: Job) -> float:
    """How much longer its steps are than alone, as a part (0.03: 3 %)."""
    alone = alone_s(job.profile)
    return job.profile.step_s / alone - 1.0 if alone > 0 else 0.0


def who_leaves(jobs: Sequence[Job], config: SharingConfig) -> tuple[Job, str] | None:
    """The job that should get devices of its own, and why; None: they may stay together."""
    levels = levels_of(jobs)
    for job in jobs:
        if job.sharing and job.sharing.level == BEST_EFFORT and job.sharing.part < config.part_min:
            return job, "its share beside a protected job has become too small"
    names = {job.id for job in jobs}
    totals = [total for job in jobs for other, total in job.friendliness if other in names]
    if totals and min(totals) < config.kept_min:
        last = max(jobs, key=lambda job: (levels[job.id], job.submitted_s, job.id))
        return last, f"together they bring {min(totals):.2f} of one job alone"
    return None


def why(job: Job, sharing: Sharing, share: ShareSpec) -> str:
    """One line for a person."""
    others = " and ".join(sharing.partners)
    if sharing.mode == "time-slice":
        return f"takes turns of {sharing.quantum_s:g} s with {others}"
    if sharing.level == PROTECTED:
        return f"goes first; {others} runs in its idle time"
    if sharing.level == BEST_EFFORT:
        return f"runs in the idle time of {others}, {sharing.part:.0%} of what it asks for"
    return f"computes while {others} waits, and the other way round"
