"""What the controller does when it is asked: each verb of the socket is one method here.

A verb returns JSON, or is an async generator whose items are streamed. Mistakes of the user raise RestowError before
anything is journalled.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

from restow.cluster import Node, Snapshot
from restow.codec import from_json, to_json
from restow.controller import destinations, views
from restow.controller.log_reader import LogReader
from restow.controller.loop import Controller
from restow.core import evacuating
from restow.core.reconcile import folder_of
from restow.errors import NotFound, Refused, SpecError
from restow.frozen import freeze, to_wire
from restow.job import Job, JobState, sizes_of
from restow.messages import (
    CancelAsked,
    CheckpointAsked,
    JobSubmitted,
    MigrateAsked,
    NodeCordoned,
    NodeDrained,
    PauseAsked,
    ResumeAsked,
    ScaleAsked,
)
from restow.placement import Move, nodes_of, parse_placement

FOLLOW_S = 0.3  # between two looks at a log that is followed


class Requests:
    """The verbs. `shut_down(end_agents)` is given by the daemon."""

    def __init__(self, controller: Controller, *, about: dict[str, Any], shut_down: Callable[[bool], None]):
        self._controller = controller
        self._about = about
        self._shut_down = shut_down

    # -------------------------------------------------------- questions

    async def ping(self) -> dict[str, Any]:
        nodes = self._snapshot().nodes
        alive = [node.name for node in nodes if node.is_alive]
        unfinished = [job.id for job in self._jobs() if not (job.state.is_final or job.is_suspended)]
        suspended = [job.id for job in self._jobs() if job.is_suspended]
        in_memory = {job.id: list(job.kept.in_memory) for job in self._jobs() if job.kept and job.kept.in_memory}
        about = {"unfinished": unfinished, "suspended": suspended, "in_memory": in_memory}
        return {**self._about, "nodes": alive, "joined": list(self._controller.agents.joined), **about}

    async def ps(self, every: bool = True) -> list[dict[str, Any]]:
        return [self._view(job) for job in self._jobs() if every or not job.state.is_final]

    async def show(self, job: str) -> dict[str, Any]:
        found = self._find(job)
        return {**self._view(found), **views.job_details(found, self._controller.progress.get(found.id, {}))}

    async def nodes(self) -> list[dict[str, Any]]:
        holders = views.holders_of(self._jobs())
        return [views.node_view(node, holders) for node in self._snapshot().nodes]

    async def snapshot(self) -> dict[str, Any]:
        """The cluster as it is now, also with jobs that are away with their node, but without the environments of any."""
        jobs = tuple(job for job in self._jobs() if not job.state.is_final)
        return to_wire(freeze(dataclasses.replace(self._snapshot(), jobs=jobs)))

    async def events(self, after: int = 0, follow: bool = False) -> AsyncIterator[dict[str, Any]]:
        """Journalled events as they are on the wire, each with its `number`."""
        while True:
            changed = self._controller.changed
            for number, event in list(self._controller.journal.events(after)):
                yield {"number": number, **to_json(event)}
                after = number
            if not follow:
                return
            await changed.wait()

    async def logs(
        self, job: str, rank: int | None = None, follow: bool = False, tail: int | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Pieces of text by rank, whole lines unless one is longer than a piece, until the job is final if followed. `tail`: begin
        with so many of the last lines of each rank."""
        found = self._find(job)
        if rank is not None and not 0 <= rank < found.spec.workers:
            raise NotFound(f"rank is {rank}; job {found.id} has ranks 0 to {found.spec.workers - 1}")
        readers = [
            LogReader(self._controller, found.id, r) for r in ([rank] if rank is not None else range(found.spec.workers))
        ]
        if tail is not None:
            for reader in readers:
                await reader.go_to_tail(tail)
        while True:
            was_final = self._find(found.id).state.is_final  # looked at before reading: then the last lines are in
            for reader in readers:
                async for piece in reader.read():
                    yield piece
            if not follow or was_final:
                return
            await asyncio.sleep(FOLLOW_S)

    async def wait(self, job: str) -> dict[str, Any]:
        """The job's view once it is final."""
        while True:
            changed = self._controller.changed
            found = self._find(job)
            if found.state.is_final:
                return self._view(found)
            await changed.wait()

    # -------------------------------------------------------- wishes

    async def submit(self, spec: dict[str, Any], queue: bool = False) -> dict[str, Any]:
        submitted = from_json({"type": "JobSubmitted", "time_s": self._controller.now(), "job": "new", "spec": spec})
        assert isinstance(submitted, JobSubmitted)
        devices = len(self._snapshot().slots)
        least = submitted.spec.devices[0] or sizes_of(submitted.spec)[-1]
        if least > devices and not queue:
            what = f"devices is {least}.." if submitted.spec.devices[0] else f"workers is {least}"
            if submitted.spec.workers_min:
                asked = f"{submitted.spec.workers_min}..{submitted.spec.workers}"
                what = f"workers is {asked}, of which {least} is the least that divides the most"
            raise SpecError(f"{what}; the cluster has {devices} device{'s' * (devices != 1)} (--queue waits for more)")
        job = self._new_id(submitted.spec.name or _stem(submitted.spec.command))
        await self._controller.take([JobSubmitted(time_s=self._controller.now(), job=job, spec=submitted.spec)])
        return self._view(self._find(job))

    async def cancel(self, job: str) -> dict[str, Any]:
        found = self._find(job)
        if found.state.is_final:
            raise Refused(f"job {found.id} is {found.state.value} already; nothing to cancel")
        await self._controller.take([CancelAsked(time_s=self._controller.now(), job=found.id)])
        return self._view(self._find(found.id))

    async def migrate(self, job: str, to: str | None = None, pack: bool = False) -> dict[str, Any]:
        found = self._find(job)
        if found.state is not JobState.RUNNING:
            raise Refused(f"job {found.id} is {found.state.value}; only a running job can be moved")
        if found.switch and not found.switch.placement:
            raise Refused(f"job {found.id} is being paused; restow resume {found.id} lets it go on")
        if found.switch:
            raise Refused(
                f"job {found.id} is being moved to {destinations.written(found.switch.placement)}; try again when that is done"
            )
        placement = destinations.packed(found, self._snapshot()) if pack else parse_placement(to or "")
        destinations.check(found, placement, self._snapshot())
        await self._controller.take([MigrateAsked(time_s=self._controller.now(), job=found.id, placement=placement)])
        self._controller.decide(self._controller.now())
        return self._view(self._find(found.id))

    async def scale(self, job: str, devices: int = 0) -> dict[str, Any]:
        """Let the job have so many devices, its ranks taking turns where these are fewer, or so many workers, where its spec gives
        a range of them; 0: as its spec says."""
        found = self._find(job)
        if found.state.is_final:
            raise Refused(f"job {found.id} is {found.state.value}; it holds no devices")
        if found.is_resizable and devices and devices not in sizes_of(found.spec):
            numbers = ", ".join(map(str, sizes_of(found.spec)))
            raise SpecError(f"workers is {devices}; job {found.id} can have {numbers}, which divide the most of its spec")
        if not found.is_resizable and not 0 <= devices <= found.workers:
            raise SpecError(f"devices is {devices}; job {found.id} can have 1 to {found.workers}, one for each worker")
        if found.state is JobState.RUNNING and found.why_not:
            raise Refused(f"job {found.id} cannot change its devices while it trains: {found.why_not}")
        number = {"workers": devices, "devices": 0} if found.is_resizable else {"devices": devices}
        await self._controller.take([ScaleAsked(time_s=self._controller.now(), job=found.id, **number)])
        self._controller.decide(self._controller.now())
        return self._view(self._find(found.id))

    async def checkpoint(self, job: str) -> dict[str, Any]:
        """Let the job make a checkpoint now; the step of the last one before is in the answer."""
        found = self._find(job)
        if found.state is not JobState.RUNNING:
            raise Refused(f"job {found.id} is {found.state.value}; only a running job makes checkpoints")
        if found.why_not:
            raise Refused(f"job {found.id} makes no checkpoints with restow: {found.why_not}")
        await self._controller.take([CheckpointAsked(time_s=self._controller.now(), job=found.id)])
        return {"id": found.id, "folder": f"{folder_of(found.spec)}/{found.id}", "saved": to_json(found.saved)}

    async def checkpoints(self, job: str) -> dict[str, Any]:
        """Where the checkpoints of a job are, and which of them are known here."""
        found = self._find(job)
        return {"id": found.id, "folder": f"{folder_of(found.spec)}/{found.id}", "saved": to_json(found.saved)}

    async def restore(self, job: str, step: int = -1) -> dict[str, Any]:
        """Hand in the job again, as another one that goes on from a checkpoint of this one; -1: the newest."""
        found = self._find(job)
        if not found.saved:
            raise Refused(f"job {found.id} has no checkpoint; restow checkpoint now makes one while it runs")
        chosen = found.saved[-1].step if step == -1 else step
        if chosen not in {saved.step for saved in found.saved}:
            raise NotFound(f"job {found.id} has no checkpoint of step {step}; it has {', '.join(str(s.step) for s in found.saved)}")
        new = self._new_id(found.spec.name or _stem(found.spec.command))
        saved = tuple(dataclasses.replace(s, job=s.job or found.id) for s in found.saved if s.step <= chosen)
        await self._controller.take([JobSubmitted(time_s=self._controller.now(), job=new, spec=found.spec, saved=saved)])
        return self._view(self._find(new))

    async def pause(self, job: str) -> dict[str, Any]:
        """It gives its devices back and keeps its state, until it is told to go on."""
        found = self._find(job)
        if found.state.is_final:
            raise Refused(f"job {found.id} is {found.state.value}; nothing to pause")
        if found.paused:
            raise Refused(f"job {found.id} is paused already; restow resume {found.id} lets it go on")
        await self._controller.take([PauseAsked(time_s=self._controller.now(), job=found.id)])
        self._controller.decide(self._controller.now())
        return self._view(self._find(found.id))

    async def resume(self, job: str) -> dict[str, Any]:
        found = self._find(job)
        if not found.paused or found.state.is_final:
            raise Refused(f"job {found.id} is not paused but {found.state.value}")
        await self._controller.take([ResumeAsked(time_s=self._controller.now(), job=found.id)])
        self._controller.decide(self._controller.now())
        return self._view(self._find(found.id))

    async def cordon(self, node: str, on: bool = True) -> dict[str, Any]:
        """Start nothing new there, or (`on` false) start things there again."""
        found = self._node(node)
        if found.is_draining and not on:
            raise Refused(f"node {node} is drained; restow undrain {node} takes that back")
        await self._controller.take([NodeCordoned(time_s=self._controller.now(), node=node, is_cordoned=on)])
        return {"node": node, "cordoned": on}

    async def drain(self, node: str, on: bool = True, deadline_s: float = 0.0, apply: bool = True) -> dict[str, Any]:
        """Empty the node, or (`on` false) let it be used again. Says what happens to each job there; without `apply` only that."""
        self._node(node)
        now_s = self._controller.now()
        by_s = now_s + deadline_s if deadline_s > 0 else 0.0
        before = self._snapshot()
        nodes = tuple(
            dataclasses.replace(n, is_draining=on, is_cordoned=on, drain_by_s=by_s) if n.name == node else n for n in before.nodes
        )
        schedule = self._controller.deciding.plan(dataclasses.replace(before, nodes=nodes))
        here = [job for job in before.jobs if node in nodes_of((*job.intended, *job.placement))]
        answer = {
            "node": node, "applied": apply,
            "moves": [_move_view(schedule.moves[job.id]) for job in here if job.id in schedule.moves],
            "others": {job.id: schedule.reasons.get(job.id) or job.reason for job in here if job.id not in schedule.moves},
            "kept": [self._evacuation_view(job, to) for job, to in (evacuating.planned(before.jobs, nodes, node) if on else ())],
        }  # fmt: skip
        if apply:
            await self._controller.take([NodeDrained(time_s=now_s, node=node, is_draining=on, by_s=by_s)])
            self._controller.decide(self._controller.now())
        return answer

    async def share(self, job: str, share: dict[str, Any]) -> dict[str, Any]:
        """Let this job share its devices in another way from now on; `share` holds fields of ShareSpec, the others stay."""
        found = self._find(job)
        if found.state.is_final:
            raise Refused(f"job {found.id} is {found.state.value}; it holds no devices")
        wanted = {**to_json(found.share), **share}
        asked = from_json({"type": "ShareAsked", "time_s": self._controller.now(), "job": found.id, "share": wanted})
        await self._controller.take([asked])
        self._controller.decide(self._controller.now())
        return self._view(self._find(found.id))

    async def explain(self, job: str) -> dict[str, Any]:
        """Why a job is where it is and shares as it does: what was predicted, and what was then measured."""
        found = self._find(job)
        schedule = self._controller.deciding.plan(self._snapshot())
        pairs = [event for event in self._controller.measured_pairs if found.id in event.jobs]
        return {
            "id": found.id,
            "state": found.state.value,
            "placement": [str(slot) for slot in found.placement],
            "reason": schedule.reasons.get(found.id) or found.reason,
            "adopted": found.reason,
            "sharing": to_json(found.sharing) if found.sharing else None,
            "share": to_json(found.share),
            "tried": views.tried_view(found),
            "friendliness": found.friendliness,
            "profile": to_json(found.profile),
            "pairs": [to_json(event) for event in pairs],
            "moves": [views.move_view(move) for move in self._controller.measurer.measured.get(found.id, [])],
        }

    async def defrag(self, apply: bool = False) -> dict[str, Any]:
        """The moves that the policy would make now, and what it says about the jobs that stay."""
        now_s = self._controller.now()
        if apply:
            schedule = self._controller.decide(now_s)
        else:
            schedule = self._controller.deciding.plan(self._snapshot())
        return {
            "applied": apply,
            "moves": [_move_view(move) for move in schedule.moves.values()],
            "reasons": dict(schedule.reasons),
        }

    async def stop(self, end_agents: bool = True) -> dict[str, Any]:
        """End the daemon; with `end_agents` every job and agent before it."""
        self._shut_down(end_agents)
        return {}

    # -------------------------------------------------------- within

    def _jobs(self) -> list[Job]:
        return sorted(self._controller.state.jobs.values(), key=lambda job: (job.submitted_s, job.id))

    def _snapshot(self) -> Snapshot:
        return self._controller.state.snapshot(self._controller.now())

    def _node(self, name: str) -> Node:
        node = self._snapshot().node(name)
        if node is None:
            known = ", ".join(node.name for node in self._snapshot().nodes)
            raise NotFound(f"node {name!r} does not exist; there are {known or 'none'}")
        return node

    def _find(self, name: str) -> Job:
        """By id, or by a beginning that only one job has."""
        jobs = self._controller.state.jobs
        if name in jobs:
            return jobs[name]
        matching = [job for job in self._jobs() if job.id.startswith(name) or job.spec.name == name]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise NotFound(f"job {name!r} could be {', '.join(job.id for job in matching[:5])}; write it out")
        raise NotFound(f"job {name!r} does not exist; restow ps shows all")

    def _view(self, job: Job) -> dict[str, Any]:
        return views.job_view(
            job,
            step_s=self._controller.measurer.step_s(job.id),
            progress=self._controller.progress.get(job.id, {}),
            moves=self._controller.measurer.measured.get(job.id, []),
            reason=self._controller.last_schedule.reasons.get(job.id, ""),
        )

    def _evacuation_view(self, job: Job, to: str) -> dict[str, Any]:
        """Where a state that leaves a drained node goes; `why`: the last try failed."""
        assert job.kept
        why = self._controller.state.records[job.id].evacuation_why
        return {"job": job.id, "step": job.kept.step, "to": to, "why": why, "checkpoint": job.kept.checkpoint}

    def _new_id(self, name: str) -> str:
        """`digits-1`, `digits-2` …: safe as a file name, never used twice."""
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "job"
        number = 1
        while f"{stem}-{number}" in self._controller.state.jobs:
            number += 1
        return f"{stem}-{number}"


def _stem(command: tuple[str, ...]) -> str:
    """A name for a command: its script's without folder and ending, else its program's."""
    script = next((word for word in command if word.endswith(".py")), command[0])
    return script.rpartition("/")[2].removesuffix(".py")


def _move_view(move: Move) -> dict[str, Any]:
    return {**to_json(move), "now": [str(slot) for slot in move.now], "then": [str(slot) for slot in move.then]}
