"""Where restow's files are and what the environment says. The only module that reads the environment.

    RESTOW_HOME            default ~/.restow: socket, journal, token, logs of the daemons
    RESTOW_RUN             default /tmp: the short folder `restow-<cluster id>` (Unix sockets allow 107 characters) goes here
    RESTOW_SHM             default /dev/shm: pages and what is in transfer
    RESTOW_NODE_NAME       default the host's name
    RESTOW_NODE_ADDRESS    default the address of the interface that leads outside
    RESTOW_DEVICES         a JSON file that names this node's devices; default: look for GPUs, else CPU cores

A cluster is known by its token: whoever has it may join. The cluster id is made from it, so a joining node needs no more.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from restow.errors import SetupError

SOCKET_PATH_MAX = 107  # bytes in sockaddr_un less the closing zero
CLUSTER_MARK = "RESTOW_CLUSTER"  # in the environment of every process of a cluster; `down` finds stragglers by it
NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")  # what Ray accepts as the value of a label


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """The files of one cluster as one machine keeps them."""

    path: Path

    @property
    def socket(self) -> Path:
        return self.path / "controller.sock"

    @property
    def lock(self) -> Path:
        return self.path / "controller.pid"

    @property
    def journal(self) -> Path:
        return self.path / "journal.db"

    @property
    def cluster(self) -> Path:
        return self.path / "cluster.json"

    @property
    def token(self) -> Path:
        return self.path / "token"

    @property
    def nodes(self) -> Path:
        """One file per Ray node that was started from this home: its name, process and address."""
        return self.path / "nodes"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def up_lock(self) -> Path:
        """Held by `restow up` and `down` while they are at work."""
        return self.path / "up.lock"

    def is_being_changed(self) -> bool:
        """Is a `restow up` or `down` at work? Asks the kernel, without touching the lock."""
        try:
            inode = str(self.up_lock.stat().st_ino)
            locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        except OSError:
            return False
        return any("FLOCK" in words and words[-3].rpartition(":")[2] == inode for words in locks)

    def vaults(self, node: str) -> Path:
        """The states of suspended jobs that this machine keeps on disk as node `node`."""
        return self.path / "vaults" / node

    def make(self) -> None:
        """Create the folders, mode 0700. Raises SetupError."""
        if len(os.fsencode(self.socket)) > SOCKET_PATH_MAX:
            raise SetupError(
                f"RESTOW_HOME is {self.path}, too long for a Unix socket in it ({SOCKET_PATH_MAX} characters); choose a shorter one"
            )
        for folder in (self.path, self.nodes, self.logs):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise SetupError(
                    f"folder {folder} cannot be made: {error.strerror}; set RESTOW_HOME to one that can"
                ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What this machine is in a cluster."""

    name: str
    address: str  # where the other nodes reach it

    def __post_init__(self) -> None:
        if not NODE_NAME.fullmatch(self.name):
            raise SetupError(
                f"node name is {self.name!r}; use letters, digits, '.', '_' and '-', at most 63 (RESTOW_NODE_NAME)"
            )
        if not self.address:
            raise SetupError("node address is empty; set RESTOW_NODE_ADDRESS to one that the other nodes reach")


def home(environment: Mapping[str, str] = os.environ) -> Home:
    """RESTOW_HOME, or ~/.restow. Makes nothing."""
    return Home(path=Path(environment.get("RESTOW_HOME") or Path.home() / ".restow").expanduser().absolute())


def node(environment: Mapping[str, str] = os.environ, *, name: str = "", address: str = "") -> NodeConfig:
    """This machine's name and address: as given, else from the environment, else found out."""
    return NodeConfig(
        name=name or environment.get("RESTOW_NODE_NAME") or socket.gethostname().split(".")[0],
        address=address or environment.get("RESTOW_NODE_ADDRESS") or find_address(),
    )


def run_folder(cluster_id: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The short folder for sockets, Ray's files and the nodes' folders of this cluster."""
    return Path(environment.get("RESTOW_RUN") or "/tmp") / f"restow-{cluster_id}"


def shm_folder(cluster_id: str, node_name: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Shared memory of one node of this cluster."""
    return Path(environment.get("RESTOW_SHM") or "/dev/shm") / f"restow-{cluster_id}-{node_name}"


def devices_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The file that names this node's devices, if one was given."""
    named = environment.get("RESTOW_DEVICES")
    return Path(named) if named else None


def absolute_paths(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that name files or folders, for a process with another working directory: as they are meant here."""
    names = ("RESTOW_HOME", "RESTOW_RUN", "RESTOW_SHM", "RESTOW_DEVICES")
    return {name: str(Path(environment[name]).expanduser().absolute()) for name in names if environment.get(name)}


def find_address() -> str:
    """The address of the interface that leads outside; 127.0.0.1 where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address; connecting a datagram socket sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def make_token(path: Path) -> str:
    """The cluster's token, made at the first call; mode 0600."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_token(path)
    with os.fdopen(descriptor, "w") as file:
        token = secrets.token_hex(32)
        file.write(token)
    return token


def read_token(path: Path) -> str:
    """The token in `path`. Raises SetupError when it cannot be read or others can read it."""
    try:
        token = path.read_text().strip()
        mode = path.stat().st_mode
    except OSError as error:
        raise SetupError(
            f"token file {path}: {error.strerror}; copy it from the first machine ($RESTOW_HOME/token)"
        ) from None
    if mode & 0o077:
        raise SetupError(f"token file {path} can be read by others (mode {mode & 0o777:04o}); run chmod 600 {path}")
    if not re.fullmatch(r"[0-9a-f]{32,}", token):
        raise SetupError(f"token file {path} holds no token; copy it from the first machine ($RESTOW_HOME/token)")
    return token


def cluster_id_of(token: str) -> str:
    """8 hex digits that name the cluster; says nothing about the token."""
    return hashlib.sha256(b"restow cluster " + token.encode()).hexdigest()[:8]


def cluster_secret_of(token: str) -> str:
    """What the jobs' secrets are derived from; not the token itself, which opens Ray."""
    return hashlib.sha256(b"restow jobs " + token.encode()).hexdigest()
