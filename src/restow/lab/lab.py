"""A lab as its users see it: nodes that run programs, links that can be changed, all of it gone at the end.

    with Lab(nodes=2, devices=2, rate_bits_per_s=200e6) as lab:
        lab.nodes["m1"].popen(["python", "train.py"])
        lab.set_link("m1", "m2", rate_bits_per_s=10e6)
        lab.cut("m2")

Everything that needs a namespace is done by the lab's holder, so this module is safe in a process with threads and
needs no pyroute2.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any

import restow
from restow import errors
from restow.errors import NotFound, RestowError, SetupError, SpecError, Unreachable
from restow.lab import enter
from restow.lab.shape import Shape
from restow.lab.state import LabState, Process, find, locked, place, propose, read_state, states
from restow.lab.sweep import HOLDER_GRACE_S, processes_inside, remove, remove_abandoned

NODES_MAX = 100
DEVICES_MAX = 64
ANSWER_TIMEOUT_S = 30.0


class Keep(Enum):
    """Stands for: leave it as it is."""

    KEEP = "keep"


KEEP = Keep.KEEP


@dataclass(frozen=True, slots=True)
class LabNode:
    """One machine of the lab."""

    name: str
    address: str
    interface: str  # carries the address; named alike in all nodes
    devices_file: Path
    _state: LabState = field(repr=False)
    _children: list[subprocess.Popen[Any]] = field(repr=False)

    def enter_command(self, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` inside the node, from anywhere on this machine, as long as the lab is up.

        The program gets RESTOW_DEVICES (the node's device file), RESTOW_NODE_NAME and RESTOW_NODE_ADDRESS, so that restow up
        runs there as on a machine of its own, and RESTOW_LAB (by which it is found at the end).
        """
        state = self._state
        assert state.holder, "a lab that is up has a holder"
        proc = f"/proc/{state.holder.pid}"
        user = ["--user", f"{proc}/ns/user:{state.user_namespace}"] if state.user_namespace else []
        return [
            *(sys.executable, "-I", "-S", enter.__file__),
            *user,
            *("--net", f"{proc}/fd/{state.descriptors[self.name]}:{state.namespaces[self.name]}"),
            *("--env", f"RESTOW_DEVICES={self.devices_file}"),
            *("--env", f"RESTOW_NODE_NAME={self.name}"),
            *("--env", f"RESTOW_NODE_ADDRESS={self.address}"),
            *("--env", f"RESTOW_LAB={state.mark}"),
            *("--", *argv),
        ]

    def popen(self, argv: Sequence[str], **popen_kwargs: Any) -> subprocess.Popen[Any]:
        """Start a program inside the node. It ends with the lab at the latest."""
        child = subprocess.Popen(self.enter_command(argv), **popen_kwargs)
        self._children.append(child)
        return child


class Lab:
    """A small cluster on this machine, up as long as this object is open and this process lives."""

    def __init__(
        self,
        nodes: int = 2,
        devices: int = 2,
        rate_bits_per_s: float | None = 200e6,
        delay_s: float = 0.0,
        share: float | None = None,
        name: str | None = None,
    ):
        """`devices` and `share` (of a core) are per node and per device. Raises SpecError, Refused or SetupError."""
        if not 1 <= nodes <= NODES_MAX:
            raise SpecError(f"nodes is {nodes}; choose 1 to {NODES_MAX}")
        if not 0 <= devices <= DEVICES_MAX:
            raise SpecError(f"devices is {devices}; choose 0 to {DEVICES_MAX} per node")
        shape = Shape(rate_bits_per_s=rate_bits_per_s, delay_s=delay_s)
        if not sys.platform.startswith("linux"):
            raise SetupError(f"the lab needs Linux; this is {sys.platform}")
        options = {"rate_bits_per_s": shape.rate_bits_per_s, "delay_s": shape.delay_s, "share": share}
        self._holder: subprocess.Popen[Any] | None = None
        self._children: list[subprocess.Popen[Any]] = []
        try:
            with locked() as base:
                remove_abandoned(base)
                self._state = propose(name, nodes=nodes, devices=devices)
                place(self._state)
            self._start_holder(options)
            self._adopt(read_state(self._state.folder) or self._state)
        except BaseException:  # Ctrl-C too
            if hasattr(self, "_state"):  # else nothing was made
                self.close()
            raise

    @classmethod
    def open(cls, name: str | None = None) -> Lab:
        """The lab that is up under `name` (None: the only one), made by somebody else. Do not close it unless meant."""
        lab = cls.__new__(cls)
        lab._holder, lab._children = None, []
        lab._adopt(find(name))
        return lab

    @staticmethod
    def availability() -> tuple[str, str]:
        return availability()

    def _adopt(self, state: LabState) -> None:
        self._state = state
        self.name = state.name
        self.how = state.how  # "root" or "user"
        self.owner = state.owner  # None: nobody's, stays until it is closed
        self.devices = state.devices  # per node
        self.notes = state.notes  # what this machine could not do, one line each
        self.nodes = {
            node: LabNode(node, state.address(node), "eth0", state.devices_file(node), state, self._children)
            for node in state.node_names
        }

    def _start_holder(self, options: dict[str, Any]) -> None:
        """Start the holder and wait until the lab is there."""
        with tempfile.TemporaryFile() as log:
            self._holder = subprocess.Popen(
                _holder_command(str(self._state.folder)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd="/",
                env=_holder_environment(),
                start_new_session=True,  # a Ctrl-C of the terminal is not for it
            )
            try:
                assert self._holder.stdin is not None
                assert self._holder.stdout is not None
                self._holder.stdin.write(json.dumps(options) + "\n")
                self._holder.stdin.close()
                answer = self._holder.stdout.readline()
                self._holder.stdout.close()
            except BrokenPipeError:
                answer = ""
            if not answer:
                self._holder.wait()
                log.seek(0)
                lines = log.read().decode(errors="replace").strip().splitlines()
                raise SetupError(f"the lab could not be made: {lines[-1] if lines else 'its holder was killed'}")
        _ok(answer)

    def node(self, name: str) -> LabNode:
        """The node with that name. Raises NotFound."""
        if name not in self.nodes:
            raise NotFound(f"no node is named {name!r}; there are {', '.join(self.nodes)}")
        return self.nodes[name]

    # ------------------------------------------------------------ links

    def set_link(
        self,
        a: str,
        b: str | None = None,
        *,
        rate_bits_per_s: float | Keep | None = KEEP,
        delay_s: float | Keep = KEEP,
    ) -> None:
        """Change the NIC of node `a`, or the link between `a` and `b`, while it runs; what is not given stays.

        A NIC has its rate in both directions. A pair's rate holds each way and under the NICs' own; its delay is
        added to theirs. Between two NICs of different delay a packet takes the mean of both.
        """
        changes = {"rate_bits_per_s": rate_bits_per_s, "delay_s": delay_s}
        self._ask("set_link", a=a, b=b, **{name: value for name, value in changes.items() if value is not KEEP})

    def cut(self, a: str, b: str | None = None) -> None:
        """Pull the cable of `a` (it loses its carrier), or let nothing pass between `a` and `b`. No side is told."""
        self._ask("set_link", a=a, b=b, is_cut=True)

    def heal(self, a: str, b: str | None = None) -> None:
        """Undo `cut`."""
        self._ask("set_link", a=a, b=b, is_cut=False)

    def counters(self, node: str) -> tuple[int, int]:
        """Bytes that the node's interface received and sent so far, headers included."""
        received, sent = self._ask("counters", node=node)
        return received, sent

    def links(self) -> dict[str, Any]:
        """How links are set now: {"nodes": {name: shape}, "pairs": [[a, b, shape], ...]} with shapes as dicts."""
        links: dict[str, Any] = self._ask("links")
        return links

    def detach(self) -> None:
        """Let go of the lab: it stays up when this process ends, until somebody closes it."""
        self._ask("detach")
        self._adopt(read_state(self._state.folder) or self._state)

    def _ask(self, do: str, **arguments: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_TIMEOUT_S)
            try:
                connection.connect(str(self._state.folder / "holder.sock"))
                connection.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
                answer = connection.makefile("r").readline()
            except OSError as error:
                raise Unreachable(
                    f"lab {self.name!r} does not answer ({error.strerror or error}); is it down?"
                ) from None
        if not answer:
            raise Unreachable(f"lab {self.name!r} ended while it was asked; see restow lab ls")
        return _ok(answer)

    # ------------------------------------------------------------ the end

    def processes(self) -> list[Process]:
        """Every process inside the lab now."""
        return processes_inside(self._state, held=bool(self._state.holder and self._state.holder.is_alive))

    def close(self) -> None:
        """End every process inside (SIGTERM, then SIGKILL after 2 s) and remove the lab. Harmless when repeated."""
        current = read_state(self._state.folder)
        state = current if current and current.id == self._state.id else self._state
        if current is None or current.id == state.id:  # else somebody made a new lab of that name
            remove(state)
        if self._holder:
            self._holder.terminate()  # if it was only just started the state may not name it yet
            try:
                self._holder.wait(HOLDER_GRACE_S)
            except subprocess.TimeoutExpired:
                self._holder.kill()
                self._holder.wait()
        for child in self._children:
            if child.poll() is None:  # it was on its way in just now
                child.kill()
                child.wait()
        with locked():
            pass  # removes the folder of labs if this was the last one

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _ok(answer: str) -> Any:
    reply = json.loads(answer)
    if "error" in reply:
        kind, text = reply["error"]
        error_type = getattr(errors, kind)
        assert issubclass(error_type, RestowError)
        raise error_type(text)
    return reply["ok"]


def _holder_command(argument: str) -> list[str]:
    return [sys.executable, "-m", "restow.lab.holder", argument]


def _holder_environment() -> dict[str, str]:
    """Ours, with this very package importable from anywhere."""
    package = str(Path(restow.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))}


@functools.cache
def availability() -> tuple[str, str]:
    """("root" | "user" | "none", what is missing in one line, "" if nothing). Tries it out, in about half a second.

    "none": labs cannot be made; everything else works on one machine without shaped links. With "root" and "user" the
    line names what this lab will lack: delays, or bounds for devices.
    """
    if not sys.platform.startswith("linux"):
        return "none", f"the lab needs Linux; this is {sys.platform}"
    done = subprocess.run(
        _holder_command("--probe"),
        capture_output=True,
        text=True,
        cwd="/",
        env=_holder_environment(),
        timeout=60,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return "none", f"the lab's probe failed: {lines[-1] if lines else f'exit code {done.returncode}'}"
    found = json.loads(done.stdout)
    return found["how"], found["missing"]


def all_labs() -> list[LabState]:
    """Every lab of this user, after the abandoned ones were removed."""
    with locked() as base:
        remove_abandoned(base)
        return states()
