"""Starting and ending the Ray processes of this machine, as our own child session. Does not import Ray.

Never `ray stop`: it ends every Ray on the host. What we start is one session (`ray start --block` and all below it); its
leader's pid and start time are in `$RESTOW_HOME/nodes/<name>.json`, and it is ended by them.

Weakness: Ray 2.60 starts a client proxy and a (minimal) dashboard process beside the head although nobody asked for
them; they cost about 200 MB and there is no switch. The proxy gets a free port, so that two clusters can live side by side.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from restow import config
from restow.engine.processes import ProcessId, end, identify, members_of
from restow.errors import SetupError
from restow.interrupts import uninterrupted

LABEL = "restow-node"  # the Ray label that carries our name of the node
START_S_MAX = 90.0  # Ray needs 6 to 14 s; on a loaded machine we saw 40
# Ray counts itself, and tells its head of it all the time: nobody reads that here, and an idle link should be idle
QUIET = {
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_enable_ray_event": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_metrics_report_interval_ms": "3600000",
    "RAY_raylet_report_resources_period_milliseconds": "2000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "10000",
    "RAY_ray_syncer_message_refresh_interval_ms": "30000",
    "RAY_report_worker_backlog_interval_ms": "30000",
    "RAY_debug_dump_period_milliseconds": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "3600000",  # 31 KB of every process's figures, each 5 s by default
    "METRICS_RECORD_INTERVAL_S": "3600",
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "3600",
}
OBJECT_STORE_BYTES = 80_000_000  # about the smallest that Ray accepts; nothing big goes through it


@dataclass(frozen=True, slots=True, kw_only=True)
class RayNode:
    """One Ray node that was started from this home."""

    name: str
    address: str
    is_head: bool
    gcs: str  # host:port of the head
    cluster_id: str
    pid: int
    started: int

    @property
    def session(self) -> ProcessId:
        return ProcessId(pid=self.pid, started=self.started)


# Who is there is restow's to say (restow/lease.py); Ray itself shall bear with a network that is out, since a node that it has
# declared dead ends itself and does not come back.
PATIENT = {
    "RAY_health_check_period_ms": "10000",
    "RAY_health_check_failure_threshold": "180",  # half an hour
    "RAY_gcs_rpc_server_reconnect_timeout_s": "1800",
}


def authentication(token_file: Path) -> dict[str, str]:
    """What makes Ray processes and drivers show and demand the token."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file), "RAY_USAGE_STATS_ENABLED": "0"}


def recorded(home: config.Home) -> list[RayNode]:
    """The Ray nodes that were started from this home and may still live, by name."""
    if not home.nodes.is_dir():
        return []
    return [RayNode(**json.loads(path.read_text())) for path in sorted(home.nodes.glob("*.json"))]


def start(
    home: config.Home, node: config.NodeConfig, *, head_port: int | None, gcs: str, token_file: Path,
    say: Callable[[str], None] = lambda line: None,
) -> RayNode:  # fmt: skip
    """Start Ray here, as head on `head_port` or else joining `gcs`; returns when it is part of the cluster.

    Raises SetupError with Ray's own last words when it does not come up.
    """
    cluster_id = config.cluster_id_of(config.read_token(token_file))
    run = config.run_folder(cluster_id)
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = home.logs / f"ray-{node.name}.log"
    environment = {
        **os.environ,
        **config.absolute_paths(),
        **QUIET,
        **PATIENT,
        **authentication(token_file),
        "RESTOW_HOME": str(home.path),
        "RESTOW_NODE_NAME": node.name,
        "RESTOW_NODE_ADDRESS": node.address,
        config.CLUSTER_MARK: cluster_id,
        "PYTHONUNBUFFERED": "1",
        "RAY_worker_niceness": "0",  # Ray's own default of 15 would go on to the agent and so to every rank
    }
    command = _command(node, run / "ray", head_port=head_port, gcs=gcs)
    started: tuple[subprocess.Popen[bytes], RayNode] | None = None
    try:
        with log.open("wb") as output, uninterrupted():
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, cwd="/",
            )  # fmt: skip
            session = identify(process.pid)
            ray_node = RayNode(
                name=node.name, address=node.address, is_head=head_port is not None,
                gcs=f"{node.address}:{head_port}" if head_port is not None else gcs,
                cluster_id=cluster_id, pid=session.pid, started=session.started,
            )  # fmt: skip
            started = process, ray_node
            _record(home, ray_node)  # now, so that `down` finds it even if we are killed
        _await_started(process, log, say)
    except BaseException:  # Ctrl-C too: nothing may stay behind
        if started:
            stop(home, started[1])
            started[0].wait()
        raise
    return ray_node


def _record(home: config.Home, ray_node: RayNode) -> None:
    """Whole or not at all, for whoever reads at this moment and for who reads after we were killed."""
    new = home.nodes / f"{ray_node.name}.json.new"
    new.touch(mode=0o600)
    new.write_text(json.dumps(asdict(ray_node)))
    new.replace(home.nodes / f"{ray_node.name}.json")


def stop(home: config.Home, ray_node: RayNode) -> list[int]:
    """End all Ray processes of that node; returns the pids that would not go."""
    left = end(
        members_of(ray_node.session), grace_s=0
    )  # on SIGTERM Ray drains for 30 s; our agents have stopped before
    if not left:
        (home.nodes / f"{ray_node.name}.json").unlink(missing_ok=True)
    return left


def free_port(address: str) -> int:
    """A port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def check_address(address: str) -> None:
    """Raises SetupError when no interface of this machine carries the address."""
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise SetupError(
                f"node address is {address!r}: {error.strerror}; give one of this machine's own (--address, RESTOW_NODE_ADDRESS)"
            ) from None


def check_port(address: str, port: int) -> None:
    """Raises SetupError when the port cannot be bound on all addresses, as Ray does: another program may have it on one only."""
    check_address(address)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise SetupError(f"port {port} at {address}: {error.strerror}; choose another with --port") from None


def _command(node: config.NodeConfig, folder: Path, *, head_port: int | None, gcs: str) -> list[str]:
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--log-style=record", "--disable-usage-stats",
        f"--node-ip-address={node.address}", f"--labels={LABEL}={node.name}", f"--temp-dir={folder}",
        "--num-cpus=1", "--num-gpus=0", f"--object-store-memory={OBJECT_STORE_BYTES}", "--include-log-monitor=false",
    ]  # fmt: skip
    if head_port is None:
        return [*command, f"--address={gcs}"]
    proxy = free_port(node.address)
    return [
        *command, "--head", f"--port={head_port}", "--include-dashboard=false", "--no-monitor",
        f"--ray-client-server-port={proxy}", f"--dashboard-port={free_port('127.0.0.1')}",
    ]  # fmt: skip


def _await_started(process: subprocess.Popen[bytes], log: Path, say: Callable[[str], None]) -> None:
    begun = said = time.monotonic()
    while "Ray runtime started" not in (text := log.read_text(errors="replace")):
        now = time.monotonic()
        if process.poll() is not None:
            words = [line.strip() for line in text.splitlines() if line.strip()] or ["(it said nothing)"]
            raise SetupError(f"Ray did not start: {words[-1][:300]}; see {log}")
        if now - begun > START_S_MAX:
            raise SetupError(f"Ray did not start within {START_S_MAX:.0f} s; see {log}")
        if now - said >= 5.0:
            say(f"still starting Ray ({now - begun:.0f} s)")
            said = now
        time.sleep(0.1)
