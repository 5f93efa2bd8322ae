"""What a job is and how it may change: the spec, the states, the table, and the phases of a switch.

Who applies the table: core/lifecycle.py. Who decides where a job should be: policies/.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from enum import Enum
from operator import attrgetter
from typing import Any

from restow.errors import SpecError
from restow.placement import Placement, devices_held

FILLS = ("auto", "replica", "copy", "shadow")
"""How a twin gets its state. `replica`: read at the switch step from a rank of the same node that holds the same boxes.
`copy`: sent at the switch step by the leaver over the link. `shadow`: read in the background, then each step's reduced
gradients, the twin runs the optimizer itself. `auto`: replica where there is one, shadow for big states, else copy."""


SHARE_MODES = ("auto", "exclusive", "interleave", "time-slice", "best-effort", "free")
"""How a job may share its devices. `exclusive`: not at all. `interleave`: turns inside a step, one computes while another waits.
`time-slice`: turns of many steps. `best-effort`: only in the gaps of a job that must not be hurt. `free`: all at once, as without
restow, to compare with. `auto`: restow chooses."""


LINK_CHOICES = ("auto", "on", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareSpec:
    """Whether and how other jobs may use the same devices."""

    allow: bool = True
    mode: str = "auto"  # one of SHARE_MODES
    protect: bool = False  # must not be hurt: it goes first, others run in its idle time only
    max_slowdown: float = 0.0  # longest step by sharing, as a part more than alone (0.03: 3 %); 0: 0.03 if protected, else 1.0
    memory_bytes: int = 0  # device memory that one worker may take, enforced by its allocator; 0: no limit
    quantum_s: float = 0.0  # of a turn in time slices; 0: restow chooses
    link: str = "auto"  # on, off: is the link between its nodes passed in turns, too? auto: where the link is scarcer

    def __post_init__(self) -> None:
        if self.mode not in SHARE_MODES:
            raise SpecError(f"share: mode is {self.mode!r}; choose one of {', '.join(SHARE_MODES)}")
        if not self.max_slowdown >= 0:
            raise SpecError(f"share: max_slowdown is {self.max_slowdown}; write a part such as 0.1 for 10 %")
        if not self.quantum_s >= 0:
            raise SpecError(f"share: quantum is {self.quantum_s}; write a number of seconds")
        if self.memory_bytes < 0:
            raise SpecError(f"share: memory is {self.memory_bytes}; it cannot be negative")
        if self.link not in LINK_CHOICES:
            raise SpecError(f"share: link is {self.link!r}; choose one of {', '.join(LINK_CHOICES)}")
        if self.protect and self.mode == "best-effort":
            raise SpecError("share: a job is protected or best-effort, not both; drop protect, or the mode")

    @property
    def is_exclusive(self) -> bool:
        """Its devices are its own."""
        return not self.allow or self.mode == "exclusive"

    @property
    def slowdown_max(self) -> float:
        return self.max_slowdown or (0.03 if self.protect else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one worker takes of its machine. A job that says so (`is_declared`) lies on one machine that has as much left."""

    share: float = 1.0  # of its device; less: the rest of it is for others; 0: it needs none
    cores: float = 0.0  # processor cores that it keeps busy; 0: not declared
    host_bytes: int = 0  # memory of the machine; 0: not declared

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise SpecError(f"share of a device is {self.share:g}; write a part from 0 to 1")
        if not self.cores >= 0:
            raise SpecError(f"cores is {self.cores:g}; it cannot be negative")
        if self.host_bytes < 0:
            raise SpecError(f"host memory is {self.host_bytes}; it cannot be negative")

    @property
    def is_declared(self) -> bool:
        return self.share < 1.0 or self.cores > 0 or self.host_bytes > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How a job shares its devices now: adopted with the schedule."""

    mode: str  # free, interleave or time-slice: what the gates of its devices do
    partners: tuple[str, ...]  # ids of the other jobs on exactly these devices
    level: int = 1  # its class at the gate: 0 protected, 1 ordinary, 2 best effort
    part: float = 1.0  # of the time that it asks for, best effort only; the guard of the protected job cuts it
    is_doubted: bool = False  # the protected job's steps were a little off at the last look: twice in a row counts
    held_part: float = 0.0  # its part again, once the protected job has been looked at alone; 0: no such look is taken
    quantum_s: float = 0.0  # of a turn, time slices only
    swap_bytes: int = 0  # of one worker, moved out of the device between its turns: what does not fit beside the others
    is_tight: bool = False  # only at save points do all fit the devices: whoever computes, updates too, holds the gate
    link_node: str = ""  # where the gate of the link is that the rank 0 of each of these jobs passes; empty: none does
    since_s: float = 0.0  # when this began, or was last changed ...
    since_steps: tuple[int, int] = (0, 0)  # ... and what this job and the one that goes first had made by then
    total_predicted: float = 0.0  # sum of relative speeds that was expected
    alone_step_s: float = 0.0  # its step alone: protected, when the others last stood still; free, before that; 0: as measured
    alone_at_s: float = 0.0  # of a protected job: when it was last alone, or looked at as if it were


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSpec:
    """When checkpoints are made, where they go, and how many stay."""

    folder: str = ""  # or a URL; each job has a folder of its own in it; empty: `checkpoints` where the command runs
    every_s: float = 0.0  # seconds from one to the next; 0: not by the clock
    every_steps: int = 0  # steps from one to the next; 0: not by steps
    keep: int = 2  # the newest ones; 0: all
    shared: bool = False  # every node sees the folder

    def __post_init__(self) -> None:
        if self.every_s < 0 or self.every_steps < 0:
            raise SpecError("checkpoint: every is negative; write a time such as 10min, or a number of steps such as 500 steps")
        if self.keep < 0:
            raise SpecError(f"checkpoint: keep is {self.keep}; write how many stay, or 0 for all")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What a user asked for. Never changes once accepted; what happens to the job is in Job."""

    command: tuple[str, ...]
    name: str = ""
    workers: int = 1  # size of the gang, at most; all start together or none does
    workers_min: int = 0  # it may also have fewer, down to these, see sizes_of; 0: it may not
    adapts_batch: bool = False  # it chooses a batch for each size of its gang, so that any in its range will do
    devices: tuple[int, int] = (0, 0)  # fewest and most devices that it may have, ranks taking turns on one; (0, 0): one each
    cwd: str = ""  # where the command runs; empty: where it was submitted
    env: tuple[tuple[str, str], ...] = ()  # added to the agent's own environment
    memory_bytes: int = 0  # peak device memory of one worker, as declared; 0: not declared
    steps: int = 0  # that it will make, as declared; 0: not declared
    deadline_s: float = 0.0  # from its submission until it should be done; 0: none
    tenant: str = ""  # for whom it is: a team, say; empty: for nobody in particular
    migrate: bool = True  # may restow move it?
    fill: str = "auto"  # one of FILLS
    max_pause_s: float = 60.0  # the longest pause of training that one move may cost
    stop_grace_s: float = 10.0  # between SIGTERM and SIGKILL
    recover: bool = True  # does the job go on when workers are killed or machines lost?
    priority: int = 0  # a waiting job of a higher one gets the devices of running ones of a lower, which are suspended
    retries: int = 0  # how often the job starts again after an error of its own, or a loss that nothing is left of
    hang_s: float = 0.0  # without a step for so long it stands still; 0: 20 usual steps and at least a minute; below 0: never
    on_hang: str = "report"  # or replace: the cause is ended and replaced
    on_slow: str = "report"  # or move: a rank that is much slower than its peers goes to a free device
    share: ShareSpec = field(default_factory=ShareSpec)
    demand: Demand = field(default_factory=Demand)  # of one worker; from traces so far, a spec file cannot say it
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)

    def __post_init__(self) -> None:
        if not self.command or not self.command[0].strip():
            raise SpecError("command is empty; give the program to run, for example [python, train.py]")
        if self.workers < 1:
            raise SpecError(f"workers is {self.workers}; a job needs at least 1")
        if self.workers_min and not 1 <= self.workers_min <= self.workers:
            raise SpecError(f"workers is {self.workers_min}..{self.workers}; write the smaller number first, 1 or more")
        low, high = self.devices
        if (low or high) and not 1 <= low <= high <= self.workers:
            way_out = f"write a range between 1 and the number of workers, for example 1..{self.workers}"
            raise SpecError(f"devices is {low}..{high}; {way_out}")
        if self.workers_min and (low or high):
            raise SpecError(f"devices is {low}..{high}, and workers is a range too; a job changes one of them, leave one out")
        if self.memory_bytes < 0:
            raise SpecError(f"memory_bytes is {self.memory_bytes}; it cannot be negative")
        if self.steps < 0:
            raise SpecError(f"steps is {self.steps}; it cannot be negative")
        if not 0 <= self.deadline_s < math.inf:
            raise SpecError(f"deadline is {self.deadline_s:g}; write a time above 0, for example 2h")
        if self.fill not in FILLS:
            raise SpecError(f"fill is {self.fill!r}; choose one of {', '.join(FILLS)}")
        if self.retries < 0:
            raise SpecError(f"retries is {self.retries}; it cannot be negative")
        for key, value, choices in (("hang", self.on_hang, ("report", "replace")), ("slow", self.on_slow, ("report", "move"))):
            if value not in choices:
                raise SpecError(f"{key} is {value!r}; choose {' or '.join(choices)}")
        if not self.max_pause_s > 0:
            raise SpecError(f"max_pause_s is {self.max_pause_s}; it must be above 0")
        if not self.stop_grace_s >= 0:
            raise SpecError(f"stop_grace_s is {self.stop_grace_s}; it cannot be negative")


def sizes_of(spec: JobSpec) -> tuple[int, ...]:
    """The world sizes that a job may have, greatest first: those in its range that divide the greatest, so that each worker makes
    the batches of as many workers as every other and the batch of all of them together stays the same; all, where it adapts it."""
    least = spec.workers_min or spec.workers
    return tuple(size for size in range(spec.workers, least - 1, -1) if spec.adapts_batch or spec.workers % size == 0)


class JobState(Enum):
    PENDING = "pending"  # holds no slots; waits for a policy to place it
    STARTING = "starting"  # slots held, workers launched, not every rank is alive yet
    RUNNING = "running"  # every rank is alive; a switch under way does not change this
    STOPPING = "stopping"  # told to leave; slots held until the last worker is gone
    DONE = "done"  # the command ended by itself with success; final
    FAILED = "failed"  # a worker ended with an error or was lost; final; `reason` says which and why
    CANCELLED = "cancelled"  # the user ended it; final

    @property
    def is_final(self) -> bool:
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class Phase(Enum):
    """How far a switch is. The table of what moves it on is in core/lifecycle.py."""

    STANDBY = "standby"  # twins run the script, rehearse and park
    CONNECT = "connect"  # staying ranks and twins build the group of the next generation
    SHADOW = "shadow"  # twins read state in the background and follow each step
    PROPOSE = "propose"  # a switch step is proposed; agents are asked whether their ranks can still stop there
    COMMIT = "commit"  # all can: decided; from here the ranks themselves finish or roll back
    RESCUE = "rescue"  # a moved rank was lost before that: its twin takes over in the middle of a step, or the job fails
    ABORT = "abort"  # being undone; the old generation goes on


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One change from generation g to g+1 under way. The job's own `generation` stays g until it is done."""

    generation: int  # g+1
    placement: Placement  # where every rank will be; empty: nowhere, the job is being suspended
    reason: str
    phase: Phase = Phase.STANDBY
    fill: str = "replica"  # decided for this switch: replica, copy, shadow, or vault where the job is suspended
    store: tuple[str, int] | None = None  # address of the store of generation g+1
    parked: frozenset[int] = frozenset()  # ranks whose twin has parked
    connected: frozenset[int] = frozenset()
    shadowing: frozenset[int] = frozenset()
    step: int | None = None  # the proposed or committed switch step
    answered: frozenset[str] = frozenset()  # nodes that said that their ranks can stop there
    finished: frozenset[int] = frozenset()  # ranks that reported the outcome
    started_s: float = 0.0
    phase_s: float = 0.0  # when this phase began


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One checkpoint of a job."""

    step: int
    path: str
    node: str  # that wrote it, and so sees it
    signatures: tuple[str, ...]  # rank → what its script had built
    time_s: float
    is_shared: bool = False  # every node sees it
    job: str = ""  # whose it is; empty: the job's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The state of a suspended job, in the vaults of the nodes where it ran, or in a checkpoint that one of them sees."""

    generation: int  # its name there
    step: int  # finished steps
    placement: Placement  # where each rank was: its own state is on that node
    replicas: tuple[str, ...]  # nodes where what all hold alike is
    is_rescued: bool = False  # it lost devices, and goes on with fewer if need be
    muted: tuple[int, ...] = ()  # ranks that have made the next step already: what they printed in it is not printed again
    signatures: tuple[str, ...] = ()  # rank → what its script had built; it must build the same again
    checkpoint: str = ""  # the folder or URL; empty: in vaults
    is_shared: bool = False  # every node sees the checkpoint
    checkpoint_job: str = ""  # the job whose checkpoint it is; empty: its own
    in_memory: tuple[str, ...] = ()  # nodes where it could not be put on disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What was measured of a running job: medians over recent steps, over its ranks the slowest. 0: not known yet."""

    step_s: float = 0.0
    exposed_s: float = 0.0  # part of step_s in which the rank waited for communication
    wire_bytes: int = 0  # bytes that one rank gives to collectives in one step (payload, not ring traffic)
    state_bytes: int = 0  # model and optimizer of one rank
    private_bytes: int = 0  # part of it that no other rank holds
    memory_bytes: int = 0  # peak device memory of one rank
    valley_bytes: int = 0  # device memory of one rank at its save points
    data_s: float = 0.0  # part of step_s in which the rank waited for its next batch
    waited_s: float = 0.0  # part of step_s in which it waited at the gate of a shared device
    held_s: float = 0.0  # part of step_s in which the gate was its own; 0 where the gate was free
    alone_step_s: float = 0.0  # step_s when nobody else was on its devices, the last time that was so
    local_bytes_per_s: float = 0.0  # learned while the whole gang was on one node: ring traffic by exposed time
    by_size: tuple[tuple[int, float], ...] = ()  # (workers, computing part of step_s) at each world size so far
    rehearsal_step_s: float = 0.0  # what a twin needed for one step alone, the last time one parked


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job as core/ sees it."""

    id: str
    spec: JobSpec
    state: JobState = JobState.PENDING
    generation: int = 0  # 0: never launched; counts up with each launch and each switch, done or not
    placement: Placement = ()  # actual: the slots held by `generation`
    intended: Placement = ()  # adopted from the schedule; empty: should hold none
    switch: Switch | None = None
    submitted_s: float = 0.0
    started_s: float | None = None  # first time RUNNING
    ended_s: float | None = None
    steps_done: int = 0
    steps_total: int | None = None
    movable: bool = False  # runs under the SDK and its ranks can take part in a switch
    profile: Profile = field(default_factory=Profile)
    alive: frozenset[int] = frozenset()  # ranks of `generation` that started and did not exit
    exited: frozenset[int] = frozenset()
    cancel_asked: bool = False
    reason: str = ""  # why it is where it is, or why it ended; one line for a person
    moves: int = 0  # finished switches
    suspensions: int = 0  # times that it gave its devices back and kept its state
    moved_s: float | None = None  # when the last switch ended, done or rolled back
    exit_code: int | None = None
    generations: int = 0  # the highest generation number ever used, abandoned ones included; never used again
    world_size: int = 0  # how many workers it has, or had when it last ran; 0: it never ran
    devices_asked: int = 0  # how many a person wants it to have (ScaleAsked); 0: as its spec says
    workers_asked: int = 0  # the same of workers
    pinned: Placement = ()  # where a person wants it (MigrateAsked); policies leave it there
    failed_moves: int = 0  # in a row; a finished move or a new request sets it back
    not_before_s: float = 0.0  # no further move before this time: the last one failed
    why_not: str = ""  # if not movable: one line with what would help
    away: str = ""  # a lost node that it lies on as a whole: it may train there unseen, and is waited for
    slow: frozenset[int] = frozenset()  # ranks that compute much longer than their peers where they are
    retried: int = 0  # times that it was started again after an error of its own, or a loss that nothing is left of
    paused: bool = False  # a person wants it to hold no devices (PauseAsked) until ResumeAsked
    kept: Kept | None = None  # its state, while it is suspended
    is_rescued: bool = False  # it came back after a loss, perhaps with fewer devices than it should have
    saved: tuple[Saved, ...] = ()  # its checkpoints that are kept, oldest first
    checkpoint_tried_s: float = 0.0  # when the last one was made, or could not be made ...
    checkpoint_why: str = ""  # ... and why not; empty: it was made
    share_asked: ShareSpec | None = None  # what a person asked for since it was submitted
    sharing: Sharing | None = None  # with whom and how; None: its devices are its own
    tried: tuple[tuple[str, str, float], ...] = ()  # (partner, mode, sum of relative speeds that was measured), each pair once
    friendliness: float = 1.0  # part of the bound that it has reached with others so far
    served_s: float = 0.0  # device seconds that it had held at `served_at_s`, the last time that it got or gave back devices
    served_at_s: float = 0.0
    seen_s: float = -1.0  # when steps_done was so; below 0: never

    def service_s(self, now_s: float) -> float:
        """Device seconds that it has held until now: its attained service. A shared device counts for the part that is its own."""
        return self.served_s + devices_held(self.placement) * max(0.0, now_s - self.served_at_s)

    def steps_by(self, now_s: float) -> float:
        """Steps that it has made by now, if it went on as it was last seen."""
        if self.state is not JobState.RUNNING or self.profile.step_s <= 0 or self.seen_s < 0:
            return float(self.steps_done)
        made = self.steps_done + max(0.0, now_s - self.seen_s) / self.profile.step_s
        return made if self.steps_total is None else min(made, float(max(self.steps_total, self.steps_done)))

    @property
    def steps_wanted(self) -> int | None:
        """All that it will make: as its script says, else as its spec does, unless it has made more."""
        if self.steps_total is not None:
            return self.steps_total
        return self.spec.steps if self.spec.steps and self.spec.steps >= self.steps_done else None

    @property
    def workers(self) -> int:
        """Its world size: as it is, or as it was, or as it is wanted."""
        return self.world_size or self.spec.workers

    @property
    def is_resizable(self) -> bool:
        return self.spec.workers_min > 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """The world sizes that it may start with, the best first."""
        if self.is_resizable and self.kept and self.kept.is_rescued:
            return (len(self.kept.placement),)  # with the same numbers as if nothing had been lost
        return (self.workers_asked,) if self.workers_asked else sizes_of(self.spec)

    @property
    def devices_min(self) -> int:
        """The fewest devices that it may have: one, where it has lost some and goes on with what is left."""
        if (self.kept and self.kept.is_rescued) or self.is_rescued:
            return 1
        workers = self.sizes[-1] if self.state is JobState.PENDING else self.workers
        return self.devices_asked or self.spec.devices[0] or workers

    @property
    def devices_max(self) -> int:
        workers = self.sizes[0] if self.state is JobState.PENDING else self.workers
        return self.devices_asked or self.spec.devices[1] or workers

    @property
    def waits(self) -> bool:
        """Does it want devices that it does not have?"""
        return self.state is JobState.PENDING and not self.paused

    @property
    def is_suspended(self) -> bool:
        """Is all that there is of it a kept state?"""
        return self.state is JobState.PENDING and self.kept is not None

    @property
    def share(self) -> ShareSpec:
        """How it may share its devices, as asked last."""
        return self.share_asked or self.spec.share


def is_resized(job: Job) -> bool:
    """Is it to have another number of workers than it has?"""
    return bool(job.placement and job.intended) and len(job.intended) != len(job.placement)


_FIELDS = tuple(field.name for field in fields(Job))
_values_of = attrgetter(*_FIELDS)
_put = {name: getattr(Job, name).__set__ for name in _FIELDS}  # past the frozen __setattr__, into the slot itself


def changed(job: Job, **changes: Any) -> Job:
    """`job` with some fields replaced; `job` itself where nothing differs. A third of the time of dataclasses.replace, in which a
    core with thousands of jobs would spend most of its own. Raises AttributeError for a field that there is not."""
    if all(getattr(job, name) == value for name, value in changes.items()):
        return job
    found = object.__new__(Job)
    for put, value in zip(_put.values(), _values_of(job), strict=True):
        put(found, value)
    for name, value in changes.items():
        _put[name](found, value)
    return found
