"""What is due by the clock, as events: time-outs, the next proposal of a switch step, and what nobody will report any more.

Nothing here changes the state. The driver journals what `due` returns and gives it to `observe`, so a replay of the journal
needs no clock. Waiting is measured on the driver's own clock, from the first look at a phase: clocks of nodes that are off
do not matter, and after a restart everybody gets the full time again.
"""

from __future__ import annotations

import math
from typing import Any

from restow.core import checkpoints, hangs, switching
from restow.core.config import CoreConfig
from restow.core.record import Record
from restow.job import JobState, Phase
from restow.messages import (
    Event,
    LaunchFailed,
    RankExited,
    RankReady,
    RankRolledBack,
    StepProposed,
    SwitchFailed,
    WaitEnded,
)
from restow.placement import moved_ranks

Key = tuple[object, ...]
Wait = tuple[Key, float, Event]  # what is waited for, for how long at most, and what then happened


class Watch:
    """When each thing that is waited for was first seen."""

    def __init__(self, config: CoreConfig):
        self.config = config
        self._since: dict[str, dict[Key, float]] = {}  # by job

    def due(self, records: list[Record], now_s: float) -> list[Event]:
        """Events of these jobs that are due at `now_s`, in the order of the records."""
        events: list[Event] = []
        for record in records:
            waits: list[Wait] = [*self._gang(record, now_s), *self._switch(record, now_s)]
            if record.job.away:
                waits = self._away(record, now_s)
            before, since = self._since.pop(record.job.id, {}), dict[Key, float]()
            for key, wait_s, event in waits:
                since[key] = before.get(key, now_s)
                if now_s - since[key] >= wait_s:
                    events.append(event)
            if since:
                self._since[record.job.id] = since
        return events

    def _away(self, record: Record, now_s: float) -> list[Wait]:
        """Its node has no voice; only a checkpoint that others see ends the waiting."""
        job = record.job
        ended = WaitEnded(time_s=now_s, job=job.id)
        return [((job.id, job.away, "away"), self.config.away_s, ended)] if checkpoints.is_elsewhere(job) else []

    def _gang(self, record: Record, now_s: float) -> list[Wait]:
        job, config = record.job, self.config
        key = (job.id, job.generation)
        waits: list[Wait] = [((*key, "hung"), 0.0, event) for event in hangs.hang_due(record, now_s, config)]
        waits += [((*key, "slow", event.rank), config.slow_s, event) for event in hangs.slow_due(record, now_s)]
        if job.state is JobState.STARTING:
            missing = [f"rank {rank} on {p.slot.node}" for rank, p in record.gang() if not p.is_started] or [
                "its store" if record.store is None else "its state"
            ]
            start_s = config.standby_s + config.connect_s if job.kept else config.start_s
            reason = f"not ready after {start_s:g} s: {', '.join(missing)}"
            waits.append(((*key, "start"), start_s, LaunchFailed(
                time_s=now_s, job=job.id, generation=job.generation, node="", rank=-1, reason=reason)))  # fmt: skip
        if job.state is JobState.RUNNING and not job.movable and not record.unmovable:
            wait_s = config.first_steps_s if record.progress or record.signatures else config.unready_s
            waits.append(((*key, "ready", wait_s), wait_s, RankReady(
                time_s=now_s, job=job.id, generation=job.generation, node="", rank=0, signature="", state_bytes=0,
                private_bytes=0, movable=False, why_not="its script does not use restow's SDK")))  # fmt: skip
        doomed = [(k, p) for k, p in record.residue() if self._is_twin(record, k)]
        if record.rescue and record.rescue.waits:
            nodes, wait_s = " and ".join(sorted(record.rescue.gone)), config.away_s if job.saved else config.gone_s
            waits.append(((*key, "gone", nodes), wait_s, SwitchFailed(
                time_s=now_s, job=job.id, generation=record.rescue.vault, node="", rank=-1,
                reason=f"{record.rescue.waits}, and {nodes} did not come back within {wait_s:g} s")))  # fmt: skip
        elif record.rescue:
            what, done = ("no word", set(record.rescue.halted)) if record.rescue.step is None else ("no state", record.rescue.kept)
            missing = [str(rank) for rank in range(job.workers) if rank not in done]
            waits.append(((*key, "rescue", record.rescue.step), config.keep_s, SwitchFailed(
                time_s=now_s, job=job.id, generation=record.rescue.vault, node="", rank=-1,
                reason=f"{what} of rank {', '.join(missing)} within {config.keep_s:g} s")))  # fmt: skip
        elif job.state is JobState.STOPPING:
            doomed += [(k, p) for k, p in sorted(record.processes.items()) if not p.is_started and (k, p) not in doomed]
        for (generation, rank), process in doomed:
            wait_s = config.linger_s + job.spec.stop_grace_s
            waits.append(((job.id, generation, rank, "gone"), wait_s, RankExited(
                time_s=now_s, job=job.id, generation=generation, node=process.slot.node, rank=rank, role="twin", code=-1,
                reason=f"no word of it for {wait_s:g} s; taken for gone")))  # fmt: skip
        return waits

    @staticmethod
    def _is_twin(record: Record, key: tuple[int, int]) -> bool:
        """Twins are told to end, and leavers hang on no command: only the former may be taken for gone."""
        return key[0] in record.abandoned or key[0] > record.job.generation

    def _switch(self, record: Record, now_s: float) -> list[Wait]:
        job, switch, config = record.job, record.job.switch, self.config
        if job.state is JobState.RUNNING and record.before and record.exits:
            reason = f"no old rank went back within {config.rescue_s:g} s"
            return [((job.id, job.generation, "back"), config.rescue_s, SwitchFailed(
                time_s=now_s, job=job.id, generation=job.generation, node="", rank=-1, reason=reason))]  # fmt: skip
        if job.state is not JobState.RUNNING or switch is None:
            return []
        common: dict[str, Any] = {"time_s": now_s, "job": job.id, "generation": switch.generation, "node": ""}
        key = (job.id, switch.generation, switch.phase.value, switch.step)
        moved = moved_ranks(job.placement, switch.placement)

        def late(wait_s: float, what: str) -> list[Wait]:
            return [(key, wait_s, SwitchFailed(**common, rank=-1, reason=f"{what} within {wait_s:g} s"))]

        if switch.phase is Phase.STANDBY:
            missing = ", ".join(str(rank) for rank in moved if rank not in switch.parked)
            return late(config.standby_s, f"no twin parked for rank {missing}")
        if switch.phase is Phase.CONNECT:
            missing = ", ".join(str(rank) for rank in range(job.workers) if rank not in switch.connected)
            return late(config.connect_s, f"no connection for rank {missing}")
        if switch.phase is Phase.SHADOW:
            missing = ", ".join(str(rank) for rank in moved if rank not in switch.shadowing)
            return late(config.shadow_s, f"the state was not followed by rank {missing}")
        if switch.phase is Phase.PROPOSE and switch.step is None:
            return [(key, 0.0, self._proposal(record, now_s))]
        if switch.phase is Phase.PROPOSE:
            return late(config.propose_s, f"not every node answered about step {switch.step}")
        if switch.phase is Phase.RESCUE and switch.step is not None and not switch.finished:
            return [(key, config.rescue_s, RankRolledBack(
                **common, rank=-1, step=switch.step, reason=f"no twin took over within {config.rescue_s:g} s"))]  # fmt: skip
        if switch.phase is Phase.COMMIT and record.unseen:
            return [((*key, "unseen"), config.rescue_s, WaitEnded(time_s=now_s, job=job.id))]
        if switch.phase is Phase.COMMIT and switch.step is not None and not switch.finished:
            # The page is not read in one piece: one step too many may belong to the new generation, two cannot.
            past = [r for r in record.progress.values() if r.generation == job.generation and r.step >= switch.step + 2]
            if switching.is_done(record):
                past = []  # an agent that was away may know them by their old generation
            waits: list[Wait] = [((*key, "past"), 0.0, RankRolledBack(
                **(common | {"node": r.node}), rank=r.rank, step=switch.step,
                reason="the ranks had waited too long for the decision")) for r in past[:1]]  # fmt: skip
            if switching.has_lost_staying(record):
                waits += [((*key, "lost"), config.rescue_s, RankRolledBack(
                    **common, rank=-1, step=switch.step, reason=f"no verdict within {config.rescue_s:g} s"))]  # fmt: skip
            if not any(
                generation == job.generation for generation, _ in record.processes
            ):  # nobody old is left to tell
                waits += [((*key, rank, "alone"), config.connect_s, RankExited(
                    **(common | {"node": process.slot.node}), rank=rank, role="twin", code=-1,
                    reason=f"silent for {config.connect_s:g} s after the last old rank had gone"))
                    for (generation, rank), process in sorted(record.processes.items()) if generation == switch.generation
                ]  # fmt: skip
            return waits
        return []

    def _proposal(self, record: Record, now_s: float) -> Event:
        """The next switch step: the furthest known step, what was made since that was reported, and a lead.

        The lead doubles with each refusal. A job that is over before its switch step is left alone.
        """
        job, switch, config = record.job, record.job.switch, self.config
        assert switch is not None
        common: dict[str, Any] = {"time_s": now_s, "job": job.id, "generation": switch.generation, "node": ""}
        tries = len(record.dead_steps)
        if tries >= config.proposals_max:
            reason = f"{tries} switch steps were refused, the last one {record.dead_steps[-1]}"
            return SwitchFailed(**common, rank=-1, reason=reason)
        step_s = job.profile.step_s
        reported_s = max((report.time_s for report in record.progress.values()), default=now_s)
        age_s = min(max(0.0, now_s - reported_s), config.progress_age_s_max) if not record.dead_steps else 0.0
        ahead = math.ceil(config.propose_ahead_s * 2**tries / step_s) if step_s > 0 else 0
        made = math.ceil(age_s / step_s) if step_s > 0 else 0
        known = max((record.known_step, *record.dead_steps))
        step = known + made + max(config.propose_ahead_steps, ahead)
        if job.steps_total is not None and step >= job.steps_total:
            left = max(0, job.steps_total - record.known_step)
            return SwitchFailed(
                **common, rank=-1, reason=f"the job is over first: {left} steps are left, not worth a move"
            )
        return StepProposed(**common, step=step)
