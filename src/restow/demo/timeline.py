"""What was seen of a cluster, as values: moments in order, and what can be read from them. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from restow.placement import Slot

SPEED_WINDOW_S = 2.0  # agents report twice a second; over a shorter time steps per second would jump


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSeen:
    """One job at one moment."""

    name: str
    state: str
    slots: tuple[Slot, ...]  # by rank
    step: int
    steps_total: int | None = None
    generation: int = 0
    phase: str = ""  # of a switch under way
    reason: str = ""
    loss: float | None = None

    @property
    def is_running(self) -> bool:
        return self.state == "running"

    @property
    def is_final(self) -> bool:
        return self.state in ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The cluster at one time."""

    time_s: float
    devices: tuple[Slot, ...]  # every device there is
    jobs: tuple[JobSeen, ...]
    link_bytes: int | None = None  # over the first node's interface, both ways, since the lab began; None: not known

    def job(self, name: str) -> JobSeen | None:
        return next((job for job in self.jobs if job.name == name), None)

    def at(self, device: Slot) -> JobSeen | None:
        """Whoever holds this device."""
        return next(
            (job for job in self.jobs for slot in job.slots if slot[:2] == device[:2] and not job.is_final), None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """Something to be told: an event of the cluster or a line of the story."""

    time_s: float
    text: str
    job: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """A job on a device for a time."""

    device: Slot
    job: str
    begin_s: float
    end_s: float


@dataclass(slots=True)
class Timeline:
    moments: list[Moment] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)
    move_s: float | None = None  # when the gang's switch was done

    @property
    def last(self) -> Moment | None:
        return self.moments[-1] if self.moments else None

    def steps_per_s(self, name: str) -> float | None:
        """The job's speed now; None while it makes no steps or has just begun."""
        return next((speed for _, speed in self._speeds(name, reversed(self.moments))), None)

    def speeds(self, name: str) -> list[tuple[float, float]]:
        """(time_s, steps per second) over the job's life, each over the window that ends there."""
        found = []
        for end in range(len(self.moments)):
            nearest = next(self._speeds(name, reversed(self.moments[: end + 1])), None)
            if nearest:
                found.append(nearest)
        return found

    def _speeds(self, name: str, newest_first: Iterable[Moment]) -> Iterator[tuple[float, float]]:
        newest: tuple[float, JobSeen] | None = None
        for moment in newest_first:
            job = moment.job(name)
            if not job or not job.is_running:
                return
            if newest is None:
                newest = (moment.time_s, job)
                continue
            passed_s = newest[0] - moment.time_s
            if passed_s >= SPEED_WINDOW_S and job.step > 0:
                yield newest[0], (newest[1].step - job.step) / passed_s
                return

    def link_bytes_per_s(self) -> float | None:
        """What crosses between the machines now."""
        end = self.last
        if end is None or end.link_bytes is None:
            return None
        for moment in reversed(self.moments):
            if moment.link_bytes is not None and end.time_s - moment.time_s >= 1.0:
                return (end.link_bytes - moment.link_bytes) / (end.time_s - moment.time_s)
        return None

    def stays(self) -> list[Stay]:
        """Who sat where from when to when, by device and time."""
        open_stays: dict[Slot, Stay] = {}
        closed: list[Stay] = []
        for moment in self.moments:
            for device in moment.devices:
                job = moment.at(device)
                stay = open_stays.get(device)
                if stay and (job is None or job.name != stay.job):
                    closed.append(Stay(device=device, job=stay.job, begin_s=stay.begin_s, end_s=moment.time_s))
                    del open_stays[device]
                if job and device not in open_stays:
                    open_stays[device] = Stay(device=device, job=job.name, begin_s=moment.time_s, end_s=moment.time_s)
        end_s = self.moments[-1].time_s if self.moments else 0.0
        closed += [Stay(device=s.device, job=s.job, begin_s=s.begin_s, end_s=end_s) for s in open_stays.values()]
        return sorted(closed, key=lambda stay: (stay.device, stay.begin_s))
