"""A live cluster's snapshot as the beginning of a simulation: its machines, and its jobs where they stand with what they have left.

Where a job says nothing of its end, it is taken to go on for as long as it has run already: for lifetimes with a heavy tail, as
those of training jobs, the attained service is the best single guess (Gu et al., Tiresias, NSDI 2019, section 3). A job that never
ran is taken to need the median of what the others have left. Each such guess is told in `notes`.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from restow.errors import TraceError
from restow.frozen import FrozenCluster, FrozenJob, from_wire
from restow.job import JobSpec
from restow.placement import devices_of
from restow.sim.machines import Machines
from restow.sim.past import Past
from restow.sim.rows import Row
from restow.sim.traces import Trace

LEFT_S_MIN = 1.0  # of a job that has just begun and says nothing of its end
LAYOUT = "snapshot"
DIGITS_MAX = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    trace: Trace
    machines: Machines
    begins_s: float  # when the snapshot was taken, in seconds since the first submission
    notes: tuple[str, ...]  # what was guessed and what was left out, a line each


def is_snapshot(name: str) -> bool:
    """Is it a file of JSON? No trace is one."""
    path = Path(name)
    try:
        with path.open("rb") as file:
            return file.read(4096).lstrip()[:1] in (b"{", b"[")
    except OSError:
        return False


def read_standing(path: Path, unseen_s: float | None = None) -> Standing:
    """`unseen_s`: how long jobs take that never ran; None: the median of what the others have left. Raises TraceError."""
    try:
        written: Any = json.loads(path.read_text(), parse_constant=_number, parse_float=_number, parse_int=_whole)
        return standing(path.name, from_wire(written), unseen_s)
    except OSError as error:
        raise TraceError(f"snapshot {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise TraceError(f"snapshot {path} is not JSON: {error}") from None
    except TraceError as error:
        raise TraceError(f"snapshot {path}: {error}") from None


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise TraceError(f"it holds {text}; its numbers are finite")
    return value


def _whole(text: str) -> int:
    if len(text) > DIGITS_MAX:
        raise TraceError(f"it holds {text[:DIGITS_MAX]}…; its numbers have at most {DIGITS_MAX} digits")
    return int(text)


def standing(name: str, cluster: FrozenCluster, unseen_s: float | None = None) -> Standing:
    """Raises TraceError where nothing is left to simulate."""
    machines = machines_of(cluster)
    alive = machines.nodes
    jobs, left_out = _simulated(cluster, machines)
    if not jobs:
        raise TraceError(f"it holds no job that could go on{_list(left_out)}")
    first_s = min(cluster.now_s, *(job.submitted_s for job in jobs))
    left_s = {job.id: _left_s(job, cluster.now_s) for job in jobs}
    known = [seconds for seconds in left_s.values() if seconds is not None]
    unseen = [job.id for job in jobs if left_s[job.id] is None]
    if unseen and unseen_s is None and not known:
        raise TraceError(f"no job of it ever ran, {unseen[0]} neither: nothing says how long they are; give --unseen-s SECONDS")
    guess_s = unseen_s if unseen_s is not None else statistics.median(known or [0.0])
    nodes = tuple(replace(node, drain_by_s=max(0.0, node.drain_by_s - first_s)) for node in alive)
    rows = [_row(job, first_s, cluster.now_s, guess_s if (left := left_s[job.id]) is None else left) for job in jobs]
    trace = Trace(path=name, layout=LAYOUT, rows=tuple(rows))
    notes = (*_notes(cluster, jobs, len(alive)), *_guesses(jobs, unseen, guess_s, unseen_s is None), *_lines_of(left_out))
    return Standing(trace=trace, machines=replace(machines, nodes=nodes), begins_s=cluster.now_s - first_s, notes=notes)


def machines_of(cluster: FrozenCluster) -> Machines:
    """Those that are there and have devices, with what is known of the links between them."""
    links = {(min(link.a, link.b), max(link.a, link.b)): link.link for link in cluster.links}
    return Machines(nodes=tuple(node for node in cluster.nodes if node.is_alive and node.devices), links=links)


def _simulated(cluster: FrozenCluster, machines: Machines) -> tuple[list[FrozenJob], dict[str, str]]:
    """The jobs that go on, and of the others why they do not."""
    names = {node.name for node in machines.nodes}
    jobs, left_out = list[FrozenJob](), dict[str, str]()
    for job in cluster.jobs:
        if job.is_leaving:
            left_out[job.id] = "it was told to end"
        elif job.is_paused:
            left_out[job.id] = "it is paused until somebody resumes it"
        elif any(slot.node not in names for slot in job.placement):
            left_out[job.id] = "it lies on a machine that is lost"
        elif not job.placement and job.workers > machines.devices:
            left_out[job.id] = f"it wants {job.workers} devices, there are {machines.devices}"
        else:
            jobs.append(job)
    return jobs, left_out


def _left_s(job: FrozenJob, now_s: float) -> float | None:
    """Seconds of steps that it has yet to make, where it was measured; None: it never ran."""
    ran_s = now_s - job.started_s if job.started_s is not None else 0.0
    if not job.profile.step_s:
        return max(LEFT_S_MIN, ran_s) if job.started_s is not None else None
    if job.steps_total is not None:
        return max(0, job.steps_total - job.steps_done) * job.profile.step_s
    return max(LEFT_S_MIN, ran_s)


def _row(job: FrozenJob, first_s: float, now_s: float, left_s: float) -> Row:
    step_s = job.profile.step_s or 1.0  # of what was never measured a step is a second
    done = float(job.steps_done)
    says_total = job.steps_total is not None and job.profile.step_s > 0
    steps = float(max(job.steps_done, job.steps_total or 0)) if says_total else done + max(1, math.ceil(left_s / step_s))
    started_s = None if job.started_s is None else min(max(0.0, job.started_s - first_s), now_s - first_s)  # by its node's clock
    stands = job.placement if job.state in ("starting", "running") else ()
    past = Past(
        spec=_spec(job), placement=stands, measured_on=job.measured_on, profile=job.profile, steps=done, says_total=says_total,
        started_s=started_s, service_s=job.service_s, is_movable=job.is_movable or not job.why_not, why_not=job.why_not,
        sharing=job.sharing if stands else None, reason=job.reason,
    )  # fmt: skip
    return Row(
        id=job.id, submitted_s=job.submitted_s - first_s, workers=job.workers, steps=max(steps, 1.0), model=job.spec.name,
        priority=job.spec.priority, past=past,
    )  # fmt: skip


def _spec(job: FrozenJob) -> JobSpec:
    """Gangs keep their size, machines are not lost; where it lives on fewer devices than it may, it goes on with those."""
    low, high = job.spec.devices if job.spec.devices[0] and job.spec.devices[1] <= job.workers else (job.workers, job.workers)
    low = min(low, len(devices_of(job.placement)) or low)
    devices = (low, high) if low < job.workers else (0, 0)
    return replace(job.spec, workers=job.workers, workers_min=0, devices=devices, recover=False)


# -------------------------------------------------------------------- what was made of it


def _notes(cluster: FrozenCluster, jobs: Sequence[FrozenJob], alive: int) -> list[str]:
    taken = datetime.fromtimestamp(cluster.now_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    running = sum(job.state in ("starting", "running") for job in jobs)
    lost = f", {alive} of {len(cluster.nodes)} machines can be used" if len(cluster.nodes) > alive else ""
    return [f"as it was at {taken}: {running} running, {len(jobs) - running} waiting{lost}"]


def _guesses(jobs: Sequence[FrozenJob], unseen: Sequence[str], guess_s: float, is_median: bool) -> list[str]:
    notes = []
    open_ended = [job.id for job in jobs if job.id not in unseen and (job.steps_total is None or not job.profile.step_s)]
    if open_ended:
        notes.append(f"no total, or no speed, is known of {_names(open_ended)}: taken to run for as long again as until now")
    if unseen:
        whence = ", the median of what the others have left" if is_median else ""
        notes.append(f"never ran: {_names(unseen)}; taken to run for {guess_s:.0f} s{whence}")
    return notes


def _lines_of(left_out: dict[str, str]) -> list[str]:
    return [f"left out: {id}, {why}" for id, why in left_out.items()]


def _list(left_out: dict[str, str]) -> str:
    return "".join(f"; {id}: {why}" for id, why in left_out.items())


def _names(ids: Sequence[str], shown: int = 5) -> str:
    return ", ".join(ids[:shown]) + (f" and {len(ids) - shown} more" if len(ids) > shown else "")
