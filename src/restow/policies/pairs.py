"""What jobs that share devices reach together, from what their pages say. Pure: no clock, no I/O.

Said once for each group and mode when enough steps were made under it, and again every `again_s`, so that what is known of a
pair stays fresh. The alone speed is the one that was measured alone, else the step without its waits at the gate. In time slices
steps are counted instead, since no step of a turn holds the wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from restow.job import Job, JobState
from restow.messages import SharingMeasured
from restow.policies.sharing import SharingConfig, alone_s, speed_of

AGAIN_S = 60.0


class Pairs:
    """`observe` the jobs now and then; it yields what is newly measured."""

    def __init__(self, config: SharingConfig | None = None, again_s: float = AGAIN_S):
        self._config, self._again_s = config or SharingConfig(), again_s
        self._began: dict[tuple[tuple[str, ...], str], tuple[float, dict[str, int]]] = {}  # group, mode → since, steps then
        self._said_s: dict[tuple[tuple[str, ...], str], float] = {}

    def observe(self, jobs: Mapping[str, Job], now_s: float) -> Iterator[SharingMeasured]:
        groups = {
            (tuple(sorted((job.id, *job.sharing.partners))), job.sharing.mode)
            for job in jobs.values()
            if job.sharing and job.state is JobState.RUNNING
        }
        for gone in self._began.keys() - groups:
            del self._began[gone]
            self._said_s.pop(gone, None)
        for group in sorted(groups):
            names, mode = group
            members = [jobs[name] for name in names if name in jobs]
            is_look = any(job.sharing and job.sharing.held_part and not job.sharing.part for job in members)
            if is_look or len(members) < len(names) or any(job.state is not JobState.RUNNING or job.switch for job in members):
                self._began.pop(group, None)
                continue
            since_s, steps = self._began.setdefault(group, (now_s, {job.id: job.steps_done for job in members}))
            made = min(job.steps_done - steps[job.id] for job in members)
            is_settled = now_s - since_s >= self._config.protection.settle_s and made >= self._config.steps_min
            if not is_settled or now_s - self._said_s.get(group, -self._again_s) < self._again_s:
                continue
            if any(alone_s(job) <= 0 for job in members):
                continue
            self._said_s[group] = now_s
            is_sliced = mode == "time-slice"
            rate = {job.id: (job.steps_done - steps[job.id]) / (now_s - since_s) for job in members}
            speeds = [min(1.0, rate[job.id] * alone_s(job)) if is_sliced else speed_of(job) for job in members]
            yield self._measured(members, mode, speeds, now_s)

    def _measured(self, members: list[Job], mode: str, measured: list[float], now_s: float) -> SharingMeasured:
        speeds = tuple(round(speed, 4) for speed in measured)
        total, predicted = sum(speeds), max((job.sharing.total_predicted for job in members if job.sharing), default=0.0)
        least = self._config.turns_min if mode == "time-slice" else self._config.kept_min
        is_kept = total >= least
        words = "kept" if is_kept else f"not worth it: {least:g} is the least"
        return SharingMeasured(
            time_s=now_s, jobs=tuple(job.id for job in members), mode=mode, speeds=speeds, total=round(total, 4),
            predicted=round(predicted, 4), kept=is_kept, reason=words,
        )  # fmt: skip
