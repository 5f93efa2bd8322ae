"""Jobs that are to leave where they are: nodes that are drained, and devices on which a rank is slow."""

from __future__ import annotations

from collections.abc import Callable

from restow.cluster import Snapshot
from restow.job import Job, JobState, Phase, sizes_of
from restow.placement import Schedule, devices_of, moved_ranks, nodes_of, rearranged
from restow.policies.board import Board
from restow.policies.layout import on_devices
from restow.policies.moves import move_to


def drain(snapshot: Snapshot, schedule: Schedule, board: Board) -> None:
    """What is on a draining node goes elsewhere; what finds no room there is suspended, after the deadline."""
    draining = {node.name: node for node in snapshot.nodes if node.is_draining}
    for job in snapshot.jobs if draining else ():
        here = [draining[name] for name in nodes_of(job.intended) if name in draining]
        if not here or job.paused or snapshot.now_s < job.not_before_s or job.state is JobState.STOPPING:
            continue
        if job.state is JobState.PENDING:
            schedule.placements.pop(job.id, None)  # it finds another place below
            continue
        if job.switch and job.switch.phase in (Phase.COMMIT, Phase.RESCUE, Phase.ABORT):
            continue
        names = " and ".join(node.name for node in here)
        have = devices_of(job.intended)
        reach = [*(slot for slot in have if slot.node not in draining), *board.usable(job)]
        numbers = range(min(len(have), len(reach)), min(len(have), job.devices_min) - 1, -1)
        sizes = [size for size in (sizes_of(job.spec) if job.is_resizable else ()) if size < job.workers]
        ways = [*((number, job.workers) for number in numbers), *((size, size) for size in sizes if size <= len(reach))]
        then = next(filter(None, (on_devices(job, number, reach, snapshot, workers) for number, workers in ways)), None)
        if then:
            reason = f"leaves {names}, which is drained"
            schedule.put(job.id, then, reason)
            schedule.moves[job.id] = move_to(job, then, snapshot, reason)
            board.take(job.id, then)
        elif snapshot.now_s < max(node.drain_by_s for node in here):
            left_s = max(node.drain_by_s for node in here) - snapshot.now_s
            schedule.explain(job.id, f"{names} is drained; no other machine has room, suspended in {left_s:.0f} s if so")
        else:
            schedule.placements.pop(job.id, None)
            schedule.explain(job.id, f"suspended: {names} is drained and no other machine has room")


def relieve(snapshot: Snapshot, schedule: Schedule, board: Board, hindrance: Callable[[Job, Snapshot], str]) -> None:
    """A rank that computes much longer than its peers goes to a free device, where its spec wants that: on a machine where
    others of its gang are not slow, its own if it is such. `hindrance`: why a job may not move now, if so."""
    for job in snapshot.jobs:
        is_wanted = bool(job.slow) and job.spec.on_slow == "move" and job.id not in schedule.moves
        if not is_wanted or job.sharing or hindrance(job, snapshot):
            continue
        free = board.usable(job)
        then = list(job.placement)
        quick = {slot.node for rank, slot in enumerate(job.placement) if rank not in job.slow}
        for rank in sorted(job.slow):
            best = sorted(free, key=lambda slot: (slot.node not in quick, slot.node != then[rank].node, slot))
            if best:
                free.remove(best[0])
                then[rank] = best[0]
        there = rearranged(job.placement, then)  # who stays on a slow device may be another than was thought
        moved = moved_ranks(job.placement, there)
        if not moved:
            schedule.explain(job.id, f"{job.reason}; no other device is free")
            continue
        names = " and ".join(f"rank {rank} from {job.placement[rank]} to {there[rank]}" for rank in moved)
        move = move_to(job, there, snapshot, f"moves {names}, since it computes much longer than the others")
        schedule.put(job.id, move.then, move.reason)
        schedule.moves[job.id] = move
        board.take(job.id, move.then)
