"""`restow doctor`: what this machine has and lacks, one line each, with the way out."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from restow import config
from restow.cli import show as out
from restow.cli.options import json_option
from restow.client import Client
from restow.errors import RestowError, SetupError, Unreachable

SHM_BYTES_MIN = 64_000_000  # pages take kilobytes, Ray's object store 80 MB, private state tens of kilobytes per rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`level`: ok, note (something optional is missing) or problem (restow will not work)."""

    what: str
    level: str
    line: str


@click.command()
@json_option
def doctor(json_: bool) -> int:
    """Check what this machine has and lacks; exit code 6 if something that restow needs is missing."""
    findings = [finding for check in CHECKS for finding in check()]
    if json_:
        out.as_json([asdict(finding) for finding in findings])
    else:
        colours = {"ok": "green", "note": "yellow", "problem": "red"}
        for finding in findings:
            click.echo(
                f"{click.style(f'{finding.level:<8}', fg=colours[finding.level])}{finding.what:<12} {finding.line}"
            )
    return SetupError.exit_code if any(finding.level == "problem" for finding in findings) else 0


def check_python() -> Iterator[Finding]:
    yield Finding(what="python", level="ok", line=f"{'.'.join(map(str, sys.version_info[:3]))}, {sys.executable}")


def check_packages() -> Iterator[Finding]:
    for name, needed in (("torch", "2.13"), ("ray", "2.60")):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(what=name, level="problem", line=f"missing; python -m pip install '{name}>={needed}'")
            continue
        old = _numbers(version) < _numbers(needed)
        line = (
            f"{version}; restow needs {needed} or later: python -m pip install '{name}>={needed}'" if old else version
        )
        yield Finding(what=name, level="problem" if old else "ok", line=line)


def check_shm() -> Iterator[Finding]:
    folder = config.shm_folder("x", "x").parent
    if not os.access(folder, os.W_OK):
        yield Finding(
            what="shm", level="problem", line=f"{folder} cannot be written; set RESTOW_SHM to a folder in memory"
        )
        return
    free = shutil.disk_usage(folder).free
    if free < SHM_BYTES_MIN:
        line = f"{folder} has {out.size(free)} free, {out.size(SHM_BYTES_MIN)} are needed; free some or set RESTOW_SHM"
        yield Finding(what="shm", level="problem", line=line)
    else:
        yield Finding(what="shm", level="ok", line=f"{folder}, {out.size(free)} free")


def check_home() -> Iterator[Finding]:
    home = config.home()
    existing = next(folder for folder in (home.path, *home.path.parents) if folder.exists())
    if not os.access(existing, os.W_OK) or len(os.fsencode(home.socket)) > config.SOCKET_PATH_MAX:
        line = f"{home.path} cannot be made, or its name is too long for a socket; set RESTOW_HOME"
        yield Finding(what="home", level="problem", line=line)
        return
    try:
        about = Client(home, answer_s_max=5.0).ping()
        line = f"{home.path}, cluster {about['cluster_id']} is up: {', '.join(about['joined'])}"
        yield Finding(what="home", level="ok", line=line)
    except Unreachable:
        yield Finding(what="home", level="ok", line=f"{home.path}, nothing is up")
    except RestowError as error:
        yield Finding(what="home", level="problem", line=str(error))


def check_network() -> Iterator[Finding]:
    try:
        node = config.node()
        with socket.socket() as probe:
            probe.bind((node.address, 0))
    except RestowError as error:
        yield Finding(what="network", level="problem", line=str(error))
        return
    except OSError as error:
        line = (
            f"{node.address} cannot be bound ({error.strerror}); set RESTOW_NODE_ADDRESS to an address of this machine"
        )
        yield Finding(what="network", level="problem", line=line)
        return
    if node.address.startswith("127."):
        yield Finding(what="network", level="note", line=f"{node.name} at {node.address}; no other machine can join")
    else:
        yield Finding(what="network", level="ok", line=f"{node.name} at {node.address}")


def check_port() -> Iterator[Finding]:
    from restow.cli.bring_up import DEFAULT_PORT
    from restow.engine import ray_node

    if any(node.session.is_alive for node in ray_node.recorded(config.home())):
        yield Finding(what="port", level="ok", line="our own Ray has it")
        return
    try:
        ray_node.check_port(config.node().address, DEFAULT_PORT)
        yield Finding(what="port", level="ok", line=f"{DEFAULT_PORT} is free")
    except (RestowError, OSError):
        yield Finding(
            what="port", level="note", line=f"{DEFAULT_PORT} is in use; restow up takes a free one, or give --port"
        )


def check_lab() -> Iterator[Finding]:
    try:
        from restow.lab import availability
    except ImportError as error:
        yield Finding(what="lab", level="note", line=f"not available ({error}); python -m pip install 'restow[lab]'")
        return
    how, missing = availability()
    if how == "none":
        yield Finding(
            what="lab", level="note", line=f"not possible here: {missing}; the demo runs without shaped links"
        )
    else:
        yield Finding(what="lab", level="ok", line=f"network namespaces as {how}" + (f"; {missing}" if missing else ""))


def check_cgroup() -> Iterator[Finding]:
    two, one = Path("/sys/fs/cgroup/cgroup.controllers"), Path("/sys/fs/cgroup/cpu")
    version, folder = ("v2", two.parent) if two.exists() else ("v1", one) if one.exists() else ("", one)
    if not version:
        yield Finding(what="cgroup", level="note", line="none mounted; devices of a lab are bound to cores only")
    elif os.access(folder, os.W_OK):
        yield Finding(what="cgroup", level="ok", line=f"{version}, {folder} can be written")
    else:
        yield Finding(
            what="cgroup",
            level="note",
            line=f"{version}, {folder} is read-only; devices of a lab are bound to cores only",
        )


def check_devices() -> Iterator[Finding]:
    named = config.devices_file()
    if named:
        level, line = (
            ("ok", str(named)) if named.is_file() else ("problem", f"RESTOW_DEVICES is {named}; there is no such file")
        )
        yield Finding(what="devices", level=level, line=line)
        return
    try:
        import pynvml

        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        yield Finding(what="devices", level="ok", line=f"{count} NVIDIA GPU{'s' * (count != 1)}")
        pynvml.nvmlShutdown()
    except ImportError:
        yield Finding(
            what="devices", level="note", line=f"{os.cpu_count()} CPU cores; pip install nvidia-ml-py to find GPUs"
        )
    except pynvml.NVMLError as error:
        yield Finding(what="devices", level="note", line=f"{os.cpu_count()} CPU cores; no GPU ({error})")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(word) for word in version.split("+")[0].split(".")[:2] if word.isdigit())


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python, check_packages, check_shm, check_home, check_network, check_port, check_lab, check_cgroup, check_devices,
)  # fmt: skip
