"""What the core remembers of a job besides the public Job: which processes exist, who answered, what was abandoned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from restow.core.config import LOSSES_MAX
from restow.job import Job, JobState, Kept, Phase, changed
from restow.messages import Progressed, RankExited, RankHalted, RankHung
from restow.placement import Placement, Slot, devices_held


@dataclass(frozen=True, slots=True)
class Process:
    """A rank, twin or leaver that exists as far as we know: from the moment it may have been started until it is gone."""

    slot: Slot
    is_started: bool = False  # reported by its agent


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandoned:
    """A switch that was given up. Kept until a later one succeeds, so that it can be said again after a restart."""

    reason: str
    nodes: tuple[str, ...]
    store_node: str
    step: int | None  # a proposal that may be waiting for its decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """The generation that a finished switch left. While a leaver of it lives, its ranks may go back to it."""

    generation: int
    placement: Placement
    store: tuple[str, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescue:
    """The state of a gang that has lost ranks is being put into the vaults, see recovery.py."""

    vault: int  # the generation that it is kept as
    lost: frozenset[int]
    reason: str
    gone: frozenset[str] = frozenset()  # nodes that were lost
    back: frozenset[str] = frozenset()  # those of them that are there again
    suspended: Kept | None = None  # the job was being suspended; this holds if any rank left with its state kept
    waits: str = ""  # why those that are gone are waited for; empty: they are not
    halted: dict[int, RankHalted] = field(default_factory=dict)  # rank → where it stands, or what is left of it
    said: dict[int, RankHalted] = field(default_factory=dict)  # lost rank → the same, said before it was lost
    searched: frozenset[tuple[int, str]] = frozenset()  # lost ranks, and nodes that have looked for what is left of them
    step: int | None = None  # chosen, once all have answered
    replicas: tuple[int, ...] = ()  # ranks that write what all hold alike
    copied: tuple[str, ...] = ()  # nodes that write it from the copies that their ranks have made
    kept: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointing:
    """A checkpoint is to be made, see checkpoints.py."""

    asked_s: float
    step: int | None = None  # proposed to the ranks of `generation`
    generation: int = 0
    tries: int = 0  # steps that were refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Evacuation:
    """What a drained node keeps of the job is moving to another one, see evacuating.py."""

    attempt: int
    generation: int  # by which the vaults know it
    source: str
    target: str
    began_s: float
    address: tuple[str, int] | None = None  # where the source gives it out


@dataclass(slots=True)
class Record:
    """One job with the core's own notes. Mutable; only core/ sees it."""

    job: Job
    losses_max: int = LOSSES_MAX  # in a row without a step in between
    store: tuple[str, int] | None = None  # of the present generation
    signatures: dict[int, str] = field(default_factory=dict)
    unmovable: dict[int, str] = field(default_factory=dict)  # rank → why not
    processes: dict[tuple[int, int], Process] = field(default_factory=dict)  # (generation, rank) →
    progress: dict[int, Progressed] = field(default_factory=dict)  # latest by rank; not journalled
    known_step: int = 0  # the furthest that any rank was seen at
    ending: JobState | None = None  # while STOPPING: what comes when the last process is gone
    torn: int = 0  # generation of a switch in COMMIT when the job was stopped: ranks may go by either number
    connected: set[tuple[int, str, str]] = field(default_factory=set)  # rank, node, role; of the switch
    dead_steps: tuple[int, ...] = ()  # proposals of the switch that were refused
    before: Before | None = None  # until the last leaver is gone
    back: frozenset[int] = frozenset()  # old ranks that said, after the verdict `done`, that they went back
    exits: dict[tuple[int, int], RankExited] = field(default_factory=dict)  # held back until the switch is decided
    unseen: dict[str, str] = field(default_factory=dict)  # nodes that were lost after the commit → why; empty: back
    abandoned: dict[int, Abandoned] = field(default_factory=dict)  # generation →
    hung: dict[int, RankHung] = field(default_factory=dict)  # rank → where it stands still
    hang_told: bool = False  # and the user knows
    early_losses: int = 0  # times that a rank was lost before the job had made its first steps
    lost_at: int = -1  # the furthest step at which it was lost ...
    losses: int = 0  # ... and how often it was lost there, without a step in between
    doomed: frozenset[int] = frozenset()  # ranks that are to be ended for it
    checkpointing: Checkpointing | None = None
    checkpoint_tried_step: int = 0  # how far the job was when the last one by steps was asked for
    rescue: Rescue | None = None  # while STOPPING, when the job is to go on
    rescue_signatures: tuple[str, ...] = ()  # of the gang that is being rescued
    parked: frozenset[int] = frozenset()  # ranks that are ready to take their kept state, while the gang comes back
    came_back: frozenset[int] = frozenset()  # those that have it and train
    discards: dict[str, int] = field(default_factory=dict)  # node → the latest kept state there that is not needed any more
    evacuation: Evacuation | None = None
    evacuations: int = 0  # attempts so far
    evacuation_failures: tuple[str, ...] = ()  # the targets of those in a row that failed ...
    evacuation_why: str = ""  # why the last of them did ...
    evacuate_after_s: float = 0.0  # ... and when the next one may begin
    nodes_used: set[str] = field(default_factory=set)  # where something of it may be left
    served: Placement = ()  # what its service is being counted for

    def change(self, **changes: Any) -> None:
        """The job with these fields; the very same where they are as they were."""
        self.job = changed(self.job, **changes)

    def change_switch(self, **changes: Any) -> None:
        assert self.job.switch is not None
        self.change(switch=replace(self.job.switch, **changes))

    def count_service(self, time_s: float) -> None:
        """It may have got devices, or given some back."""
        job = self.job
        if job.placement != self.served:
            served_s = job.served_s + devices_held(self.served) * max(0.0, time_s - job.served_at_s)
            self.served = job.placement
            self.change(served_s=served_s, served_at_s=time_s)

    def count_loss(self, step: int) -> None:
        """It was lost, and `step` is the furthest that it had come."""
        self.losses = self.losses + 1 if step <= self.lost_at else 1
        self.lost_at = max(step, self.lost_at)

    @property
    def hopeless(self) -> str:
        """Why it is not brought back any more after a loss; empty: it is."""
        if self.losses <= self.losses_max:
            return ""
        return f"that was so {self.losses} times at step {self.lost_at}, and no step was made in between"

    @property
    def phase(self) -> Phase | None:
        return self.job.switch.phase if self.job.switch else None

    @property
    def is_uncommitted(self) -> bool:
        """Is a switch under way that can still be abandoned?"""
        return self.phase in (Phase.STANDBY, Phase.CONNECT, Phase.SHADOW, Phase.PROPOSE)

    @property
    def is_committed(self) -> bool:
        """Is a switch under way whose outcome comes from the ranks alone?"""
        return self.phase in (Phase.COMMIT, Phase.RESCUE)

    def gang(self) -> Iterator[tuple[int, Process]]:
        """The processes of the present generation, by rank."""
        for (generation, rank), process in sorted(self.processes.items()):
            if generation == self.job.generation:
                yield rank, process

    def residue(self) -> Iterator[tuple[tuple[int, int], Process]]:
        """Leavers and abandoned twins: processes that belong neither to the gang nor to a switch that may still succeed."""
        expected = {self.job.generation}
        if self.job.switch and self.phase is not Phase.ABORT:
            expected.add(self.job.switch.generation)
        for key, process in sorted(self.processes.items()):
            if key[0] not in expected or self.job.state.is_final:
                yield key, process
