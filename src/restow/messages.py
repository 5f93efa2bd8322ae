"""Everything that is said between the controller and the agents, and everything that goes into the journal.

Events are past tense and come from agents, users or the clock; commands are imperative and go to one agent. Each carries
the job and the generation it is about. Their wire form is codec.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from restow.cluster import Device, Link
from restow.job import JobSpec, Kept, Saved, ShareSpec, Sharing
from restow.placement import Move, Placement

# ---------------------------------------------------------------- commands: controller → one agent

@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    job: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStore(Command):
    """Start the store of this generation on this node; answered by StoreOpened. It outlives ranks and agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch(Command):
    """Start those ranks of the gang that `placement` puts on this node."""

    spec: JobSpec
    placement: Placement
    store: tuple[str, int]
    secret: str  # hex; what this job's processes prove to each other


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare(Command):
    """Start twins of `ranks` here: same script, solo group, up to the park. Answered by TwinParked per rank."""

    spec: JobSpec
    placement: Placement  # of the new generation
    ranks: tuple[int, ...]  # those that this node is to get
    store: tuple[str, int]
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard(Command):
    """A switch to `generation` is being prepared: this node's old ranks keep from now on what it takes to do a step again
    without a leaver. Not answered: a leaver lost before that ends the job as it would have without a switch."""

    present: int  # the generation that trains now: ranks of an older one have no part in this
    now: Placement
    then: Placement
    store: tuple[str, int]
    fill: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect(Command):
    """Tell this node's ranks of the job (old generation and twins) to build the group of `generation` in the background."""

    present: int
    now: Placement  # of the old generation; empty: the job comes back from the vault
    then: Placement  # empty: the job is suspended
    store: tuple[str, int]
    fill: str  # replica, copy, shadow or vault
    kept: Kept | None = None  # where the state is that it comes back from


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVault(Command):
    """Give out what this node's vault holds of the job to the twins of `generation`. Not answered: a state that is not there or is
    damaged ends the attempt with SwitchFailed."""

    kept: Kept
    store: tuple[str, int]  # where the twins look for it
    secret: str
    checkpoint_secret: str = ""  # of the job whose checkpoint it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard(Command):
    """Remove what this node's vault holds of the job up to `generation`: it is not needed any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferVault(Command):
    """Give out the files that this node's vault holds of the suspended job, as they are, to the node that they move to. Answered by
    VaultOffered, or VaultMoveFailed when they are not there or damaged. `generation` is that of `kept`."""

    attempt: int  # counts up with each move of this job's state
    kept: Kept
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeVault(Command):
    """Fetch what `source` holds of the suspended job into this node's vault. Answered by VaultMoved, when it is all there and
    checked, or VaultMoveFailed. `generation` is that of `kept`."""

    attempt: int
    kept: Kept
    source: str
    address: tuple[str, int]  # where it gives it out
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(Command):
    """Take a snapshot of the job at the save point after `step` steps and write a checkpoint from it into `folder`. Answered by
    CheckpointWritten, CheckpointFailed, or SnapshotRefused where a rank has passed the step."""

    step: int
    folder: str  # of the job's checkpoints
    keep: int
    workers: int
    signatures: tuple[str, ...]
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill(Command):
    """End this rank at once (SIGKILL): it stands still. What follows is what follows on any loss."""

    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt(Command):
    """Ranks of this generation were lost: those that are left on this node stop before they change their state again, and say where
    they are (RankHalted); so does this node for those of the lost that were here."""

    lost: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep(Command):
    """Put the state of `step` into this node's vault as generation `vault`: halted ranks write their own, those in `replicas` also
    what all hold alike, then they leave; this node writes for the lost, and before all that, if `copied`, what all hold alike from
    the copies that its ranks made. Answered by RankKept for each."""

    vault: int
    step: int
    replicas: tuple[int, ...]
    lost: tuple[int, ...]
    copied: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LetGo(Command):
    """A rank of this generation ended by itself, so nobody comes back for the others: whoever waits for a word about a collective
    that failed hears its error at once. Not answered; said again to an agent that is new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Propose(Command):
    """Write switch step `step` where this node's old ranks look; answered by StepAccepted or StepRefused."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decide(Command):
    """Write the decision into the store of `generation` (this node keeps it): go at `step`, or abort.

    First writer wins; ranks in doubt may have written `abort` before.
    """

    step: int
    go: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandon(Command):
    """Forget the switch to `generation`: end its twins, tell the old ranks. Harmless when repeated or late."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(Command):
    """SIGTERM to this node's ranks of the generation, SIGKILL after the grace. RankExited follows for each."""

    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Share(Command):
    """From now on this job uses its devices on this node in this way. Not answered; said again to an agent that is new."""

    sharing: Sharing


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget(Command):
    """The job is final: end what is left of it here (twins, stores), keep its logs."""


# ---------------------------------------------------------------- events

@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    time_s: float  # wall clock, of whoever saw it


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeJoined(Event):
    node: str
    address: str
    devices: tuple[Device, ...]
    cores: float = 0.0  # for its jobs; 0: not counted
    host_bytes: int = 0  # of its memory, for them; 0: not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLost(Event):
    node: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRanOut(Event):
    """The node is there and was all the time, but heard nothing of the controller for longer than its lease: ranks of gangs that
    lie on other nodes too have been halted."""

    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCordoned(Event):
    """A person wants that nothing new is started there (or, again, that it is)."""

    node: str
    is_cordoned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDrained(Event):
    """A person wants the node empty (or, again, in use). Jobs that find no room elsewhere are suspended after `by_s`."""

    node: str
    is_draining: bool
    by_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkMeasured(Event):
    """`a` equal to `b`: between two ranks on that node."""

    a: str
    b: str
    link: Link


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSubmitted(Event):
    job: str
    spec: JobSpec
    saved: tuple[Saved, ...] = ()  # checkpoints of another job, the last of which it goes on from


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAsked(Event):
    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateAsked(Event):
    """A person asked for a move; the placement was checked when it was asked. The policy keeps it there."""

    job: str
    placement: Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseAsked(Event):
    """A person wants the job to hold no devices. Its state is kept."""

    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeAsked(Event):
    """A person wants a paused job to go on when there are devices for it."""

    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleAdopted(Event):
    """Journalled before it takes effect."""

    placements: tuple[tuple[str, Placement], ...]
    reasons: tuple[tuple[str, str], ...]
    sharing: tuple[tuple[str, Sharing], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitEnded(Event):
    """By the clock: a job was away with its node for so long that it goes on elsewhere, from its last checkpoint. Or
    ranks that were to agree on what comes out of a switch were out of sight for so long that they count as gone."""

    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointAsked(Event):
    """A person, or the job itself (SIGUSR1), wants a checkpoint now."""

    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleAsked(Event):
    """A person wants the job on so many devices, its ranks taking turns where these are fewer, or with so many workers (0: as its
    spec says)."""

    job: str
    devices: int
    workers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareAsked(Event):
    """A person says how a job is to share its devices from now on, instead of what its spec says."""

    job: str
    share: ShareSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingMeasured(Event):
    """What jobs on the same devices reached together; `total` and `predicted` are sums of relative speeds (1.0: one alone)."""

    jobs: tuple[str, ...]
    mode: str
    speeds: tuple[float, ...]  # of each job, relative to alone
    total: float
    predicted: float
    kept: bool  # False: parted, and remembered
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MovePredicted(Event):
    """What was expected of a move when its schedule was adopted. For people and for learning; changes no job."""

    move: Move


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFailed(Event):
    """The policy gave no schedule that could be adopted; everything stays as it was. For people; changes no job."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveMeasured(Event):
    """What a finished switch really cost and brought. For people and for learning; changes no job."""

    job: str
    generation: int  # the one that it led to
    now: Placement  # where the job was
    then: Placement
    reason: str
    step: int  # the switch step
    step_before_s: float  # seconds per step over the last steps before the switch was prepared; 0: not seen
    step_predicted_s: float  # 0: nobody predicted
    step_after_s: float  # over at least ten steps after it
    downtime_s: float  # end of the last old step to start of the first new one, the longest of all ranks
    downtime_predicted_s: float
    wire_bytes: int  # received over links during the pause, all ranks
    lost_steps: int  # steps that were done twice; 0 unless something is broken
    phases: tuple[tuple[str, float], ...] = ()  # seconds by part, of the rank that paused longest


@dataclass(frozen=True, slots=True, kw_only=True)
class GangEvent(Event):
    """About one generation of one job; if it is not the present one (or the switch's), it changes nothing."""

    job: str
    generation: int
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOpened(GangEvent):
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStarted(GangEvent):
    rank: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReady(GangEvent):
    """The rank came through its first steps under the SDK and can take part in a switch."""

    rank: int
    signature: str  # hash of code, tensor names, shapes and bucket layout; equal on all ranks of a data-parallel job
    state_bytes: int
    private_bytes: int
    movable: bool
    why_not: str = ""  # if not movable: one line, with what would help


@dataclass(frozen=True, slots=True, kw_only=True)
class RankExited(GangEvent):
    """A process of the gang (or a twin, or a leaver that retired: `role`) is gone. `code` is negative for a signal."""

    rank: int
    role: str  # "rank", "twin" or "leaver"
    code: int
    reason: str = ""  # last words: the exception line, or "killed by SIGKILL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed(GangEvent):
    """Read from the rank's page about twice a second; not journalled one by one."""

    rank: int
    step: int  # finished steps
    steps_total: int | None
    step_s: float
    exposed_s: float
    wire_bytes: int
    memory_bytes: int
    valley_bytes: int = 0
    data_s: float = 0.0
    waited_s: float = 0.0
    held_s: float = 0.0
    values: tuple[tuple[str, float], ...] = ()  # what the script reported last, for example (("loss", 0.31),)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFenced(GangEvent):
    """A rank held a shared device for longer than its lease, or was stopped while it did: others go on without it."""

    rank: int
    device: int
    held_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnGivenOn(GangEvent):
    """In a time slice: the job had the turn on this device and did not use it, while another waited, whose turn it is now."""

    device: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinParked(GangEvent):
    rank: int
    signature: str
    rehearsal_step_s: float  # one step alone on the destination, no peers: its computing time there


@dataclass(frozen=True, slots=True, kw_only=True)
class RankConnected(GangEvent):
    rank: int
    role: str = ""  # "rank" (staying or leaving) or "twin"; needed only when both are on one node


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowReady(GangEvent):
    """The twin holds the state and follows every step."""

    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProposed(GangEvent):
    """The controller chose a switch step (it depends on progress, which is not journalled, so the choice is)."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAccepted(GangEvent):
    """All old ranks of this node will see the proposed switch step in time."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRefused(GangEvent):
    """A rank of this node is too far already (or has no page); `at` is its step."""

    step: int
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSwitched(GangEvent):
    """This rank (staying, or the twin that now holds it) trains in `generation`. Times on this node's clock."""

    rank: int
    step: int
    pause_s: float  # end of the last old step → start of the first new one
    wire_bytes: int  # received for this rank over the link during the pause, counted by the receiver
    phases: tuple[tuple[str, float], ...] = ()  # seconds by part: decide, private, fill, prove, ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RankHalted(GangEvent):
    """Where a rank stands after others of its gang were lost; or, of a lost one, what is left of it on its node."""

    rank: int
    step: int  # finished steps
    holds: tuple[int, ...]  # steps as of which it holds what all hold alike
    privates: tuple[int, ...]  # steps whose private state is there
    stripe: tuple[int, int] = (0, 0)  # which stripe of its node's copies of what all hold alike it makes, of how many; of none: 0
    copied: tuple[int, ...] = ()  # steps of which that stripe is there


@dataclass(frozen=True, slots=True, kw_only=True)
class RankKept(GangEvent):
    """The state of this rank as of `step` is in the vault of its node, and it leaves. Proves that every rank's is."""

    rank: int
    step: int
    bytes: int  # that this rank wrote
    pause_s: float = 0.0  # from the end of its last step
    phases: tuple[tuple[str, float], ...] = ()  # seconds by part


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRolledBack(GangEvent):
    """The switch to `generation` did not happen; this old rank goes on from the same step."""

    rank: int
    step: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchFailed(GangEvent):
    """Something needed for the switch to `generation` failed before it was decided (no shared memory, other signature,
    connection refused …). The controller abandons it."""

    rank: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchFailed(GangEvent):
    rank: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankHung(GangEvent):
    """No step for much longer than usual; where the training thread is. `given` -1: the process does not answer."""

    rank: int
    step: int  # finished steps
    silent_s: float
    at: str  # the innermost line of the script
    waits: bool  # for others, in a collective or at a gate
    given: int  # collectives of its generation so far
    stack: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHung(GangEvent):
    """By the clock: what came of the words of all ranks. `ranks`: the causes."""

    ranks: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSlow(GangEvent):
    """By the clock: for some time this rank has computed much longer in each step than its peers."""

    rank: int
    own_s: float
    others_s: float  # their median


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointProposed(GangEvent):
    """By the clock: at this step a checkpoint is to be made."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRefused(GangEvent):
    """This rank had passed `step` when it was told: it was at `at`."""

    rank: int
    step: int
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointWritten(GangEvent):
    rank: int
    step: int
    path: str
    bytes: int
    blocked_s: float  # that training stood still for it
    write_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFailed(GangEvent):
    """None was made; what there was before stays. Step -1: none was agreed upon."""

    rank: int
    step: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultNotOnDisk(GangEvent):
    """What `node` keeps of the suspended job (as `generation`) is in its memory only, and gone if that node restarts."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultMoveProposed(GangEvent):
    """By the clock: what `node`, which is drained, keeps of this suspended job (as `generation`) is to move to `target`."""

    target: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultOffered(GangEvent):
    """`node` gives out what it keeps of the suspended job."""

    attempt: int
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultMoved(GangEvent):
    """All that `source` keeps of the suspended job is in the vault of `node`, too, checked."""

    attempt: int
    source: str
    bytes: int  # that were not there before
    copy_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultMoveFailed(GangEvent):
    """The state stays where it is. `node` noticed it; empty: nobody answered in time."""

    attempt: int
    reason: str
