"""Where one node keeps its sockets, logs and shared memory. Makes, checks and sweeps these folders; knows no process."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from restow import stripes, vault
from restow.errors import SetupError

SOCKET_PATH_MAX = 107  # bytes in sockaddr_un less the closing zero
VAULTS = "vaults"
SLOTS = (".slots", ".replica")
LEFT = (*SLOTS, stripes.SUFFIX)  # what is left of a rank that is lost
_SHARED = re.compile(r"(?P<job>.+)\.g(?P<generation>\d+)\.r(?P<rank>\d+)\.\w+")
JOB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}")  # becomes part of file names


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """The paths of one node; see docs/design/001-processes.md."""

    node: Path
    shm: Path
    disk: Path | None = None  # where states outlive a reboot; None: in `node`

    @property
    def agent_socket(self) -> Path:
        return self.node / "agent.sock"

    @property
    def agent_lock(self) -> Path:
        return self.node / "agent.lock"

    @property
    def nursery_socket(self) -> Path:
        return self.node / "nursery.sock"

    @property
    def nursery_pid(self) -> Path:
        """Holds the pid; locked as long as the nursery lives."""
        return self.node / "nursery.pid"

    @property
    def nursery_log(self) -> Path:
        return self.node / "nursery.log"

    @property
    def pulse(self) -> Path:
        """Where the pulse of this node serves, and the secret that it asks for."""
        return self.node / "pulse.json"

    @property
    def lease(self) -> Path:
        return self.shm / "lease"

    @property
    def run(self) -> Path:
        """One file per living child of the nursery: what a new nursery and a new agent have to know of it."""
        return self.node / "run"

    @property
    def logs(self) -> Path:
        return self.node / "logs"

    def log(self, job: str, rank: int, generation: int, *, rehearsal: bool = False) -> Path:
        return self.logs / job / f"{rank}.g{generation}{'.rehearsal' if rehearsal else ''}.log"

    def page(self, job: str, rank: int, generation: int) -> Path:
        return self.shm / f"{job}.g{generation}.r{rank}.page"

    def private(self, job: str, rank: int, generation: int) -> Path:
        return self.shm / f"{job}.g{generation}.r{rank}.private"

    def slots(self, job: str, rank: int, generation: int) -> Path:
        """What this rank alone holds, as of its last save points; named as at its birth."""
        return self.shm / f"{job}.g{generation}.r{rank}.slots"

    @property
    def vaults(self) -> Path:
        """The states of suspended jobs, in memory; `vaults/JOB/g<generation>`."""
        return self.shm / VAULTS

    @property
    def vaults_on_disk(self) -> Path:
        """The same on disk."""
        return self.disk or self.node / "vaults"

    def vault(self, job: str, generation: int) -> Path:
        return self.vaults / job / f"g{generation}"

    def vault_on_disk(self, job: str, generation: int) -> Path:
        return self.vaults_on_disk / job / f"g{generation}"

    def snapshot(self, job: str) -> Path:
        """Where a snapshot of this job is put together, from which a checkpoint is written."""
        return self.shm / "snapshots" / job

    @property
    def gates(self) -> Path:
        """The gates of this node's devices."""
        return self.shm / "gates"

    def connect(self, job: str) -> Path:
        """The last Connect of a job whose switch is under way, for an agent that comes after this one."""
        return self.run / f"{job}.connect"

    def make(self) -> None:
        """Create what is missing, mode 0700. Raises SetupError."""
        longest = self.run / "4194304.sock"
        if len(str(longest).encode()) > SOCKET_PATH_MAX:
            raise SetupError(f"node folder {self.node} is too long for a Unix socket in it; set RESTOW_RUN to a shorter folder")
        for folder in (self.node, self.run, self.logs, self.shm):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                way_out = "RESTOW_SHM" if folder == self.shm else "RESTOW_RUN"
                raise SetupError(f"folder {folder} cannot be made: {error.strerror}; set {way_out} to one that can") from None

    def remove(self) -> None:
        """Everything but the logs and the states of suspended jobs: those that are on disk leave memory."""
        for path in self.vaults.glob("*/g*"):
            if vault.names_in(path) <= vault.names_in(self.vaults_on_disk / path.parent.name / path.name):
                shutil.rmtree(path, ignore_errors=True)
        for path in self.vaults.glob("*"):
            with contextlib.suppress(OSError):  # something is left in it
                path.rmdir()
        for path in [*self.shm.iterdir()] if self.shm.is_dir() else ():
            if path != self.vaults or not any(self.vaults.iterdir()):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # as above
            self.shm.rmdir()
        shutil.rmtree(self.run, ignore_errors=True)
        for path in (self.agent_socket, self.nursery_socket, self.nursery_pid, self.pulse, self.node / "node.json"):
            path.unlink(missing_ok=True)

    def slots_of(self, job: str, rank: int) -> list[Path]:
        """What is here of the private state of this rank: its own, and replicas that a rank here keeps for it."""
        return [path for path, owner, _, number in self.shared() if (owner, number) == (job, rank) and path.suffix in SLOTS]

    def stripe_of(self, job: str, rank: int, generation: int) -> tuple[tuple[int, int], set[int]]:
        """Which stripe of this node's copies, of how many, this rank made, and the steps of which it is here."""
        found = [stripes.read(path, generation) for path in stripes.files(self.shm, job, rank)]
        return next((each for each in found if each), ((0, 0), set()))

    def forget(self, job: str) -> None:
        """Remove what is left of this job's ranks."""
        for path, owner, _, _ in self.shared():
            if owner == job and path.suffix in LEFT:
                path.unlink(missing_ok=True)

    def forget_rank(self, job: str, rank: int, generation: int) -> None:
        """Remove what it left itself; a replica of its state is another one's."""
        own = self.slots(job, rank, generation)
        own.unlink(missing_ok=True)
        own.with_suffix(stripes.SUFFIX).unlink(missing_ok=True)

    def shared(self) -> Iterator[tuple[Path, str, int, int]]:
        """What is in shared memory: (path, job, generation at birth, rank)."""
        for path in sorted(self.shm.iterdir()):
            match = _SHARED.fullmatch(path.name)
            if match:
                yield path, match["job"], int(match["generation"]), int(match["rank"])
