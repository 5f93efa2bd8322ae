"""`restow up` and `down` for real: Ray, agent and controller on this machine, killed, found again, and gone without a trace."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from restow import config
from restow.engine import processes, ray_node
from restow.errors import SetupError

live = pytest.mark.live


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[config.Home]:
    """A home of its own; whatever is left of its cluster at the end is ended, and reported as a failure."""
    folder = Path(tempfile.mkdtemp(prefix="restow-test-"))
    monkeypatch.setenv("RESTOW_HOME", str(folder / "h"))
    monkeypatch.setenv("RESTOW_NODE_NAME", "m1")
    home = config.Home(path=folder / "h")
    try:
        yield home
        left = left_behind(home)
        restow("down", "--yes")
        assert left == []
    finally:
        for cluster_id in cluster_ids(home):
            processes.end(processes.marked_with(cluster_id), grace_s=0)
            shutil.rmtree(config.run_folder(cluster_id), ignore_errors=True)
        shutil.rmtree(folder)


def cluster_ids(home: config.Home) -> list[str]:
    return [config.cluster_id_of(config.read_token(home.token))] if home.token.exists() else []


def left_behind(home: config.Home) -> list[str]:
    """Processes, sockets and shared memory of this home's cluster."""
    left = [f"session of {node.name}" for node in ray_node.recorded(home) if processes.members_of(node.session)]
    for cluster_id in cluster_ids(home):
        left += [f"process {pid}" for pid in processes.marked_with(cluster_id)]
        left += [str(path) for path in config.shm_folder(cluster_id, "m1").parent.glob(f"restow-{cluster_id}-*")]
        left += [str(path) for path in config.run_folder(cluster_id).glob("*/*.sock")]
    return left + ([str(home.socket)] if home.socket.exists() else [])


def restow(*words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "restow", *words], capture_output=True, text=True, timeout=150, **options
    )


def followed(*words: str) -> Iterator[str]:
    """Lines of a command that does not end by itself; ended with the loop."""
    with subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield from process.stdout
        finally:
            process.kill()


def controller_pid(home: config.Home) -> int:
    return int(home.lock.read_text().split()[0])


@live
def test_a_cluster_comes_up_survives_its_controller_changes_its_policy_and_goes_without_a_trace(home, tmp_path):
    first = restow("up", "--json")
    assert first.returncode == 0, first.stderr
    about = json.loads(first.stdout)
    assert about["joined"] == ["m1"]
    assert f"restow up --join {about['gcs']} --token-file {home.token}" in first.stderr
    for path in (home.token, home.socket, home.journal):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0

    again = restow("up")
    assert again.returncode == 0
    assert "the controller runs" in again.stdout

    second = subprocess.run(
        [sys.executable, "-m", "restow.controller.daemon"], capture_output=True, text=True, timeout=60
    )
    assert second.returncode == 4
    assert f"a controller runs already for {home.path} (process {controller_pid(home)})" in second.stderr

    script = "import sys, time\nprint('up', flush=True)\ntime.sleep(600)"
    submitted = restow("submit", "-n", "2", "--name", "long", "--json", "--", "python", "-c", script)
    assert submitted.returncode == 0, submitted.stderr
    follow = subprocess.Popen([sys.executable, "-m", "restow", "logs", "long", "-f"], stdout=subprocess.PIPE, text=True)
    assert sorted([follow.stdout.readline(), follow.stdout.readline()]) == ["[0] up\n", "[1] up\n"]
    pids = json.loads(restow("events", "--json", "--job", "long-1").stdout.splitlines()[-1])
    assert pids["type"] == "RankStarted"

    os.kill(controller_pid(home), signal.SIGKILL)
    assert follow.wait(30) == 5
    follow.stdout.close()
    assert restow("ps").returncode == 5
    assert restow("up").returncode == 0
    assert json.loads(restow("show", "long-1", "--json").stdout)["state"] == "running"
    os.kill(pids["pid"], 0)  # the very same process

    wrong = tmp_path / "mine.py"
    wrong.write_text("def policy(): return Mine()\n\nclass Mine:\n    def decide(self, snapshot): raise ValueError('no idea')\n")
    unknown = restow("up", "--policy", "restw")
    assert (unknown.returncode, unknown.stderr.strip()) == (2, "restow: there is no policy 'restw'; did you mean 'restow'?")
    other = restow("up", "--policy", "mine.py", cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    assert f"the controller decides by restow and is started again to decide by {wrong}; jobs go on" in other.stdout
    failed = f"the policy failed: ValueError: no idea ({wrong}, line 4); everything stays as it is"
    for line in followed("restow", "events", "-f"):
        if failed in line:
            break
    assert json.loads(restow("show", "long-1", "--json").stdout)["state"] == "running"
    os.kill(pids["pid"], 0)
    assert "the controller runs" in restow("up").stdout  # the policy of the last time
    assert "decide by fifo" in restow("up", "--policy", "fifo").stdout

    refused = restow("down", stdin=subprocess.DEVNULL)
    assert refused.returncode == 4
    assert "1 job is not finished (long-1); restow down --yes ends them" in refused.stderr
    assert restow("down", "--yes").returncode == 0
    assert left_behind(home) == []
    assert restow("down").stdout == "nothing was up\n"


@live
def test_ctrl_c_while_coming_up_leaves_nothing(home):
    up = subprocess.Popen(
        [sys.executable, "-m", "restow", "up"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert "starting Ray" in up.stdout.readline()
    up.send_signal(signal.SIGINT)
    _, err = up.communicate(timeout=60)
    assert (up.returncode, err.strip()) == (130, "restow: interrupted")
    assert left_behind(home) == []


@live
def test_what_a_killed_up_left_is_found_by_down(home):
    up = subprocess.Popen(
        [sys.executable, "-m", "restow", "up"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert "starting Ray" in up.stdout.readline()
    while not ray_node.recorded(home):
        assert up.poll() is None
    up.kill()
    up.communicate()
    assert restow("down").returncode == 0
    assert left_behind(home) == []


def test_a_port_in_use_is_one_line(home):
    address = config.find_address()
    with socket.socket() as taken:
        taken.bind((address, 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = restow("up", "--port", str(port))
    assert refused.returncode == 6
    assert refused.stderr == f"restow: port {port} at {address}: Address already in use; choose another with --port\n"
    with socket.socket() as other:  # on one address only, and not ours
        other.bind(("127.0.0.2", 0))
        other.listen()
        with pytest.raises(SetupError, match="Address already in use"):
            ray_node.check_port(address, other.getsockname()[1])
    assert left_behind(home) == []


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("RESTOW_NODE_ADDRESS", "192.0.2.77", "node address is '192.0.2.77': Cannot assign requested address; give one of this"),
        ("RESTOW_NODE_ADDRESS", "no.such.invalid", "node address is 'no.such.invalid': "),
        ("RESTOW_DEVICES", "/nowhere.json", "device file /nowhere.json: No such file or directory; unset RESTOW_DEVICES"),
        ("RESTOW_SHM", "/nowhere", "shared memory /nowhere: No such file or directory; make it or set RESTOW_SHM"),
        ("RESTOW_NODE_NAME", "a b", "node name is 'a b'; use letters"),
    ],
)
def test_what_the_agent_would_miss_is_said_before_anything_is_started(home, variable, value, line):
    refused = restow("up", env={**os.environ, variable: value})
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (6, "", 1)
    assert refused.stderr.startswith(f"restow: {line}")


@pytest.mark.lab
def test_shared_memory_that_is_full_is_said_before_anything_is_started(home, tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(tmp_path)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        refused = restow("up", env={**os.environ, "RESTOW_SHM": str(tmp_path)})
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert (refused.returncode, refused.stderr.count("\n")) == (6, 1)
    assert f"shared memory {tmp_path} has 8192 bytes free, too few" in refused.stderr


def test_a_ray_that_cannot_be_imported_is_one_line(home, tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/__init__.py").write_text("raise ImportError('no Ray for this machine')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    refused = restow("up", env={**os.environ, "PYTHONPATH": path})
    assert (refused.returncode, refused.stderr.count("\n")) == (6, 1)
    assert "Ray did not start: ImportError: no Ray for this machine; see " in refused.stderr
    assert left_behind(home) == []


def test_down_on_a_machine_that_joined_asks_when_jobs_have_workers_here(home):
    home.make()
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as ray:
        try:
            is_refused_with_a_worker_of("digits-1", home, processes.identify(ray.pid))
        finally:
            ray.kill()


def is_refused_with_a_worker_of(job: str, home: config.Home, ray: processes.ProcessId) -> None:
    joined = ray_node.RayNode(
        name="m1", address="127.0.0.1", is_head=False, gcs="10.0.0.1:6479", cluster_id="00c0ffee", pid=ray.pid,
        started=ray.started,
    )  # fmt: skip
    record = home.nodes / "m1.json"
    record.write_text(json.dumps(dataclasses.asdict(joined)))
    notes = config.run_folder("00c0ffee") / "m1/run"
    notes.mkdir(parents=True)
    try:
        (notes / "1.json").write_text(json.dumps({"label": {"job": job, "kind": "rank"}, "pid": ray.pid}))
        (notes / "2.json").write_text(json.dumps({"label": {"job": "gone-1", "kind": "rank"}, "pid": 0}))
        refused = restow("down", stdin=subprocess.DEVNULL)
        assert refused.returncode == 4
        assert f"1 job is not finished ({job}); restow down --yes ends them" in refused.stderr
    finally:
        record.unlink()
        shutil.rmtree(notes.parents[1])


def test_joining_where_nobody_listens_is_one_line(home, tmp_path):
    token = tmp_path / "token"
    config.make_token(token)
    port = ray_node.free_port("127.0.0.1")
    refused = restow("up", "--join", f"127.0.0.1:{port}", "--token-file", str(token))
    assert (refused.returncode, refused.stderr.count("\n")) == (5, 1)
    assert "is restow up there" in refused.stderr
    token.chmod(0o644)
    refused = restow("up", "--join", f"127.0.0.1:{port}", "--token-file", str(token))
    assert refused.returncode == 6
    assert "can be read by others (mode 0644); run chmod 600" in refused.stderr


def test_a_home_too_long_for_a_socket_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("RESTOW_HOME", str(tmp_path / ("x" * 120)))
    refused = restow("up")
    assert refused.returncode == 6
    assert "too long for a Unix socket" in refused.stderr
