"""What people and programs are shown of jobs and nodes: plain JSON, the same for `--json`, the client and the demo."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from restow.cluster import Node
from restow.codec import to_json
from restow.job import Job, Kept, Saved
from restow.messages import MoveMeasured, Progressed
from restow.perf import RESTART_PAUSE_S
from restow.placement import Placement, nodes_of


def job_view(
    job: Job, *, step_s: float, progress: dict[int, Progressed], moves: Iterable[MoveMeasured], reason: str
) -> dict[str, Any]:
    """One job. Placements are lists of "node:device" by rank; `step_s` is 0 until it was measured."""
    latest = max(progress.values(), key=lambda word: word.step, default=None)
    first = progress.get(0) or latest
    return {
        "id": job.id,
        "name": job.spec.name,
        "state": "suspended" if job.is_suspended and job.paused else job.state.value,
        "workers": job.workers,
        "generation": job.generation,
        "placement": _slots(job.placement),
        "intended": _slots(job.intended),
        "switch": _switch_view(job),
        "paused": job.paused,
        "away": job.away,
        "checkpoint": _saved_view(job.saved[-1]) if job.saved else None,
        "checkpoint_why": job.checkpoint_why,
        "kept": _kept_view(job.kept) if job.kept else None,
        "step": max(job.steps_done, latest.step if latest else 0),
        "steps_total": job.steps_total if job.steps_total is not None else (latest.steps_total if latest else None),
        "step_s": step_s or job.profile.step_s or (latest.step_s if latest else 0.0),
        "values": dict(first.values) if first else {},
        "sharing": to_json(job.sharing) if job.sharing else None,
        "movable": job.movable,
        "why_not": job.why_not,
        "reason": job.reason or reason,
        "submitted_s": job.submitted_s,
        "started_s": job.started_s,
        "ended_s": job.ended_s,
        "exit_code": job.exit_code,
        "moves": [move_view(move) for move in moves],
    }


def _saved_view(saved: Saved) -> dict[str, Any]:
    return {"step": saved.step, "path": saved.path, "time_s": saved.time_s}


def _kept_view(kept: Kept) -> dict[str, Any]:
    return {"step": kept.step, "nodes": list(nodes_of(kept.placement)), "in_memory": list(kept.in_memory)}


def job_details(job: Job, progress: dict[int, Progressed]) -> dict[str, Any]:
    """What `show` adds: the spec, the profile, each rank."""
    return {
        "spec": dataclasses.asdict(job.spec) | {"env": dict(job.spec.env), "command": list(job.spec.command)},
        "profile": dataclasses.asdict(job.profile),
        "restart_s": RESTART_PAUSE_S,  # what a move costs that is a stop and a start, its own checkpoint not counted
        "ranks": [
            {
                "rank": rank,
                "slot": str(slot),
                "alive": rank in job.alive,
                "step": progress[rank].step if rank in progress else None,
                "step_s": progress[rank].step_s if rank in progress else None,
                "exposed_s": progress[rank].exposed_s if rank in progress else None,
                "memory_bytes": progress[rank].memory_bytes if rank in progress else None,
            }
            for rank, slot in enumerate(job.placement)
        ],
    }


def move_view(move: MoveMeasured) -> dict[str, Any]:
    """What a move was expected to cost and bring, and what it did."""
    wire = to_json(move)
    return {
        **{name: value for name, value in wire.items() if name not in ("type", "job", "phases")},
        "now": _slots(move.now),
        "then": _slots(move.then),
        "phases": dict(move.phases),
    }


def tried_view(job: Job) -> dict[str, dict[str, float]]:
    """Partner → mode → sum of relative speeds."""
    tried: dict[str, dict[str, float]] = {}
    for partner, mode, total in job.tried:
        tried.setdefault(partner, {})[mode] = total
    return tried


def node_view(node: Node, holders: dict[tuple[str, int], list[str]]) -> dict[str, Any]:
    """One node with its devices and who holds each."""
    return {
        "name": node.name,
        "address": node.address,
        "alive": node.is_alive,
        "cordoned": node.is_cordoned,
        "draining": node.is_draining,
        "devices": [
            {**dataclasses.asdict(device), "jobs": holders.get((node.name, device.index), [])}
            for device in node.devices
        ],
    }


def holders_of(jobs: Iterable[Job]) -> dict[tuple[str, int], list[str]]:
    """(node, device) → ranks that are there now, written `job/rank`."""
    holders: dict[tuple[str, int], list[str]] = {}
    for job in jobs:
        if not job.state.is_final:
            for rank, slot in enumerate(job.placement):
                holders.setdefault((slot.node, slot.device), []).append(f"{job.id}/{rank}")
    return holders


def _switch_view(job: Job) -> dict[str, Any] | None:
    if job.switch is None:
        return None
    return {
        "generation": job.switch.generation,
        "placement": _slots(job.switch.placement),
        "phase": job.switch.phase.value,
        "fill": job.switch.fill,
        "step": job.switch.step,
        "reason": job.switch.reason,
    }


def _slots(placement: Placement) -> list[str]:
    return [str(slot) for slot in placement]
