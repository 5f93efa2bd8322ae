"""Which jobs share devices, and how: who may join whom, what each one's gate does, and when they part again.

A pending gang that finds no free devices may join running ones on exactly their devices, when the linear-programming bound
(bound.py) of what was measured of them promises enough and nobody forbids it. Afterwards the measurement counts, not the
promise: a protected job's step time cuts the share of who runs in its gaps (multiplicatively; it grows again slowly), and
jobs that together bring no more than taking turns are put on turns, or moved apart as soon as there are free devices.

Stateless: what was tried is in the jobs (Job.sharing, Job.tried, Job.friendliness). Does not know how a gate works, nor when
devices are free.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from restow.bound import Demand, best_total, fair_speed
from restow.cluster import Snapshot
from restow.job import Job, JobState, Sharing
from restow.perf import communication_s
from restow.placement import Placement
from restow.policies.newcomer import NewcomerConfig, newcomer_of, seen_alone
from restow.policies.protection import ProtectionConfig, alone_s, guarded, is_settled, since, slowdown_of

PROTECTED, ORDINARY, BEST_EFFORT = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingConfig:
    total_min: float = 1.2  # promised sum of relative speeds from which on a pair is tried
    kept_min: float = 1.05  # measured sum below which it is given up
    turns_min: float = 0.8  # the same in time slices, which bring 1.0 at best: swapping and cold caches take their part
    steps_min: int = 20  # of a running job before its measurement counts
    jobs_max: int = 3  # on one device: with more, hand-overs and caches eat what is gained
    free_min: float = 1.1  # jobs that together want so many times the device are also tried without turns inside a step ...
    free_gain: float = 1.02  # ... and stay so if they bring so many times what turns bring; equal shares are worth something
    link_min: float = 1.0  # the link's gate is used where jobs need the link more than so many times their devices ...
    link_kept: float = 0.8  # ... and until they need it less than that
    protection: ProtectionConfig = field(default_factory=ProtectionConfig)
    newcomer: NewcomerConfig = field(default_factory=NewcomerConfig)
    quantum_s: float = 5.0  # of a turn: long against a step, short against a person's patience; longer where swapping takes long


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """A pending job joins `hosts` on their devices."""

    hosts: tuple[Job, ...]
    total: float  # promised sum of relative speeds
    in_turns: bool = False  # not all of it fits the devices at once

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
    period_s = alone_s(job)
    hidden_s = communication_s(job.intended, profile.wire_bytes, snapshot, profile.local_bytes_per_s) if job.intended else 0.0
    network_s = min(period_s, max(profile.exposed_s, hidden_s))
    device_s = profile.held_s or period_s - profile.exposed_s - profile.data_s
    return Demand(period_s=period_s, device_s=max(0.0, min(period_s, device_s)), network_s=network_s)


def speed_of(job: Job) -> float:
    """Relative to alone, but for the waits between time slices, which medians do not see; 1.0 while nothing is known."""
    return min(1.0, alone_s(job) / job.profile.step_s) if job.profile.step_s > 0 else 1.0


def promise(jobs: Sequence[Job], snapshot: Snapshot) -> float:
    """The sum of relative speeds that these jobs should reach: the bound, less what the least friendly of them missed so far."""
    return best_total([demand_of(job, snapshot) for job in jobs]) * min(job.friendliness for job in jobs)


# ---------------------------------------------------------------- who joins whom


def pairing_for(job: Job, snapshot: Snapshot, config: SharingConfig) -> tuple[Pairing | None, str]:
    """The best devices to share for a pending job, or why there are none (empty: nothing worth saying)."""
    if job.share.is_exclusive:
        return None, "its spec does not let it share devices"
    found, reasons = [], []
    for hosts in groups(snapshot):
        if job in hosts:
            continue
        why_not = hindrance(job, hosts, snapshot, config)
        if why_not:
            reasons.append(why_not)
            continue
        total = promise([*hosts, job], snapshot)
        goes_first = job.share.protect and all(host.share.mode == "best-effort" for host in hosts)  # they only have what it leaves
        if total < config.total_min and job.share.mode == "auto" and not goes_first:
            names = " and ".join(host.id for host in hosts)
            reasons.append(f"with {names} it would bring {total:.2f} of one job alone, worth it from {config.total_min:g} on")
            continue
        found.append(Pairing(hosts=hosts, total=total, in_turns=fits([*hosts, job], snapshot) == "swap"))
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
        if host.share.is_exclusive:
            return f"{host.id} does not share its devices"
        if len(devices_of(host.intended)) < host.workers:
            return f"{host.id} has fewer devices than ranks, which take turns already"
        if host.workers != job.workers:
            return f"{host.id} has {host.workers} worker{'s' * (host.workers != 1)}, and jobs that share must have the same devices"
    why_not = memory_hindrance(everybody, snapshot)
    if why_not:
        return why_not
    for host in hosts:
        if host.state is not JobState.RUNNING or host.switch or host.intended != host.placement or host.exited:
            return f"{host.id} is starting, moving or ending"
        if host.steps_done < config.steps_min or host.profile.step_s <= 0:
            return f"{host.id} has not made {config.steps_min} steps yet"
        known = totals_of([host, job])
        if known and worth(known) < config.kept_min:
            return f"with {host.id} it brought {worth(known):.2f} of one job alone when it was tried"
    if sum(other.share.protect for other in everybody) > 1:
        return f"{names} and it are both protected"
    return limit_hindrance(everybody, snapshot)


def limit_hindrance(jobs: Sequence[Job], snapshot: Snapshot) -> str:
    """Which of these jobs would be slowed down by more than it said it can bear; empty: none. A protected one is seen to by its
    guard, one in its gaps bears everything."""
    levels = levels_of(jobs)
    speed = 1.0 / len(jobs) if fits(jobs, snapshot) == "swap" else fair_speed([demand_of(job, snapshot) for job in jobs])
    for job in jobs:
        if levels[job.id] == ORDINARY and job.share.max_slowdown and 1.0 / speed - 1.0 > job.share.max_slowdown:
            return f"steps of {job.id} would take {1.0 / speed - 1.0:.0%} longer, and it allows {job.share.max_slowdown:.0%}"
    return ""


def memory_hindrance(jobs: Sequence[Job], snapshot: Snapshot) -> str:
    """Why the devices cannot hold these jobs together, not even in turns with what does not fit swapped out; empty: they can."""
    size = device_bytes(jobs, snapshot)
    largest = max(peak_bytes(job) for job in jobs)
    if size and largest > size:
        return f"one of them alone needs {largest / 1e9:.3g} GB of the {size / 1e9:.3g} GB of a device"
    protected = [job.id for job in jobs if job.share.protect]
    if protected and fits(jobs, snapshot) == "swap":
        return f"they do not fit a device of {size / 1e9:.3g} GB at once, and {protected[0]}, which is protected, takes no turns"
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
    """Of one worker: what its limit allows, else what was declared; more if more was measured, since a limit that was asked for
    later counts from its next start."""
    return max(job.profile.memory_bytes, job.share.memory_bytes or job.spec.memory_bytes)


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
    total = 1.0 if mode == "time-slice" else best_total([demand_of(job, snapshot) for job in jobs])
    link_node = link_node_of(jobs, snapshot, config) if mode == "interleave" else ""
    newcomer = newcomer_of(jobs) if mode == "interleave" else None
    found, is_known = {}, True
    for job in jobs:
        before = job.sharing
        is_as_before = before is not None and before.level == levels[job.id]
        is_guarded = guard is not None and is_as_before and levels[job.id] == BEST_EFFORT  # else nobody would give it back
        gives_way = guard is None and newcomer not in (None, job) and before is not None and before.mode == mode
        wanted = Sharing(
            mode=mode,
            partners=tuple(sorted(other.id for other in jobs if other is not job)),
            level=levels[job.id],
            part=before.part if before and (is_guarded or gives_way) else 1.0,
            held_part=before.held_part if before and (is_guarded or gives_way) else 0.0,
            is_doubted=before.is_doubted if before and is_guarded else False,
            quantum_s=(job.share.quantum_s or config.quantum_s) if mode == "time-slice" else 0.0,
            swap_bytes=overflow_bytes(job, jobs, snapshot) if mode == "time-slice" else 0,
            is_tight=mode == "interleave" and fits(jobs, snapshot) != "peaks",
            link_node=link_node,
            alone_step_s=_alone_step_s(job, mode, is_guard=job is guard),
            alone_at_s=0.0 if job is not guard else before.alone_at_s if before and is_as_before else snapshot.now_s,
        )
        kept = replace(
            wanted, since_s=before.since_s, since_steps=before.since_steps, total_predicted=before.total_predicted
        ) if before else None  # fmt: skip
        if before and kept == before:
            found[job.id] = before
        else:
            found[job.id] = replace(wanted, total_predicted=total, **since(job, guard or job, snapshot.now_s))
            is_known = False
    if guard and is_known:
        lesser = [job for job in jobs if levels[job.id] == BEST_EFFORT]
        found |= guarded(guard, lesser, snapshot.now_s, config.protection)
    if newcomer and not guard and is_known:
        found |= seen_alone(newcomer, [job for job in jobs if job is not newcomer], snapshot.now_s, config.newcomer)
        if found[newcomer.id].alone_step_s:  # now it is known what to expect
            total = best_total([demand_of(replace(job, sharing=found[job.id]), snapshot) for job in jobs])
            found = {id: replace(sharing, total_predicted=total) for id, sharing in found.items()}
    return found


def mode_of(jobs: Sequence[Job], snapshot: Snapshot, config: SharingConfig) -> str:
    """free, interleave or time-slice, for all of them: what any was asked to do (but nobody makes a protected job wait for whole
    turns), else what memory demands, else turns inside a step, unless these jobs were measured to bring more without, or nothing.
    Where the device is busy all the time turns save nobody a wait, but hold it through the host's part of each step; so there both
    ways are measured."""
    asked, room = {job.share.mode for job in jobs}, fits(jobs, snapshot)
    protected = next((job for job in jobs if job.share.protect), None)
    wants_turns = "time-slice" in asked and (protected is None or protected.share.mode == "time-slice")
    if wants_turns or room == "swap":
        return "time-slice"
    if "free" in asked and room == "peaks":
        return "free"
    if "interleave" in asked or protected or any(job.share.mode == "best-effort" for job in jobs):
        return "interleave"
    totals = totals_of(jobs)
    if totals and worth(totals) < config.kept_min:
        return "time-slice"
    if "interleave" in totals and room == "peaks":
        if "free" in totals:
            return "free" if totals["free"] > totals["interleave"] * config.free_gain else "interleave"
        is_under_way = any(job.sharing and job.sharing.mode == "free" for job in jobs)
        if is_under_way or sum(demand_of(job, snapshot).device for job in jobs) > config.free_min:
            return "free"
    return "interleave"


def _alone_step_s(job: Job, mode: str, *, is_guard: bool) -> float:
    """Sharing.alone_step_s. Where nobody waits at a gate a step does not show what it would be alone: what it was before counts."""
    before_s = job.sharing.alone_step_s if job.sharing else 0.0
    return before_s if is_guard or mode != "free" else before_s or alone_s(job)


def totals_of(jobs: Iterable[Job]) -> dict[str, float]:
    """What these jobs brought together, by mode: the least that was measured of any two of them."""
    jobs, totals = tuple(jobs), dict[str, float]()
    names = {job.id for job in jobs}
    for _, mode, total in [pair for job in jobs for pair in job.tried if pair[0] in names]:
        totals[mode] = min(total, totals.get(mode, total))
    return totals


def worth(totals: dict[str, float]) -> float:
    """What they bring in the best way that is left. Time slices are the last one, and kept in mind only where they failed."""
    return totals["time-slice"] if "time-slice" in totals else max(totals.values())


def levels_of(jobs: Sequence[Job]) -> dict[str, int]:
    """Beside a protected job everybody else is best effort."""
    protected = any(job.share.protect for job in jobs)
    return {
        job.id: PROTECTED if job.share.protect else BEST_EFFORT if protected or job.share.mode == "best-effort" else ORDINARY
        for job in jobs
    }


def link_node_of(jobs: Sequence[Job], snapshot: Snapshot, config: SharingConfig) -> str:
    """The node at whose link's gate these jobs take turns, too: that of rank 0, if it is the same for all; empty where the
    link is not what they wait for."""
    nodes = {job.intended[0].node if job.intended else "" for job in jobs}
    if len(nodes) > 1 or all(len({slot.node for slot in job.intended}) < 2 for job in jobs):
        return ""
    asked = {job.share.link for job in jobs}
    if "off" in asked:
        return ""
    demands = [demand_of(job, snapshot) for job in jobs]
    is_on = any(job.sharing and job.sharing.link_node for job in jobs)
    scarcer = config.link_kept if is_on else config.link_min
    if "on" in asked or sum(d.network for d in demands) > scarcer * sum(d.device for d in demands):
        return min(nodes)
    return ""


def who_leaves(jobs: Sequence[Job], now_s: float, config: SharingConfig) -> tuple[Job, str] | None:
    """The job that should get devices of its own, and why; None: they may stay together. The best class stays, then the oldest."""
    levels = levels_of(jobs)

    def last(among: Iterable[Job]) -> Job:
        return max(among, key=lambda job: (levels[job.id], job.submitted_s, job.id))

    for job in jobs:
        others = [other for other in jobs if other is not job]
        if job.share.is_exclusive:
            return last(others), f"{job.id} does not share its devices any more"
        is_stated = job.share.max_slowdown > 0 and levels[job.id] == ORDINARY
        if is_stated and is_settled(job, job, now_s, config.protection) and slowdown_of(job) > job.share.max_slowdown:
            allowed = f"{job.share.max_slowdown:.0%}"
            return last(others), f"steps of {job.id} take {slowdown_of(job):.0%} longer than alone, and it allows {allowed}"
    if sum(job.share.protect for job in jobs) > 1:
        return last(jobs), "more than one of them is protected"
    for job in jobs:
        mine = job.sharing
        if mine and mine.level == BEST_EFFORT and not mine.held_part and mine.part < config.protection.part_min:
            return job, "its share beside a protected job has become too small"
    totals = totals_of(jobs)
    if totals and worth(totals) < config.kept_min:
        return last(jobs), f"together they bring {worth(totals):.2f} of one job alone"
    return None


def why(sharing: Sharing) -> str:
    """One line for a person."""
    others = " and ".join(sharing.partners)
    verb = "do" if len(sharing.partners) > 1 else "does"
    if sharing.mode == "time-slice":
        because = ", since their memory does not fit at once" if sharing.swap_bytes else ""
        return f"takes turns of {sharing.quantum_s:g} s with {others}{because}"
    if sharing.mode == "free":
        return f"computes whenever it likes, and so {verb} {others}"
    if sharing.level == PROTECTED:
        return f"goes first; {others} {'run' if len(sharing.partners) > 1 else 'runs'} in its idle time"
    if sharing.held_part:
        return f"stands still for some steps of {others}, so that it is known how long these take alone"
    if sharing.level == BEST_EFFORT:
        return f"runs in the idle time of {others}, {sharing.part:.0%} of what it asks for"
    return f"computes while {others} {'wait' if len(sharing.partners) > 1 else 'waits'}, and the other way round"
