"""Agents that obey: an honest fake of all nodes, processes and ranks, without processes or time of their own.

`Cluster` joins them to a real ClusterState and a real policy, as the controller does: journal, observe, tick, decide, command.
Faults are asked for by the test: kill a process, lose a node, refuse proposals, forget to answer.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

from restow.cluster import Device, Link
from restow.core import comparison, invariants
from restow.core.state import ClusterState
from restow.job import Job, JobSpec, ShareSpec, Sharing
from restow.messages import (
    Abandon,
    CancelAsked,
    CheckpointWritten,
    Command,
    Connect,
    Decide,
    Discard,
    Event,
    Forget,
    Guard,
    Halt,
    JobSubmitted,
    Keep,
    Kill,
    Launch,
    LetGo,
    LinkMeasured,
    MigrateAsked,
    NodeJoined,
    NodeLost,
    OfferVault,
    OpenStore,
    OpenVault,
    PauseAsked,
    Prepare,
    Progressed,
    Propose,
    RankConnected,
    RankExited,
    RankHalted,
    RankKept,
    RankReady,
    RankRolledBack,
    RankStarted,
    RankSwitched,
    ResumeAsked,
    ShadowReady,
    Share,
    ShareAsked,
    SharingMeasured,
    Snapshot,
    StepAccepted,
    StepRefused,
    Stop,
    StoreOpened,
    SwitchFailed,
    TakeVault,
    TwinParked,
    VaultMoved,
    VaultMoveFailed,
    VaultOffered,
)  # fmt: skip
from restow.placement import Schedule, moved_ranks, nodes_of, parse_placement
from restow.policies.base import Policy
from restow.policies.consolidate import Consolidate
from restow.policies.pairs import Pairs

SECRET = "5e"


@dataclass
class Program:
    """What a job's script does, as far as agents can see."""

    steps_total: int = 10_000
    step: int = 0
    step_s: float = 0.0  # 0: says nothing of its speed
    exposed_s: float = 0.0
    data_s: float = 0.0
    waited_s: float = 0.0  # at the gate
    wire_bytes: int = 0
    memory_bytes: int = 0
    valley_bytes: int = 0
    state_bytes: int = 100_000_000
    uses_sdk: bool = True


@dataclass
class Worker:
    node: str
    generation: int
    role: str  # rank, twin or leaver


@dataclass
class Agents:
    """All agents. `tell` obeys at once; what they then report waits in `reports`, in the order of each node."""

    reports: list[Event] = field(default_factory=list)
    workers: dict[tuple[str, int, int], Worker] = field(default_factory=dict)  # (job, generation, rank) →
    programs: dict[str, Program] = field(default_factory=lambda: defaultdict(Program))
    decisions: dict[tuple[str, int, int], bool] = field(default_factory=dict)  # (job, generation, step) → go
    placements: dict[tuple[str, int], tuple] = field(default_factory=dict)
    slow: dict[tuple[str, int], float] = field(default_factory=dict)  # (job, rank) → what it computes of each step
    deaf: set[type] = field(default_factory=set)  # commands that get lost
    dead_nodes: set[str] = field(default_factory=set)
    full_nodes: set[str] = field(default_factory=set)  # without room for another state
    sharing: dict[tuple[str, str], Sharing] = field(default_factory=dict)  # (node, job) → what the agent was told last
    vaults: set[tuple[str, str, int]] = field(default_factory=set)  # (node, job, generation) of kept states
    buddies: dict[tuple[str, int], str] = field(default_factory=dict)  # job, rank → node with a replica of what it alone holds
    left: dict[tuple[str, int], str] = field(default_factory=dict)  # job, rank that was killed → node with what is left of it
    come: dict[tuple[str, int], int] = field(default_factory=dict)  # nodes that were told to connect a gang that comes back
    wrong_twins: bool = False  # they build another model
    now_s: float = 0.0

    def tell(self, node: str, command: Command) -> None:
        if type(command) not in self.deaf and node not in self.dead_nodes:
            getattr(self, type(command).__name__.lower())(node, command)

    def say(self, kind: type, command: Command, node: str, **rest: object) -> None:
        event = kind(time_s=self.now_s, job=command.job, generation=command.generation, node=node, **rest)
        self.reports.append(event)

    def here(self, node: str, job: str) -> list[tuple[tuple[str, int, int], Worker]]:
        return [(key, worker) for key, worker in sorted(self.workers.items()) if worker.node == node and key[0] == job]

    def openstore(self, node: str, command: OpenStore) -> None:
        self.say(StoreOpened, command, node, host=f"10.0.0.{node[-1]}", port=4000 + command.generation)

    def launch(self, node: str, command: Launch) -> None:
        self.placements[command.job, command.generation] = command.placement
        program = self.programs[command.job]
        for rank, slot in enumerate(command.placement):
            key = (command.job, command.generation, rank)
            if slot.node != node or key in self.workers:
                continue
            self.workers[key] = Worker(node, command.generation, "rank")
            self.say(RankStarted, command, node, rank=rank, pid=100 + rank)
            if program.uses_sdk:
                self.say(RankReady, command, node, rank=rank, signature=f"s.{rank}", state_bytes=program.state_bytes,
                         private_bytes=0, movable=True)  # fmt: skip

    def prepare(self, node: str, command: Prepare) -> None:
        self.placements[command.job, command.generation] = command.placement
        for rank in command.ranks:
            key = (command.job, command.generation, rank)
            if key not in self.workers:
                self.workers[key] = Worker(node, command.generation, "twin")
                signature = "other" if self.wrong_twins else f"s.{rank}"
                self.say(TwinParked, command, node, rank=rank, signature=signature, rehearsal_step_s=0.05)

    def guard(self, node: str, command: Guard) -> None:
        """Nothing to say: what it is for shows when a leaver is lost."""

    def share(self, node: str, command: Share) -> None:
        self.sharing[node, command.job] = command.sharing

    def connect(self, node: str, command: Connect) -> None:
        for (_, generation, rank), worker in self.here(node, command.job):
            if (worker.role == "twin" and generation != command.generation) or worker.role == "leaver":
                continue
            self.say(RankConnected, command, node, rank=rank, role=worker.role)
            if worker.role == "twin" and command.fill == "shadow":
                self.say(ShadowReady, command, node, rank=rank)
        if not command.then:
            self.placements[command.job, command.generation] = ()
        if command.kept:
            self.come_back(command)

    def come_back(self, command: Connect) -> None:
        """When the last twin has heard of it, all take their state from the vaults."""
        kept = command.kept
        assert kept
        self.come[command.job, command.generation] = self.come.get((command.job, command.generation), 0) + 1
        twins = {k[2]: k for k, w in self.workers.items() if k[:2] == (command.job, command.generation) and w.role == "twin"}
        whole = set(twins) == set(range(len(command.then)))
        if not whole or self.come[command.job, command.generation] < len(nodes_of(command.then)):
            return
        self.programs[command.job].step = kept.step
        for rank, key in sorted(twins.items()):
            self.workers[key].role = "rank"
            node = self.workers[key].node
            self.say(RankSwitched, command, node, rank=rank, step=kept.step, pause_s=0.1, wire_bytes=0)
            self.say(RankReady, command, node, rank=rank, signature=f"s.{rank}", movable=True, private_bytes=0,
                     state_bytes=self.programs[command.job].state_bytes)  # fmt: skip

    def kill(self, node: str, command: Kill) -> None:
        for key, worker in self.here(node, command.job):
            if (worker.role, key[1], key[2]) == ("rank", command.generation, command.rank):
                self.exit(key, -9)

    def letgo(self, node: str, command: LetGo) -> None:
        """Nothing to say: ranks here wait for nobody."""

    def snapshot(self, node: str, command: Snapshot) -> None:
        """The node of rank 0 writes it."""
        if ("rank", command.generation, 0) in [(w.role, key[1], key[2]) for key, w in self.here(node, command.job)]:
            self.say(CheckpointWritten, command, node, rank=0, step=command.step, path=f"{command.folder}/{command.step}", bytes=1,
                     blocked_s=0.0, write_s=0.0)  # fmt: skip

    def halt(self, node: str, command: Halt) -> None:
        """Who is left says where it stands, and the node what is left of the lost."""
        step = self.programs[command.job].step
        for key, worker in self.here(node, command.job):
            if worker.role == "rank" and worker.generation == command.generation:
                self.say(RankHalted, command, node, rank=key[2], step=step, holds=(step,), privates=(step - 1, step))
        for rank in command.lost:
            has = node in (self.left.get((command.job, rank)), self.buddies.get((command.job, rank)))
            self.say(RankHalted, command, node, rank=rank, step=step, holds=(), privates=(step - 1, step) if has else ())

    def keep(self, node: str, command: Keep) -> None:
        for key, worker in self.here(node, command.job):
            if worker.role == "rank" and worker.generation == command.generation:
                self.kept(node, command, key[2])
                worker.role = "leaver"
                self.exit(key, 0)
        for rank in command.lost:
            self.kept(node, command, rank)

    def kept(self, node: str, command: Keep, rank: int) -> None:
        self.vaults.add((node, command.job, command.vault))
        self.reports.append(RankKept(
            time_s=self.now_s, job=command.job, generation=command.vault, node=node, rank=rank, step=command.step, bytes=1000
        ))  # fmt: skip

    def openvault(self, node: str, command: OpenVault) -> None:
        if not command.kept.checkpoint and (node, command.job, command.kept.generation) not in self.vaults:
            self.say(SwitchFailed, command, node, rank=-1, reason="there is nothing in the vault")

    def offervault(self, node: str, command: OfferVault) -> None:
        self.say(VaultOffered, command, node, attempt=command.attempt, host=node, port=5000 + command.attempt)

    def takevault(self, node: str, command: TakeVault) -> None:
        is_there = (command.source, command.job, command.generation) in self.vaults and command.source not in self.dead_nodes
        if node in self.full_nodes or not is_there:
            why = "No space left on device" if node in self.full_nodes else "the connection broke"
            self.say(VaultMoveFailed, command, node, attempt=command.attempt, reason=why)
        else:
            self.vaults.add((node, command.job, command.generation))
            self.say(VaultMoved, command, node, attempt=command.attempt, source=command.source, bytes=1000, copy_s=0.1)

    def discard(self, node: str, command: Discard) -> None:
        self.vaults = {entry for entry in self.vaults if entry[:2] != (node, command.job) or entry[2] > command.generation}

    def suspend(self, command: Decide, old: dict[int, tuple[str, int, int]]) -> None:
        """Every rank writes its state into its node's vault and leaves."""
        program = self.programs[command.job]
        program.step = max(program.step, command.step)
        for rank, key in sorted(old.items()):
            worker = self.workers[key]
            self.vaults.add((worker.node, command.job, command.generation))
            worker.role = "leaver"
            self.say(RankKept, command, worker.node, rank=rank, step=command.step, bytes=1000)
            self.exit(key, 0)

    def propose(self, node: str, command: Propose) -> None:
        step = self.programs[command.job].step
        if step < command.step:
            self.say(StepAccepted, command, node, step=command.step)
        else:
            self.say(StepRefused, command, node, step=command.step, at=step)

    def decide(self, node: str, command: Decide) -> None:
        go = self.decisions.setdefault((command.job, command.generation, command.step), command.go)
        then = self.placements[command.job, command.generation]
        twins = {
            k[2]: k for k, w in self.workers.items() if k[:2] == (command.job, command.generation) and w.role == "twin"
        }
        old = {k[2]: k for k, w in self.workers.items() if k[0] == command.job and w.role == "rank"}
        if not (go and command.go) or any(key[1] == command.generation for key in old.values()):
            return  # said before
        now = self.placements[command.job, min((key[1] for key in old.values()), default=command.generation)]
        if not then:
            if set(old) == set(range(len(now))):
                self.suspend(command, old)
            return
        moved = set(moved_ranks(now, then))
        whole = set(old) == set(range(len(then))) and set(twins) == moved
        if not whole:  # somebody is missing: the others wait in vain, and their verdict is to roll back
            for rank, key in sorted(old.items()):
                self.say(
                    RankRolledBack, command, self.workers[key].node, rank=rank, step=command.step, reason="no answer"
                )
            for _, key in sorted(twins.items()):
                self.exit(key, 1, "rolled back")
            return
        program = self.programs[command.job]
        program.step = max(program.step, command.step)
        for rank, slot in enumerate(then):
            new = (command.job, command.generation, rank)
            leaver = self.workers[old[rank]]
            if new in self.workers:
                self.workers[new].role = "rank"
                leaver.role = "leaver"
            else:
                self.workers[new] = self.workers.pop(old[rank])
                self.workers[new].generation = command.generation
            self.say(RankSwitched, command, slot.node, rank=rank, step=command.step, pause_s=0.06, wire_bytes=12_600)
            if leaver.role == "leaver":
                self.exit(old[rank], 0)

    def abandon(self, node: str, command: Abandon) -> None:
        for key, worker in self.here(node, command.job):
            if worker.role == "twin" and key[1] == command.generation:
                self.exit(key, 0)

    def stop(self, node: str, command: Stop) -> None:
        for key, worker in self.here(node, command.job):
            if key[1] == command.generation and worker.role in ("rank", "twin"):
                self.exit(key, -15)

    def forget(self, node: str, command: Forget) -> None:
        for key, _ in self.here(node, command.job):
            self.exit(key, -9)

    def exit(self, key: tuple[str, int, int], code: int, reason: str = "") -> None:
        """A process ends, whoever wanted it."""
        worker = self.workers.pop(key)
        if code < 0 and worker.role == "rank":
            self.left[key[0], key[2]] = worker.node
        self.reports.append(RankExited(
            time_s=self.now_s, job=key[0], generation=key[1], node=worker.node, rank=key[2], role=worker.role, code=code,
            reason=reason))  # fmt: skip

    def training(self, job: str) -> dict[int, list[tuple[str, int, int]]]:
        """Rank → its processes that are neither twin nor leaver; more than one is the worst thing that can happen."""
        ranks: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
        for key, worker in sorted(self.workers.items()):
            if key[0] == job and worker.role == "rank":
                ranks[key[2]].append(key)
        return dict(ranks)


class Cluster:
    """State, policy and obedient agents; `run()` lets all of it happen until nothing does."""

    def __init__(
        self, nodes: str = "", link_bytes_per_s: float | None = None, policy: Policy | None = None, memory_bytes: int = 0
    ):  # fmt: skip
        self.state = ClusterState(SECRET)
        self.policy = policy or Consolidate()
        self.pairs = Pairs()
        self.memory_bytes = memory_bytes  # of each device
        self.agents = Agents()
        self.journal: list[Event] = []
        self.told: list[tuple[str, Command]] = []
        self.now_s = 0.0
        for word in nodes.split():
            name, _, devices = word.partition(":")
            self.join(name, int(devices))
        if link_bytes_per_s:
            names = sorted(self.state.nodes)
            for a in names:
                for b in names[names.index(a) + 1 :]:
                    self.observe(LinkMeasured(time_s=self.now_s, a=a, b=b, link=Link(bytes_per_s=link_bytes_per_s)))

    # what people and machines do

    def join(self, name: str, devices: int) -> None:
        self.agents.dead_nodes.discard(name)
        listed = tuple(Device(index=i, memory_bytes=self.memory_bytes) for i in range(devices))
        self.observe(NodeJoined(time_s=self.now_s, node=name, address=f"10.0.0.{name[-1]}", devices=listed))
        self.compare(name)

    def compare(self, name: str) -> None:
        """What the controller does at each (re)join and every 20 s."""
        processes = [
            {"job": job, "generation": generation, "rank": rank, "role": worker.role, "pid": 1}
            for (job, generation, rank), worker in sorted(self.agents.workers.items()) if worker.node == name
        ]  # fmt: skip
        events, commands = comparison.compare(self.state.jobs, {"node": name, "processes": processes}, self.now_s)
        for event in events:
            self.observe(event)
        for command in commands:
            self.agents.tell(name, command)

    def submit(self, job: str, workers: int = 1, program: Program | None = None, **spec: object) -> None:
        if program:
            self.agents.programs[job] = program
        spec_ = JobSpec(command=("python", "train.py"), workers=workers, **spec)  # type: ignore[arg-type]
        self.observe(JobSubmitted(time_s=self.now_s, job=job, spec=spec_))

    def place(self, **placements: str) -> None:
        """Start jobs exactly there, whatever the policy would say."""
        schedule = Schedule({id: job.intended for id, job in self.state.jobs.items() if job.intended})
        for job, text in placements.items():
            schedule.put(job, parse_placement(text), "put there")
        adopted = self.state.adoption(schedule, self.now_s)
        assert adopted
        self.observe(adopted)
        self.run(decide=False)

    def cancel(self, job: str) -> None:
        self.observe(CancelAsked(time_s=self.now_s, job=job))

    def ask_to_share(self, job: str, **share: object) -> None:
        self.observe(ShareAsked(time_s=self.now_s, job=job, share=ShareSpec(**share)))  # type: ignore[arg-type]

    def pause(self, job: str) -> None:
        self.observe(PauseAsked(time_s=self.now_s, job=job))

    def resume(self, job: str) -> None:
        self.observe(ResumeAsked(time_s=self.now_s, job=job))

    def migrate(self, job: str, placement: str) -> None:
        self.observe(MigrateAsked(time_s=self.now_s, job=job, placement=parse_placement(placement)))

    def lose(self, node: str, *, is_dead: bool = True) -> None:
        """It dies; or it is out of sight: gangs that lie there as a whole train on, other ranks stop when its lease is over."""
        self.agents.dead_nodes.add(node)
        self.agents.reports = [event for event in self.agents.reports if getattr(event, "node", "") != node]
        if is_dead:
            self._lose_workers(node)
        self.observe(NodeLost(time_s=self.now_s, node=node, reason="no answer for 3 s"))
        self._lose_workers(node)

    def hide(self, node: str) -> None:
        """It is out of sight for a while; ranks of gangs that lie on others, too, stand still there."""
        self.agents.dead_nodes.add(node)
        self.observe(NodeLost(time_s=self.now_s, node=node, reason="no answer for 3 s"))

    def _lose_workers(self, node: str) -> None:
        for key, worker in list(self.agents.workers.items()):
            if worker.node == node and self.state.jobs[key[0]].away != node:
                del self.agents.workers[key]

    def kill(self, job: str, rank: int, role: str = "rank", code: int = -9, reason: str = "") -> None:
        for key, worker in sorted(self.agents.workers.items()):
            if key[0] == job and key[2] == rank and worker.role == role:
                self.agents.exit(key, code, reason)
                return
        raise AssertionError(f"no {role} {rank} of {job} is alive")

    def end(self, job: str) -> None:
        for key, worker in sorted(self.agents.workers.items()):
            if key[0] == job and worker.role == "rank":
                self.agents.exit(key, 0)

    def train(self, job: str, steps: int) -> None:
        """The gang makes steps, if it is whole, and says so; at its last step it ends."""
        program, gang = self.agents.programs[job], self.agents.training(job)
        if len(gang) != self.job(job).workers:
            return
        program.step = min(program.step + steps, program.steps_total)
        for rank, (key, *_) in sorted(gang.items()):
            own_s = self.agents.slow.get((job, rank), program.step_s - program.exposed_s)
            self.agents.reports.append(Progressed(
                time_s=self.now_s, job=job, generation=key[1], node=self.agents.workers[key].node, rank=rank, step=program.step,
                steps_total=program.steps_total, step_s=program.step_s, exposed_s=program.step_s - own_s, data_s=program.data_s,
                waited_s=program.waited_s, wire_bytes=program.wire_bytes, memory_bytes=program.memory_bytes,
                valley_bytes=program.valley_bytes))  # fmt: skip
        if program.step == program.steps_total:
            self.end(job)

    # what the controller does

    def observe(self, event: Event) -> None:
        if not isinstance(event, Progressed):
            self.journal.append(event)
        self.state.observe(event)
        invariants.check(self.state)

    def clock(self, seconds: float) -> None:
        self.now_s += seconds
        self.agents.now_s = self.now_s

    def decide(self) -> Schedule:
        schedule = self.policy.decide(self.state.snapshot(self.now_s))
        adopted = self.state.adoption(schedule, self.now_s)
        if adopted:
            self.observe(adopted)
        return schedule

    def measure(self) -> list[SharingMeasured]:
        """What jobs that share have reached together, as the controller finds it out."""
        events = list(self.pairs.observe(self.state.jobs, self.now_s))
        for event in events:
            self.observe(event)
        return events

    def tick(self) -> bool:
        events = self.state.tick(self.now_s)
        for event in events:
            self.observe(event)
        return bool(events)

    def send(self) -> bool:
        commands = self.state.commands()
        for node, command in commands:
            self.told.append((node, command))
            self.agents.tell(node, command)
        return bool(commands)

    def hear(self) -> bool:
        reports, self.agents.reports = self.agents.reports, []
        for event in reports:
            self.observe(event)
        return bool(reports)

    def run(self, until: object = None, decide: bool = True) -> None:
        """Until nothing happens, or until `until()` holds after a turn."""
        for _ in range(200):
            if decide:
                self.decide()
            busy = [self.send(), self.hear(), self.tick()]
            if callable(until) and until():
                return
            if not any(busy):
                return
        raise AssertionError("it never becomes quiet")

    def restart(self) -> None:
        """The controller is killed and comes back: only the journal is left."""
        self.state = ClusterState(SECRET)
        for event in self.journal:
            self.state.observe(event)
            invariants.check(self.state)

    # what one sees

    def job(self, id: str) -> Job:
        return self.state.jobs[id]

    def where(self, id: str) -> str:
        return " ".join(map(str, self.job(id).placement))

    def commands_of(self, kind: type) -> list[tuple[str, Command]]:
        return [(node, command) for node, command in self.told if isinstance(command, kind)]


def scattered(step_s: float = 0.3, exposed_s: float = 0.25, **changes: object) -> Program:
    """A program whose steps wait most of the time for a link of 200 Mbit/s."""
    return replace(Program(step_s=step_s, exposed_s=exposed_s, wire_bytes=6_250_000), **changes)
