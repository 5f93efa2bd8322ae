"""What the demo plays on: two machines of a lab (or two names for this one), a cluster on them, a private folder.

Everything that is started here ends here, in `Stage.close`, whatever happened in between.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from restow import config
from restow.demo.scene import Scene, find_examples
from restow.errors import SetupError, Unreachable
from restow.lab import Lab, availability

COMMAND_S_MAX = 90.0  # `restow up` starts Ray, which takes 6 to 14 s; on a busy machine more
DOWN_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What machines the demo can have here."""

    how: str  # "root" or "user": a lab; "none": this machine under two names
    missing: str  # one line, when there is no lab

    @property
    def has_link(self) -> bool:
        return self.how != "none"


def find_kind() -> Kind:
    how, missing = availability()
    return Kind(how, missing)


class Stage:
    """Use as a context manager; `open` tells its progress through `say`."""

    def __init__(self, scene: Scene, kind: Kind, say: Callable[[str], None]) -> None:
        self.scene, self.kind = scene, kind
        self.examples = find_examples()
        self.folder = Path(tempfile.mkdtemp(prefix="restow-demo-", dir="/tmp"))  # short: sockets are in it
        self.home = self.folder / "home"
        self.lab: Lab | None = None
        self._say = say
        self._is_up = False
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Stage:
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(f"m{number}" for number in range(1, self.scene.nodes + 1))

    def _open(self) -> None:
        self.home.mkdir(mode=0o700)
        scene = self.scene
        if self.kind.has_link:
            self._say(
                f"a lab: {scene.nodes} machines with {scene.devices} device{'s' * (scene.devices != 1)} each,"
                f" {rate_text(scene)} between them"
            )
            self.lab = Lab(nodes=scene.nodes, devices=scene.devices, rate_bits_per_s=scene.rate_bits_per_s)
            self.lab.__enter__()
        else:
            self._say(f"no lab here ({self.kind.missing}): both machines are this one, and no link is between them")
            for name in self.node_names:
                self._devices_file(name).write_text(json.dumps({"devices": self._own_devices(name)}))
        first, *others = self.node_names
        self._say(f"restow up on {first}: Ray, the controller and an agent")
        self._is_up = True
        self._run(first, ["up"])
        for name in others:
            self._say(f"restow up --join on {name}")
            self._run(name, ["up", "--join", self._head(), "--token-file", str(self.home / "token")])

    def _head(self) -> str:
        """Where Ray listens, as `restow up` wrote it."""
        cluster = json.loads((self.home / "cluster.json").read_text())
        return str(cluster["gcs"])

    def link_bytes(self) -> int | None:
        """Bytes over the first machine's interface so far, both ways."""
        return sum(self.lab.counters(self.node_names[0])) if self.lab else None

    def device_share(self) -> float:
        """Of a core: what one device gives at most."""
        node = self.node_names[0]
        file = self.lab.nodes[node].devices_file if self.lab else self._devices_file(node)
        device = json.loads(file.read_text())["devices"][0]
        return float(device["share"]) if device["cgroup"] else 1.0  # without a control group nothing bounds it

    def gates_folder(self, node: str) -> Path:
        """Where the gates of that node's devices are, once the cluster is up."""
        cluster_id = config.cluster_id_of(config.read_token(self.home / "token"))
        return config.shm_folder(cluster_id, node) / "gates"

    # -------------------------------------------------------- processes

    def environment(self, node: str) -> dict[str, str]:
        address = self.lab.nodes[node].address if self.lab else "127.0.0.1"
        devices = self.lab.nodes[node].devices_file if self.lab else self._devices_file(node)
        return {
            **os.environ,
            "RESTOW_HOME": str(self.home),
            "RESTOW_NODE_NAME": node,
            "RESTOW_NODE_ADDRESS": address,
            "RESTOW_DEVICES": str(devices),
        }

    def popen(
        self, node: str, argv: Sequence[str], *, stdout: IO[bytes], env: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """A program on that machine, in a session of its own: Ctrl-C in the terminal reaches only the demo itself."""
        if self.lab:
            child = self.lab.nodes[node].popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        else:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.STDOUT, env=env, start_new_session=True
            )
        self._children.append(child)
        return child

    def _run(self, node: str, words: list[str], limit_s: float = COMMAND_S_MAX) -> str:
        """Run `restow <words>` there to its end; returns stdout. Raises SetupError with its last line when it fails."""
        with tempfile.TemporaryFile(dir=self.folder) as output:
            child = self.popen(
                node, [sys.executable, "-m", "restow", *words], stdout=output, env=self.environment(node)
            )
            try:
                code = child.wait(limit_s)
            except subprocess.TimeoutExpired:
                raise Unreachable(
                    f"restow {words[0]} on {node} took more than {limit_s:.0f} s; see {self.home / 'logs'}"
                ) from None
            finally:
                end(child)
            output.seek(0)
            text = output.read().decode(errors="replace")
        if code != 0:
            lines = text.strip().splitlines() or ["(it said nothing)"]
            raise SetupError(f"restow {words[0]} on {node} ended with {code}: {lines[-1]}")
        return text

    def close(self) -> None:
        """End the jobs, the cluster and the lab, and remove the folder. May be called again."""
        try:
            if self._is_up:
                self._is_up = False
                try:
                    self._run(self.node_names[0], ["down", "--yes", "--purge"], DOWN_S_MAX)
                except (SetupError, Unreachable) as error:
                    self._say(f"taking down: {error}")
        finally:
            for child in self._children:
                end(child)
            lab, self.lab = self.lab, None
            if lab:
                lab.close()  # ends whatever is still in it
            self._remove_files()

    def _remove_files(self) -> None:
        """Also those that `restow down` would have removed, if it could not run to its end."""
        if (self.home / "token").exists():
            cluster_id = config.cluster_id_of(config.read_token(self.home / "token"))
            shutil.rmtree(config.run_folder(cluster_id), ignore_errors=True)
            for name in self.node_names:
                shutil.rmtree(config.shm_folder(cluster_id, name), ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # -------------------------------------------------------- without a lab

    def _devices_file(self, node: str) -> Path:
        return self.folder / f"{node}.devices.json"

    def _own_devices(self, node: str) -> list[dict[str, object]]:
        """Its devices are cores of this machine; those of the next node go on where its own end."""
        cores = sorted(os.sched_getaffinity(0))
        count = self.scene.devices
        first = self.node_names.index(node) * count
        return [
            {"index": i, "kind": "cpu", "share": 1.0, "core": cores[(first + i) % len(cores)], "cgroup": None}
            for i in range(count)
        ]


def end(child: subprocess.Popen[bytes]) -> None:
    """End a child that is still there, with its process group: as by Ctrl-C first, so that it can undo what it began."""
    for number, patience_s in ((signal.SIGINT, 5.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 10.0)):
        if child.poll() is not None:
            return
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            child.send_signal(number)  # not (yet) the leader of a group
        try:
            child.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue


def rate_text(scene: Scene) -> str:
    return f"{scene.rate_bits_per_s / 1e6:.0f} Mbit/s"
