"""What all tests share: a private place for files, options, and a look at the end whether anything was left behind.

Everything that a test starts inherits the environment variable RESTOW_TEST of this session; whatever still runs with it
after the last test was forgotten by somebody. Folders come from here too, so their leftovers are ours for certain.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

MARK = "RESTOW_TEST"
GRACE_S = 10.0  # what has been told to end may take a moment


def _sweep(*folders: Path) -> None:
    """Remove those of test runs that were killed: the process whose number they carry is gone."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for folder in folders:
        pid = folder.name.split("-")[-2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            for mount in mounts:
                if mount.startswith(f"{folder}/"):
                    subprocess.run(["umount", "-l", mount], check=False)
            shutil.rmtree(folder, ignore_errors=True)


_is_worker = "PYTEST_XDIST_WORKER" in os.environ
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `make test &`: whatever we start would ignore its Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # `timeout 60 pytest`: fixtures end what they began, as after Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
if not _is_worker:
    # at import, before any module reads the environment; short, since Unix sockets allow 107 characters
    _memory = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp")
    _sweep(*Path("/tmp").glob("rt-*-*"), *_memory.glob("restow-test-*-*"))
    _folder = Path(tempfile.mkdtemp(prefix=f"rt-{os.getpid()}-", dir="/tmp"))
    _shm = Path(tempfile.mkdtemp(prefix=f"restow-test-{os.getpid()}-", dir=_memory))
    os.environ[MARK] = _folder.name
    os.environ["RESTOW_HOME"] = str(_folder / "home")
    os.environ["RESTOW_RUN"] = str(_folder)
    os.environ["RESTOW_SHM"] = str(_shm)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure is told when it happens: a run that is cut off never comes to its summary."""
    if report.failed and not _is_worker:
        print(f"\nfailed in {report.when}: {report.nodeid} after {report.duration:.1f} s", file=sys.__stderr__, flush=True)
        print(f"{report.longreprtext[-3000:]}\n", file=sys.__stderr__, flush=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _is_worker:
        return
    left = _wait_until_gone()
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    for line in left:
        if reporter:
            reporter.write_line(f"left behind: {line}", red=True)
    for process in _processes():
        process.kill()  # ours: each carries the mark of this very session
    shutil.rmtree(_folder, ignore_errors=True)
    shutil.rmtree(_shm, ignore_errors=True)
    if left and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _wait_until_gone() -> list[str]:
    """What is still there after the grace, one line each."""
    deadline_s = time.monotonic() + GRACE_S
    while left := [*_process_lines(), *_shm_lines(), *_lab_lines()]:
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.2)
    return left


def _processes() -> Iterator[psutil.Process]:
    """Everybody but us that carries this session's mark."""
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get(MARK) == os.environ[MARK]
            if is_ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def _process_lines() -> Iterator[str]:
    for process in _processes():
        try:
            yield f"process {process.pid}: {' '.join(process.cmdline())[:150]}"
        except psutil.NoSuchProcess:
            continue


def _shm_lines() -> Iterator[str]:
    yield from (f"shared memory {path}" for path in sorted(_shm.rglob("*")) if path.is_file())


def _lab_lines() -> Iterator[str]:
    """Labs whose maker was this process, or one that carries our mark and is gone."""
    try:
        from restow.lab.state import states
    except ImportError:
        return
    for state in states():
        if state.owner and state.owner.pid == os.getpid():
            yield f"lab {state.name}"


@pytest.fixture
def examples() -> Path:
    """The folder of the example scripts."""
    return Path(__file__).resolve().parents[1] / "examples"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders say what a test is: tests/live is marked live, tests/gpu is marked gpu and skipped without one."""
    for item in items:
        parts = item.path.parts
        if "live" in parts:
            item.add_marker(pytest.mark.live)
        if "gpu" in parts:
            item.add_marker(pytest.mark.gpu)
    if any(item.get_closest_marker("gpu") for item in items) and not _has_gpu():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU here: NOT TESTED on one"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
