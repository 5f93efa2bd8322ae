"""How each project writes its traces: the columns that its files have, and what a line of them means.

    gavel        Narayanan et al., OSDI 2020: tabs, no header, 7 or 10 columns
    shockwave    Zheng et al., NSDI 2023: Gavel's columns, and how the batch size changes
    pollux       Qiao et al., OSDI 2021: workloads of five or six applications
    philly       Microsoft's Philly cluster, as Pollux has it: one line for each job that ran
    itp          ten clusters of Microsoft, 2021 (elasticflow-traces)
    elasticflow  Gu et al., ASPLOS 2023
    muri         Zhao et al., SIGCOMM 2022: milliseconds, and what a step takes of three resources
    tiresias     Gu et al., NSDI 2019
    morphling    MLSys 2025: large models and how they are parallelized
    fgd          Alibaba's pods, 2023, with parts of GPUs
    sacct        sacct --parsable2 --format=JobID,User,Submit,ElapsedRaw,AllocTRES (and more): Slurm
    csv          id,submitted_s,workers,duration_s, and any of steps,model,tenant,priority,deadline_s,share
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from restow.errors import TraceError
from restow.sim.rows import Row
from restow.sim.traces.table import Line

MS = 1e-3
MIB = 2**20
GAVEL_OLD = ("model", "command", "step_option", "needs_files", "steps", "arrival", "workers")
GAVEL = ("model", "command", "folder", "step_option", "needs_files", "steps", "workers", "priority", "slo", "arrival")
SHOCKWAVE = (*GAVEL[:7], "mode", "priority", "slo", "duration", "arrival")
_TRES = re.compile(r"gres/gpu(?::[\w.\-]+)?=(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """`columns`: what a file must have to be one. `row(line, number)`: what a line means, None where it is no job. Times count from
    the first job where `is_dated`."""

    name: str
    columns: frozenset[str]
    row: Callable[[Line, int], Row | None]
    is_dated: bool = False
    headless: tuple[str, ...] = ()  # the names of its columns, where its first line is a job already


def _gavel(line: Line, number: int) -> Row:
    duration_s = line.decimal("duration") if "duration" in line.values else 0.0
    return Row(
        id=f"job-{number}", submitted_s=line.decimal("arrival"), workers=line.whole("workers"), steps=_steps(line, "steps"),
        model=line.text("model"), duration_s=duration_s, plan=line.values.get("mode", "").strip(),
    )  # fmt: skip


def _pollux(line: Line, number: int) -> Row:
    return Row(
        id=line.text("name"), submitted_s=line.decimal("time"), workers=line.whole("num_replicas"), model=line.text("application"),
        batch=line.whole("batch_size"),
    )  # fmt: skip


def _philly(line: Line, number: int) -> Row | None:
    if line.decimal("duration") == 0 or line.whole("num_gpus") == 0:
        return None  # failed at once, or needs no GPU
    return Row(
        id=f"job-{number}", submitted_s=line.moment("timestamp"), workers=line.whole("num_gpus"),
        duration_s=line.decimal("duration"), tenant=line.text("cluster"),
    )  # fmt: skip


def _itp(line: Line, number: int) -> Row:
    return _elastic(line, submitted="submission_time", steps="num_iteration", deadline="deadline")


def _elasticflow(line: Line, number: int) -> Row:
    return _elastic(line, submitted="submit_time", steps="iteration", deadline="ddl")


def _elastic(line: Line, *, submitted: str, steps: str, deadline: str) -> Row:
    return Row(
        id=line.text("job_id"), submitted_s=line.decimal(submitted), workers=line.whole("num_gpu"), steps=_steps(line, steps),
        duration_s=line.decimal("duration"), model=line.text("model_name"), batch=line.whole("batch_size"),
        deadline_s=line.decimal(deadline),
    )  # fmt: skip


def _muri(line: Line, number: int) -> Row:
    """Its third resource is the network, 0 on one device (the second, of which a language model takes nearly all, the device)."""
    data_s, device_s, network_s = (line.decimal(f"resource_time_{index}", scale=MS) for index in range(3))
    return Row(
        id=f"job-{line.text('job_id')}", submitted_s=line.decimal("submit_time", scale=MS), workers=line.whole("num_gpu"),
        steps=_steps(line, "iterations"), duration_s=line.decimal("duration", scale=MS), model=line.text("model_name"),
        batch=line.whole("batch_size"), stages_s=(data_s, device_s, network_s),
    )  # fmt: skip


def _tiresias(line: Line, number: int) -> Row:
    return Row(
        id=f"job-{line.text('job_id')}", submitted_s=line.decimal("submit_time"), workers=line.whole("num_gpu"),
        duration_s=line.decimal("duration"), model=line.text("model_name"),
    )  # fmt: skip


def _morphling(line: Line, number: int) -> Row:
    return Row(
        id=line.text("name"), submitted_s=line.decimal("submission_time"), workers=line.whole("num_gpus"),
        steps=_steps(line, "steps"), duration_s=line.decimal("duration"), model=line.text("application"),
        plan=line.text("exec_plan"), priority=line.whole("is_sla"),
    )  # fmt: skip


def _fgd(line: Line, number: int) -> Row | None:
    devices = line.whole("num_gpu")
    if devices == 0:
        return None  # needs no GPU
    created_s = line.decimal("creation_time")
    duration_s = (line.decimal("deletion_time") if line.text("deletion_time") else created_s) - created_s
    return Row(
        id=line.text("name"), submitted_s=created_s, workers=devices, duration_s=max(1.0, duration_s),
        share=line.decimal("gpu_milli", scale=MS) or 1.0, tenant=line.text("qos"), model=line.text("gpu_spec"),
        cores=line.decimal("cpu_milli", scale=MS) / devices, host_bytes=line.whole("memory_mib") * MIB // devices,
    )  # fmt: skip


def _sacct(line: Line, number: int) -> Row | None:
    found = _TRES.search(line.text("AllocTRES"))
    if not found or "." in line.text("JobID") or line.decimal("ElapsedRaw") == 0:
        return None  # a step of a job, or one that had no GPU, or never ran
    return Row(
        id=line.text("JobID"), submitted_s=line.moment("Submit"), workers=int(found[1]), duration_s=line.decimal("ElapsedRaw"),
        tenant=line.text("User"), model=line.values.get("JobName", "").strip(),
    )  # fmt: skip


def _csv(line: Line, number: int) -> Row:
    def given(column: str) -> bool:
        return bool(line.values.get(column, "").strip())

    return Row(
        id=line.text("id"), submitted_s=line.decimal("submitted_s"), workers=line.whole("workers"),
        duration_s=line.decimal("duration_s") if given("duration_s") else 0.0,
        steps=line.decimal("steps") if given("steps") else 0.0,
        model=line.values.get("model", "").strip(), tenant=line.values.get("tenant", "").strip(),
        priority=line.whole("priority") if given("priority") else 0,
        deadline_s=line.decimal("deadline_s") if given("deadline_s") else float("inf"),
        share=line.decimal("share") if given("share") else 1.0,
    )  # fmt: skip


def _steps(line: Line, column: str) -> float:
    steps = line.decimal(column)
    if steps == 0:
        raise line.error(column, "0 steps; a job makes at least one")
    return steps


def _layout(name: str, columns: str, row: Callable[[Line, int], Row | None], *, is_dated: bool = False) -> Layout:
    return Layout(name=name, columns=frozenset(columns.split()), row=row, is_dated=is_dated)


LAYOUTS = (
    _layout("pollux", "name time application num_replicas batch_size", _pollux),
    _layout("philly", "timestamp duration num_gpus cluster", _philly, is_dated=True),
    _layout("muri", "job_id num_gpu submit_time iterations iteration_time resource_time_2", _muri),
    _layout("itp", "job_id submission_time num_iteration deadline num_gpu duration", _itp),
    _layout("elasticflow", "job_id submit_time iteration ddl num_gpu duration", _elasticflow),
    _layout("tiresias", "job_id num_gpu submit_time duration model_name", _tiresias),
    _layout("morphling", "name submission_time application num_gpus exec_plan steps", _morphling),
    _layout("fgd", "name cpu_milli memory_mib num_gpu gpu_milli gpu_spec creation_time deletion_time", _fgd),
    _layout("sacct", "JobID User Submit ElapsedRaw AllocTRES", _sacct, is_dated=True),
    _layout("csv", "id submitted_s workers", _csv),
)
HEADLESS = (
    Layout(name="gavel", columns=frozenset(), row=_gavel, headless=GAVEL_OLD),
    Layout(name="gavel", columns=frozenset(), row=_gavel, headless=GAVEL),
    Layout(name="shockwave", columns=frozenset(), row=_gavel, headless=SHOCKWAVE),
)


def layout_of(path: object, columns: Iterable[str], tabs: int) -> Layout:
    """What a file with these columns, or so many parts between tabs, is. Raises TraceError."""
    names = set(columns)
    for layout in LAYOUTS:
        if layout.columns <= names:
            return layout
    for layout in HEADLESS:
        if len(layout.headless) == tabs:
            return layout
    if ";" in "".join(names):
        raise TraceError(f"trace {path}: its columns are parted by semicolons; write commas")
    known = ", ".join(dict.fromkeys(layout.name for layout in (*HEADLESS, *LAYOUTS)))
    raise TraceError(
        f"trace {path}: its columns are of no known layout ({known}); your own is a CSV with id,submitted_s,workers,duration_s"
    )
