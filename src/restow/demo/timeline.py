"""What was seen of a cluster, as values: moments in order, and what can be read from them. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

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
    coming: tuple[Slot, ...] = ()  # where its twins are
    reason: str = ""
    loss: float | None = None
    id: str = ""
    sharing: str = ""  # how it shares its devices; empty: they are its own

    @property
    def is_running(self) -> bool:
        return self.state == "running"

    @property
    def is_final(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    @property
    def is_training(self) -> bool:
        """Running, and not yet through its last step."""
        return self.is_running and (self.steps_total is None or self.step < self.steps_total)


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

    def coming_to(self, device: Slot) -> JobSeen | None:
        """Whose twin waits on this device."""
        return next((job for job in self.jobs for slot in job.coming if slot[:2] == device[:2]), None)


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
    is_twin: bool = False


@dataclass(slots=True)
class Timeline:
    moments: list[Moment] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)
    move_s: float | None = None  # when the gang's switch was done
    speed_window_s: float = SPEED_WINDOW_S

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
            if not job or not job.is_training:
                return
            if newest is None:
                newest = (moment.time_s, job)
                continue
            passed_s = newest[0] - moment.time_s
            if passed_s >= self.speed_window_s and job.step > 0:
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
        """Who sat where from when to when, by device and time; a twin that waits counts as one, too."""
        unfinished: dict[Slot, Stay] = {}
        finished: list[Stay] = []
        for moment in self.moments:
            for device in moment.devices:
                job, twin = moment.at(device), moment.coming_to(device)
                who = job.name if job else twin.name if twin else ""
                is_twin = job is None and twin is not None
                stay = unfinished.get(device)
                if stay and (stay.job, stay.is_twin) != (who, is_twin):
                    finished.append(replace(stay, end_s=moment.time_s))
                    del unfinished[device]
                if who and device not in unfinished:
                    unfinished[device] = Stay(
                        device=device, job=who, begin_s=moment.time_s, end_s=moment.time_s, is_twin=is_twin
                    )
        end_s = self.moments[-1].time_s if self.moments else 0.0
        finished += [replace(stay, end_s=end_s) for stay in unfinished.values()]
        return sorted(finished, key=lambda stay: (stay.device, stay.begin_s))
