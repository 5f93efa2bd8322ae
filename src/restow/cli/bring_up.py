"""Bringing a cluster up on this machine and taking it down again: Ray, then the controller; each can be told apart from a
stranger's and found again. Idempotent: what runs already is kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from restow import config
from restow.agent.devices import find_devices
from restow.agent.folders import VAULTS
from restow.client import Client
from restow.engine import processes, ray_node
from restow.errors import Refused, RestowError, SetupError, Unreachable
from restow.interrupts import uninterrupted
from restow.own_policies import DEFAULT_POLICY

CONTROLLER_S_MAX = 90.0  # it connects to Ray and starts the agent: 3 to 5 s, on a loaded machine 30
JOINED_S_MAX = 60.0  # the controller looks for new nodes each second and starts an agent in 3 to 10 s
ENDING_S_MAX = 90.0  # jobs get their grace, agents a while
SHM_BYTES_MIN = 1_000_000  # a page of 4 KB per worker, and what is in transfer
DEFAULT_PORT = 6479  # Ray's own default is 6379; we leave that to other clusters on this machine

Say = Callable[[str], None]


def up(home: config.Home, node: config.NodeConfig, *, port: int | None, say: Say, policy: str | None = None) -> dict[str, Any]:
    """This machine as the first of a cluster; returns what the controller says of itself. With another `policy` than it has (None:
    that of the last time) the controller alone is started again, and jobs go on.

    If something fails or is interrupted, what this call started is ended again.
    """
    home.make()
    with _alone(home), contextlib.ExitStack() as undo:
        config.make_token(home.token)
        head = _living_head(home)
        if head is None:
            _check_machine(node)
            say(f"starting Ray on {node.address} (6 to 14 s)")
            chosen = _choose_port(node.address, port)
            head = ray_node.start(home, node, head_port=chosen, gcs="", token_file=home.token, say=say)
            undo.callback(ray_node.stop, home, head)
        else:
            if port is not None and not head.gcs.endswith(f":{port}"):
                raise Refused(f"Ray runs already at {head.gcs}; restow down first to use port {port}")
            say(f"Ray runs at {head.gcs}")
        policy = policy or _policy_before(home)
        about = {"cluster_id": head.cluster_id, "gcs": head.gcs, "node": head.name, "home": str(home.path), "policy": policy}
        _write(home.cluster, about)
        client = Client(home)
        try:
            runs_with = client.ping().get("policy", DEFAULT_POLICY)
            if runs_with != policy:
                say(f"the controller decides by {runs_with} and is started again to decide by {policy}; jobs go on")
                _let_go(home)
                raise Unreachable("it has ended")
            say("the controller runs")
        except Unreachable:
            say("starting the controller and the agent")
            with uninterrupted():
                controller = _start_controller(home, head)
                undo.callback(processes.end, [controller.pid], grace_s=5.0)
            about = _await_controller(home, controller, head.name, say)
        else:
            about = _await_controller(home, None, head.name, say)
        undo.pop_all()
        return about


def join(home: config.Home, node: config.NodeConfig, *, gcs: str, token_file: Path, say: Say) -> ray_node.RayNode:
    """This machine as a further one of the cluster at `gcs`."""
    host, _, port = gcs.rpartition(":")
    if not host or not port.isdigit():
        raise SetupError(f"--join is {gcs!r}; write HOST:PORT as the first machine's restow up printed it")
    cluster_id = config.cluster_id_of(config.read_token(token_file))
    _check_reachable(host, int(port))
    home.make()
    with _alone(home):
        for known in ray_node.recorded(home):
            if known.name == node.name:
                if known.session.is_alive and known.cluster_id == cluster_id:
                    say(f"{node.name} is part of the cluster already")
                    return known
                if known.session.is_alive:
                    raise Refused(f"{node.name} belongs to another cluster ({known.gcs}); restow down leaves it first")
                ray_node.stop(home, known)
        _check_machine(node)
        say(f"starting Ray on {node.address}, joining {gcs}")
        joined = ray_node.start(home, node, head_port=None, gcs=gcs, token_file=token_file, say=say)
        try:
            _await_agent(joined, say)
        except BaseException:  # Ctrl-C: nothing may stay behind
            ray_node.stop(home, joined)
            raise
        return joined


def down(home: config.Home, *, say: Say, purge: bool = False) -> bool:
    """End everything that was started from this home; False if there was nothing. Logs and the journal stay unless `purge`."""
    if not home.path.is_dir():
        return False
    with _alone(home):
        nodes = ray_node.recorded(home)
        is_head = any(node.is_head for node in nodes) or home.token.exists()
        found = _stop_controller(home, say) or bool(nodes)
        left: list[int] = []
        for node in nodes:
            say(f"ending Ray of {node.name}")
            left += ray_node.stop(home, node)
        for cluster_id in {node.cluster_id for node in nodes} | _known_cluster(home):
            names = None if is_head else [node.name for node in nodes]
            stragglers = processes.marked_with(cluster_id, names)
            if stragglers:
                say(f"ending {len(stragglers)} {'process that was' if len(stragglers) == 1 else 'processes that were'} left")
                left += processes.end(stragglers, grace_s=2.0)
            _remove_files(cluster_id, names, purge)
            if purge:
                shutil.rmtree(config.run_folder(cluster_id), ignore_errors=True)
        home.socket.unlink(missing_ok=True)
        if left:
            raise SetupError(f"processes {', '.join(map(str, left))} would not end; end them by hand")
    if purge:
        for path in (home.journal, home.cluster, home.token, home.lock):
            for file in path.parent.glob(path.name + "*"):
                file.unlink(missing_ok=True)
        shutil.rmtree(home.nodes, ignore_errors=True)
        shutil.rmtree(home.logs, ignore_errors=True)
        shutil.rmtree(home.path / "vaults", ignore_errors=True)
    return found


def unfinished_jobs(home: config.Home) -> tuple[list[str], dict[str, list[str]]]:
    """Ids of jobs that `down` would end; and suspended job → nodes that have its state in memory only. Where no controller answers
    (this machine has joined, or it was killed), those that have a worker here."""
    try:
        about = Client(home).ping()
        return list(about["unfinished"]), {job: list(about["in_memory"].get(job, ())) for job in about["suspended"]}
    except Unreachable:
        notes = [
            note
            for node in ray_node.recorded(home)
            for note in (config.run_folder(node.cluster_id) / node.name / "run").glob("*.json")
        ]
        return sorted({job for note in notes if (job := _job_of(note))}), {}


# ---------------------------------------------------------------- within


def _job_of(note: Path) -> str:
    """The job of a worker that the nursery has noted down and that lives; empty if there is none."""
    try:
        child = json.loads(note.read_text())
        is_worker = child["label"]["kind"] == "rank" and Path(f"/proc/{child['pid']}").exists()
        return str(child["label"]["job"]) if is_worker else ""
    except (OSError, ValueError, KeyError):  # just removed, or half written
        return ""


@contextlib.contextmanager
def _alone(home: config.Home) -> Iterator[None]:
    """One up, join or down at a time for this home."""
    with home.up_lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"another restow up or down is at work in {home.path}; wait until it has finished") from None
        yield


def _check_machine(node: config.NodeConfig) -> None:
    """What the agent would find missing after a minute of starting is said now. Raises SetupError."""
    ray_node.check_address(node.address)
    find_devices(config.devices_file())
    folder = config.shm_folder("x", node.name).parent
    try:
        room = os.statvfs(folder)
    except OSError as error:
        raise SetupError(f"shared memory {folder}: {error.strerror}; make it or set RESTOW_SHM to another folder") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SetupError(f"shared memory {folder} cannot be written; set RESTOW_SHM to a folder that can")
    if room.f_bavail * room.f_frsize < SHM_BYTES_MIN:
        raise SetupError(
            f"shared memory {folder} has {room.f_bavail * room.f_frsize} bytes free, too few ({SHM_BYTES_MIN} are needed);"
            " enlarge it, or set RESTOW_SHM to another folder"
        )


def _living_head(home: config.Home) -> ray_node.RayNode | None:
    """The head that was started from this home and lives; the remains of a dead one are cleared away."""
    for node in ray_node.recorded(home):
        if node.session.is_alive:
            if node.is_head:
                return node
            raise Refused(f"this machine is {node.name} of the cluster at {node.gcs}; restow down leaves it")
        ray_node.stop(home, node)
    return None


def _choose_port(address: str, wanted: int | None) -> int:
    if wanted is not None:
        ray_node.check_port(address, wanted)
        return wanted
    try:
        ray_node.check_port(address, DEFAULT_PORT)
        return DEFAULT_PORT
    except SetupError:
        return ray_node.free_port(address)


def _start_controller(home: config.Home, head: ray_node.RayNode) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ, **config.absolute_paths(),
        "RESTOW_HOME": str(home.path), "RESTOW_NODE_NAME": head.name, "RESTOW_NODE_ADDRESS": head.address,
        config.CLUSTER_MARK: head.cluster_id,
    }  # fmt: skip
    with (home.logs / "controller.log").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "restow.controller.daemon"], env=environment, start_new_session=True, cwd="/",
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


def _policy_before(home: config.Home) -> str:
    """By which this cluster decided when it was last up."""
    try:
        return str(json.loads(home.cluster.read_text())["policy"])
    except (OSError, ValueError, KeyError, TypeError):  # it never was, or is older than that
        return DEFAULT_POLICY


def _let_go(home: config.Home) -> None:
    """End the controller alone: agents and jobs go on, and the next one finds them."""
    pid = int(home.lock.read_text().split()[0])
    if processes.end([pid], grace_s=10.0):
        raise SetupError(f"the controller (process {pid}) does not end; end it by hand and repeat restow up")


def _await_controller(
    home: config.Home, controller: subprocess.Popen[bytes] | None, node: str, say: Say
) -> dict[str, Any]:
    """Until it answers and has met the agent of this machine."""
    begun = said = time.monotonic()
    log = home.logs / "controller.log"
    while True:
        try:
            about = Client(home, answer_s_max=10.0).ping()
            if node in about["joined"]:
                return about
        except Unreachable:
            about = {}
        now = time.monotonic()
        if controller is not None and controller.poll() is not None:
            raise SetupError(f"the controller ended at once: {_last_words(log)}; see {log}")
        if now - begun > CONTROLLER_S_MAX:
            missing = "the agent of this machine" if about else "the controller"
            raise SetupError(f"{missing} did not answer within {CONTROLLER_S_MAX:.0f} s: {_last_words(log)}; see {log}")
        if now - said > 5.0:
            say(f"waiting for {'the agent' if about else 'the controller'} ({now - begun:.0f} s)")
            said = now
        time.sleep(0.1)


def _await_agent(joined: ray_node.RayNode, say: Say) -> None:
    """Until the agent that the first machine's controller starts here is there; not for ever, since that may be down."""
    agent = config.run_folder(joined.cluster_id) / joined.name / "agent.sock"
    deadline = time.monotonic() + JOINED_S_MAX
    say("waiting for the agent")
    while not agent.is_socket():
        if time.monotonic() > deadline:
            say(f"no agent came within {JOINED_S_MAX:.0f} s; is the controller of the first machine up (restow up there)?")
            return
        time.sleep(0.1)


def _stop_controller(home: config.Home, say: Say) -> bool:
    """Ask it to end jobs and agents and itself; end it if it doesn't. False if there was none."""
    try:
        pid, started = (int(word) for word in home.lock.read_text().split())
    except (OSError, ValueError):
        return False
    controller = processes.ProcessId(pid=pid, started=started)
    if not controller.is_alive:
        return False
    say("ending jobs, agents and the controller")
    try:
        Client(home, answer_s_max=10.0).stop(end_agents=True)
    except RestowError as error:
        say(f"the controller does not listen ({error}); ending it")
    else:
        deadline = time.monotonic() + ENDING_S_MAX
        while controller.is_alive and time.monotonic() < deadline:
            time.sleep(0.05)
    if controller.is_alive:
        processes.end([pid], grace_s=5.0)
    return True


def _remove_files(cluster_id: str, names: list[str] | None, purge: bool) -> None:
    """Sockets, Ray's files and shared memory of this cluster (of the named nodes); logs stay, and, unless `purge`, states of
    suspended jobs that the agents have left there."""
    run = config.run_folder(cluster_id)
    if names is None:
        shutil.rmtree(run / "ray", ignore_errors=True)
    for file in run.glob("*/*.sock"):
        if names is None or file.parent.name in names:
            file.unlink(missing_ok=True)
    shm = config.shm_folder(cluster_id, "x").parent
    for folder in shm.glob(f"restow-{cluster_id}-*"):
        if names is None or folder.name in {f"restow-{cluster_id}-{name}" for name in names}:
            left = set() if purge else {path.parent for path in folder.glob(f"{VAULTS}/*/*")}
            for path in [path for path in folder.iterdir() if path.name != VAULTS or not left]:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            if not left:
                folder.rmdir()


def _known_cluster(home: config.Home) -> set[str]:
    """The id of the cluster that this home's token opens: an `up` that was killed may have left processes and no record."""
    return {config.cluster_id_of(config.read_token(home.token))} if home.token.exists() else set()


def _check_reachable(host: str, port: int) -> None:
    import socket

    try:
        socket.create_connection((host, port), 5.0).close()
    except OSError as error:
        raise Unreachable(
            f"{host}:{port} does not answer ({error.strerror or error}); is restow up there, is the port open?"
        ) from None


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[-1][:300] if lines else "it said nothing"


def _write(path: Path, value: dict[str, Any]) -> None:
    path.touch(mode=0o600)
    path.write_text(json.dumps(value))
