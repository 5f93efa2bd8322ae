"""The processes of jobs on this node: born, found again, relabelled, ended, and told of when they are gone.

Ranks and twins are kept in `workers`; who bears and reaps them is the nursery. Knows nothing of switches but that they relabel.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from restow.agent.birth import Birth
from restow.agent.client import NurseryClient
from restow.agent.devices import LocalDevice
from restow.agent.environment import base_environment, rank_environment
from restow.agent.events import EventLog
from restow.agent.folders import LEFT, Folders
from restow.agent.proposals import progress_of
from restow.agent.stores import Stores
from restow.agent.tasks import Tasks
from restow.agent.vault_moves import VaultMoves
from restow.agent.vaults import Vaults
from restow.agent.workers import Worker, Workers, now_s
from restow.errors import NotFound, RestowError, SpecError, Unreachable
from restow.messages import Launch, LaunchFailed, OpenStore, Prepare, RankExited, RankKept, RankStarted
from restow.page import create_page

if TYPE_CHECKING:
    from restow.agent.loop import AgentConfig

log = logging.getLogger(__name__)

LEAVES_S = 10.0  # a twin that was told to go, or a leaver that said it goes, is ended after this
STOP_GRACE_S = 2.0  # for what nobody waits for any more


class Ranks:
    """`is_wanted(job)`: is private state of this job's dead processes still wanted, since a switch is under way?"""

    def __init__(self, config: AgentConfig, folders: Folders, events: EventLog, tasks: Tasks, is_wanted: Callable[[str], bool]):
        self.workers = Workers()
        self.stores = Stores()
        self.vaults = Vaults(config.node, config.address, folders, events, tasks)
        self.devices: dict[int, LocalDevice] = {}
        self.interface = ""
        self._config, self._folders, self._events, self._tasks = config, folders, events, tasks
        self._is_wanted = is_wanted
        self._base = base_environment(config.environment, config.cluster_id)
        self._bearing: set[tuple[str, int, int]] = set()  # keys of those on their way
        self.settled = asyncio.Event()  # nobody is
        self.settled.set()
        self._told: set[int] = set()  # pids whose exit has its event
        self._untaken: dict[int, int] = {}  # number of that event → pid, which the nursery keeps until it is acknowledged
        self._gone = asyncio.Event()  # set at every exit
        self.on_checkpoint: Callable[[Mapping[str, Any], str], None] = lambda label, reason: None  # a writer of one is gone
        self.on_changed: Callable[[], None] = lambda: None  # a process was born or is gone
        self.nursery = NurseryClient(
            folders, address=config.address, python=config.python, environment=self._base, warm=config.warm,
            on_list=self._adopt, on_exit=self._exited,
        )  # fmt: skip
        self.vault_moves = VaultMoves(config.node, config.address, folders, events, tasks, self.vaults, self.nursery)

    # ------------------------------------------------------------ births

    async def bear(self, command: Launch | Prepare, rank: int) -> None:
        """Start one rank or twin: RankStarted, or LaunchFailed. Nothing if it was started before."""
        key = (command.job, command.generation, rank)
        try:
            if key not in self.workers.seen and not self._wake(command, rank):
                await self._bear(command, rank)
        except RestowError as error:
            failed = LaunchFailed(
                time_s=now_s(), job=command.job, generation=command.generation, node=self._config.node, rank=rank, reason=str(error)
            )
            self._events.put(failed)

    def _wake(self, command: Launch | Prepare, rank: int) -> bool:
        """Whoever was suspended here as this rank is its twin at once. False: nobody was."""
        job, generation, slot = command.job, command.generation, command.placement[rank]
        if any(twin.rank == rank for twin in self.workers.twins(job, generation)):
            return True  # by an earlier agent
        sleeper = self.workers.sleeper(job, rank, slot.device, len(command.placement)) if slot.node == self._config.node else None
        if sleeper is None or not isinstance(command, Prepare):
            return False
        if sleeper.channel is None:  # nobody knows whether it would hear us
            self.end_sleeper(sleeper)
            return False
        self.relabel(sleeper, role="twin", generation=generation, parked=False, hang_s=command.spec.hang_s)
        self.workers.add(sleeper)
        self.on_changed()
        self._events.put(self._started(sleeper))
        self.call(sleeper)
        return True

    def call(self, sleeper: Worker) -> None:
        """It is the twin that it is taken for, from now on."""
        assert sleeper.channel
        sleeper.channel.send({"type": "wake", "generation": sleeper.generation})

    def fell_asleep(self, worker: Worker, generation: int) -> None:
        """It is suspended, with its state in the vault of `generation`; it stays, for when its job comes back. For everybody else
        it is gone: it holds no device."""
        self.relabel(worker, role="sleeper")
        self.on_changed()
        self._events.put(self._left(worker))
        if not [other for other in self.workers.of(worker.job) if other.role not in ("twin", "sleeper")]:
            self.vaults.copy_later(worker.job, generation)

    def _left(self, worker: Worker) -> RankExited:
        """Of a sleeper: what anybody else needs to know. Said again when it ends: an agent may have been killed before that was
        heard."""
        return RankExited(
            time_s=now_s(), job=worker.job, generation=worker.generation, node=self._config.node, rank=worker.rank, role="leaver",
            code=0, reason="",
        )  # fmt: skip

    def end_sleepers(self, job: str, generation: int) -> None:
        """Those of this job whose state is in the vault of `generation`, or of one before."""
        for worker in self.workers.of(job):
            if worker.role == "sleeper" and worker.generation < generation:
                self.end_sleeper(worker)

    def end_sleeper(self, worker: Worker) -> None:
        """Its state is in the vault. From now on nobody wakes it."""
        worker.abandoned = True
        self._tasks.spawn(self.end(worker, 0.0))

    async def _bear(self, command: Launch | Prepare, rank: int) -> None:
        """Raises RestowError with the reason."""
        key = (command.job, command.generation, rank)
        birth = self._birth(command, rank)
        page = self._folders.page(command.job, rank, command.generation)
        self._bearing.add(key)
        self.settled.clear()
        try:
            page.unlink(missing_ok=True)  # of a start that failed half-way
            create_page(page).close()
            try:
                await self.nursery.bear(birth, self._born)
            except Unreachable:  # killed in between: its successor may have found the child, else it is asked again
                await self.nursery.listed.wait()
                if key not in self.workers.seen:
                    await self.nursery.bear(birth, self._born)
        finally:
            self._bearing.discard(key)
            if not self._bearing:
                self.settled.set()
            if key not in self.workers.seen:
                page.unlink(missing_ok=True)

    def _birth(self, command: Launch | Prepare, rank: int) -> Birth:
        """Raises RestowError when this node is not where the rank belongs."""
        job, generation, node = command.job, command.generation, self._config.node
        if not 0 <= rank < len(command.placement) or command.placement[rank].node != node:
            raise SpecError(f"rank {rank} is not placed on node {node}")
        slot = command.placement[rank]
        device = self.devices.get(slot.device)
        if device is None:
            raise NotFound(f"node {node} has no device {slot.device}; it has {', '.join(map(str, self.devices))}")
        is_twin = isinstance(command, Prepare)
        worker = Worker(
            pid=0, job=job, generation=generation, rank=rank, role="twin" if is_twin else "rank", born=generation,
            secret=command.secret, page=str(self._folders.page(job, rank, generation)),
            log=str(self._folders.log(job, rank, generation, rehearsal=is_twin)), device=slot.device,
            world=len(command.placement), hang_s=command.spec.hang_s,
        )  # fmt: skip
        environment = rank_environment(
            command, rank, base=self._base, folders=self._folders, node=node, address=self._config.address,
            interface=self.interface, device=device,
        )  # fmt: skip
        return Birth(
            command=command.spec.command, environment=environment, cwd=command.spec.cwd, log=worker.log,
            python=self._config.python, core=device.core, cgroup=device.cgroup, label=worker.label(),
        )  # fmt: skip

    def _born(self, pid: int, label: Mapping[str, Any]) -> None:
        worker = Worker.from_label(pid, label)
        self.workers.add(worker)
        self.on_changed()
        self._events.put(self._started(worker))

    def _started(self, worker: Worker) -> RankStarted:
        return RankStarted(
            time_s=now_s(), job=worker.job, generation=worker.generation, node=self._config.node, rank=worker.rank, pid=worker.pid
        )

    async def open_store(self, command: OpenStore) -> None:
        """StoreOpened, or LaunchFailed of the whole gang."""
        job, generation = command.job, command.generation
        try:
            keeper = await self.stores.open(job, generation, self._config.address, self.nursery)
        except RestowError as error:
            self._events.put(
                LaunchFailed(
                    time_s=now_s(), job=job, generation=generation, node=self._config.node, rank=-1, reason=f"store: {error}"
                )
            )
        else:
            self._events.put(keeper.event(self._config.node, now_s()))

    # ------------------------------------------------------------ found again, gone

    def _adopt(self, children: list[dict[str, Any]]) -> None:
        """What the nursery has: at our start, and whenever another one took its place."""
        for child in children:
            pid, label = child["pid"], child["label"]
            if child["code"] is not None:
                self._exited(child)
            elif label["kind"] == "store":
                if not self.stores.add(pid, label, self._folders.run):
                    self._tasks.spawn(self.nursery.end(pid, 0.0))
            elif label["kind"] == "vault":
                self.vaults.adopt(pid, label)
            elif label["kind"] in ("giver", "taker"):
                self.vault_moves.adopt(pid, label)
            elif label["kind"] == "checkpoint":
                continue  # its exit will be told
            elif pid not in self.workers.by_pid:
                self._born(pid, label)
        self.sweep()

    def _exited(self, child: Mapping[str, Any]) -> None:
        """A process is gone: tell it, with its last words, and remove what it shared."""
        pid, label = child["pid"], child["label"]
        if label["kind"] == "store":
            self.stores.remove(pid)
            self._tasks.spawn(self.nursery.taken(pid))
            return
        if label["kind"] == "vault":
            self.vaults.gone(pid)
            self._tasks.spawn(self.nursery.taken(pid))
            return
        if label["kind"] in ("giver", "taker"):
            self._tasks.spawn(self._move_ended(child))
            return
        if label["kind"] == "checkpoint":
            self.on_checkpoint(label, child["reason"])
            self._tasks.spawn(self.nursery.taken(pid))
            return
        worker = self.workers.remove(pid) or Worker.from_label(pid, label)
        last = progress_of(worker, self._config.node, now_s())
        if last:  # how far it came
            self._events.put(last)
        worker.close()
        self.on_changed()
        self.workers.seen |= {worker.key, (worker.job, worker.generation, worker.rank)}
        if worker.channel:
            worker.channel.close()
        if pid not in self._told:
            self._told.add(pid)
            self._tell_kept(worker)
            event = self._left(worker) if worker.role == "sleeper" else RankExited(
                time_s=now_s(), job=worker.job, generation=worker.generation, node=self._config.node, rank=worker.rank,
                role=worker.role, code=child["code"], reason=_why(worker, child),
            )  # fmt: skip
            self._untaken[self._events.put(event)] = pid
        if worker.role != "rank":  # what a rank left may be needed, even if it ended by itself: others may have been lost just then
            self._folders.forget_rank(worker.job, worker.rank, worker.born)
        self.sweep(worker.job)
        self._gone.set()

    def _tell_kept(self, worker: Worker) -> None:
        """A rank that left with its state in the vault, and whose words no agent heard, wrote them there."""
        said = self.vaults.left_in_any(worker.job, worker.generation, worker.rank) if worker.role != "twin" else None
        if said is None:
            return
        if worker.role == "rank":
            worker.role = "leaver"
            self._events.put(RankKept(
                time_s=now_s(), job=worker.job, node=self._config.node, rank=worker.rank, generation=said["generation"],
                step=said["step"], bytes=said["bytes"], pause_s=said["pause_s"],
                phases=tuple((name, seconds) for name, seconds in said.get("phases", ())),
            ))  # fmt: skip
        if not [other for other in self.workers.of(worker.job) if other.role not in ("twin", "sleeper")]:
            self.vaults.copy_later(worker.job, said["generation"])

    async def _move_ended(self, child: Mapping[str, Any]) -> None:
        event = await self.vault_moves.ended(child["pid"], child["label"], child["code"], child["reason"])
        if event:
            self._untaken[self._events.put(event)] = child["pid"]
        else:
            await self.nursery.taken(child["pid"])

    def acknowledged(self, number: int) -> None:
        """The controller has journalled this event."""
        pid = self._untaken.pop(number, None)
        if pid is not None:
            self._tasks.spawn(self._take(pid))

    async def _take(self, pid: int) -> None:
        await self.nursery.taken(pid)
        self._told.discard(pid)

    def sweep(self, job: str | None = None) -> None:
        """Remove the shared memory of who is gone; private state only when no switch can want it any more."""
        keep = self.workers.keys() | self._bearing
        for path, owner, generation, rank in self._folders.shared():
            is_wanted = (owner, generation, rank) in keep or (path.suffix == ".private" and self._is_wanted(owner))
            is_wanted |= path.suffix in LEFT  # until its job is forgotten
            if job in (None, owner) and not is_wanted:
                path.unlink(missing_ok=True)

    # ------------------------------------------------------------ relabelled, ended

    def relabel(self, worker: Worker, **changes: Any) -> None:
        """Change what is known of it for good, so that the next agent knows it too."""
        for name, value in changes.items():
            setattr(worker, name, value)
        self._tasks.spawn(self.nursery.label(worker.pid, worker.label()))

    async def end(self, worker: Worker, grace_s: float = STOP_GRACE_S) -> None:
        """A sleeper gets no grace: what its script does when it is told to go would be of a job that is not its any more."""
        await self.nursery.end(worker.pid, 0.0 if worker.role == "sleeper" else grace_s)

    def end_later(self, worker: Worker) -> None:
        """End it if it is still here, and still what it is now, when it has had the time to go by itself."""
        self._tasks.spawn(self._end_later(worker, worker.role))

    async def _end_later(self, worker: Worker, role: str) -> None:
        await asyncio.sleep(LEAVES_S)
        if self.workers.by_pid.get(worker.pid) is worker and worker.role == role:
            log.warning("%s rank %d: this %s (%d) does not go by itself; ended", worker.job, worker.rank, role, worker.pid)
            await self.end(worker)

    async def end_all(self) -> None:
        """SIGTERM to everything; returns when it is gone or its grace is over (what is left then ends with the nursery)."""
        for worker in self.workers:
            await self.end(worker)
        try:
            await asyncio.wait_for(self._until_empty(), STOP_GRACE_S + 3.0)
        except TimeoutError:
            log.warning("still there: %s", ", ".join(f"{w.job} rank {w.rank} ({w.pid})" for w in self.workers))

    async def _until_empty(self) -> None:
        while self.workers.by_pid:
            self._gone.clear()
            await self._gone.wait()

    async def forget(self, job: str) -> None:
        """End what is left of the job here; its logs stay."""
        for worker in self.workers.of(job):
            await self.end(worker)
        await self.stores.end(job, self.nursery)
        await self.vault_moves.end(job)
        await self.vaults.forget(job, self.nursery)
        self._folders.forget(job)
        self.sweep(job)
        self.workers.forget(job)


def _why(worker: Worker, child: Mapping[str, Any]) -> str:
    if worker.role == "twin" and worker.abandoned:
        return "not needed: the switch was given up"
    if worker.role == "twin" and not worker.parked and child["code"] == 0:
        return "the script ended before it reached job.steps, so the job cannot be moved"
    return str(child["reason"])
