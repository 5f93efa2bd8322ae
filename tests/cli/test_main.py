"""The command line against a real controller and socket in this process: what is printed, and the exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from restow import checkpoint, config
from restow.cli import main
from restow.controller.rpc import Server
from tests.controller.world import World


class Cluster:
    """A controller with obedient agents, in a thread with its own event loop, reachable through the socket of its home."""

    def __init__(self, folder: Path):
        self.home = config.Home(path=folder)
        self.home.make()
        self.world = World(folder, m1=2, m2=2)
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Cluster:
        self._thread.start()
        assert self._up.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(30)

    async def _serve(self) -> None:
        self.loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        async with self.world.controller() as requests:
            server = Server(self.home.socket, requests)
            await server.open()
            self._up.set()
            await self._leave.wait()
            await server.close()

    def exit(self, job: str, rank: int, code: int, reason: str = "") -> None:
        self.loop.call_soon_threadsafe(self.world.agents["m1"].exit, (job, 1, rank), code, reason)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="restow-test-") as folder:
        monkeypatch.setenv("RESTOW_HOME", folder)
        monkeypatch.chdir(folder)
        (Path(folder) / "train.py").touch()
        with Cluster(Path(folder)) as cluster:
            yield cluster


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("RESTOW_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def restow(capsys, *words):
    code = main.run(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_a_job_from_submit_to_its_end(cluster, capsys):
    code, out, _ = restow(capsys, "submit", "-n", "2", "--env", "A=b=c", "--", "python", "train.py", "--lr", "1")
    assert code == 0
    assert out.startswith("train-1: ")  # pending, or starting already
    assert out.endswith(", 2 workers\n")
    restow(capsys, "events")  # whatever it prints, it ends
    wait_until_running(cluster, capsys)
    code, out, _ = restow(capsys, "show", "train-1", "--json")
    shown = json.loads(out)
    assert shown["spec"]["env"] == {"A": "b=c"}
    assert shown["spec"]["command"] == ["python", "train.py", "--lr", "1"]
    code, out, _ = restow(capsys, "ps")
    assert "train-1" in out
    assert "m1:0 m1:1" in out
    code, out, _ = restow(capsys, "show", "train")
    assert code == 0
    assert "python train.py --lr 1" in out
    code, out, _ = restow(capsys, "nodes")
    assert "train-1/0" in out
    cluster.exit("train-1", 0, 0)
    cluster.exit("train-1", 1, 0)
    assert restow(capsys, "wait", "train-1")[:2] == (0, "train-1: done: ended by itself\n")


def test_a_job_that_fails_is_exit_code_1_with_its_reason(cluster, capsys):
    restow(capsys, "submit", "--", "python", "train.py")
    wait_until_running(cluster, capsys)
    cluster.exit("train-1", 0, 1, "ValueError: x")
    code, out, _ = restow(capsys, "wait", "train-1")
    assert code == 1
    assert "exited with code 1: ValueError: x" in out


def test_events_are_one_line_each_and_one_object_each_with_json(cluster, capsys):
    restow(capsys, "submit", "--", "python", "train.py")
    wait_until_running(cluster, capsys)
    _, out, _ = restow(capsys, "events")
    assert "JobSubmitted" in out
    _, out, _ = restow(capsys, "events", "--json", "--job", "train-1")
    found = [json.loads(line) for line in out.splitlines()]
    assert {event.get("job", "train-1") for event in found} == {"train-1"}
    assert "ScheduleAdopted" in {event["type"] for event in found}  # it names the job among others


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["show", "gpt"], 3, "restow: job 'gpt' does not exist; restow ps shows all"),
        (
            ["submit", "-n", "9", "--", "true"],
            2,
            "restow: workers is 9; the cluster has 4 devices (--queue waits for more)",
        ),
        (["submit", "-n", "0", "--", "true"], 2, "restow: workers is 0; a job needs at least 1"),
        (["submit", "--env", "X", "--", "true"], 2, "restow: --env is 'X'; write NAME=value"),
        (["submit"], 2, "restow: nothing to run; give a spec"),
        (["submit", "--", "python", "gone.py"], 2, "restow: command runs the script 'gone.py'; there is no such file in "),
        (["submit", "gone.yaml"], 2, "restow: spec gone.yaml: No such file"),
        (["migrate", "gpt"], 2, "restow: give either --to"),
        (["migrate", "gpt", "--to", "m1:x"], 2, "restow: slot is 'm1:x'; write node:device"),
        (["migrate", "gpt", "--pack"], 3, "restow: job 'gpt' does not exist"),
        (["up", "--token-file", "x"], 2, "restow: --token-file goes with --join"),
        (["up", "--join", "h:1"], 2, "restow: --join needs --token-file"),
        (["drain", "m9"], 3, "restow: node 'm9' does not exist; there are m1, m2"),
        (["drain", "m1", "--deadline", "-1"], 2, "restow: --deadline is -1; write seconds, 0 or more"),
        (["resume", "gpt"], 3, "restow: job 'gpt' does not exist"),
        (["subit"], 2, "restow: there is no command 'subit'; did you mean 'submit'?"),
        (["ps", "--colour"], 2, "restow: No such option '--colour'"),
        (["defrag", "--plan", "--apply"], 2, "restow: give either --plan or --apply"),
    ],
)
def test_a_mistake_is_one_line_and_its_code(cluster, capsys, words, code, line):
    got, out, err = restow(capsys, *words)
    assert (got, out) == (code, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["ps"], ["show", "x"], ["nodes"], ["events"], ["cancel", "x"], ["logs", "x"], ["defrag"]]
)
def test_without_a_controller_every_command_says_how_to_start_one(nobody, capsys, words):
    code, out, err = restow(capsys, *words)
    assert (code, out) == (5, "")
    assert "start one with restow up" in err
    assert err.count("\n") == 1
    assert not nobody.exists()


def test_a_plan_without_scattered_jobs_moves_nothing(cluster, capsys):
    assert restow(capsys, "defrag", "--plan") == (0, "nothing to move\n", "")
    _, out, _ = restow(capsys, "defrag", "--apply", "--json")
    assert json.loads(out)["moves"] == []


def test_our_own_mistake_is_one_line_with_the_path_of_the_details(nobody, capsys, monkeypatch):
    def broken(self, **_):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("restow.client.Client.ps", broken)
    code, _, err = restow(capsys, "ps")
    assert code == 70
    assert err.count("\n") == 1
    path = err.rpartition("details in ")[2].strip()
    assert "ZeroDivisionError: oops" in Path(path).read_text()


def test_ctrl_c_while_following_is_130_and_leaves_the_job(cluster, capsys):
    restow(capsys, "submit", "--", "python", "train.py")
    wait_until_running(cluster, capsys)
    follower = subprocess.Popen(
        [sys.executable, "-m", "restow", "events", "-f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ
    )
    assert follower.stdout.readline()  # it follows
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=30)
    assert (follower.returncode, err.strip()) == (130, b"restow: interrupted")
    _, out, _ = restow(capsys, "show", "train-1", "--json")
    assert json.loads(out)["state"] == "running"


def test_a_snapshot_of_the_cluster_is_simulated_on(cluster, tmp_path, capsys):
    restow(capsys, "submit", "-n", "2", "--", "python", "train.py")
    wait_until_running(cluster, capsys)
    code, out, _ = restow(capsys, "snapshot")
    assert code == 0
    (tmp_path / "now.json").write_text(out)
    code, out, err = restow(capsys, "simulate", str(tmp_path / "now.json"), "--policy", "fifo")
    assert (code, out.splitlines()[1].split()[0]) == (0, "fifo")
    assert "1 running, 0 waiting" in err


def test_without_a_controller_there_is_no_snapshot(nobody, capsys):
    code, out, err = restow(capsys, "snapshot")
    assert (code, out) == (5, "")
    assert "no controller runs" in err


def test_the_small_commands_load_neither_torch_nor_ray_nor_yaml():
    script = (
        "import sys; from restow.cli import main; main.run(['ps']); "
        "print([name for name in ('torch', 'ray', 'yaml', 'rich', 'numpy', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_command_explains_itself(capsys):
    words = [[name] for name in main.COMMANDS if name not in ("lab", "demo", "checkpoint")]
    for command in [*words, *(["checkpoint", name] for name in ("now", "ls", "verify", "restore"))]:
        code, out, _ = restow(capsys, *command, "--help")
        assert code == 0
        assert "--json" in out


def test_a_number_of_devices_that_a_job_cannot_have_is_refused(cluster, capsys):
    restow(capsys, "submit", "-n", "2", "--devices", "1..2", "--", "python", "train.py")
    wait_until_running(cluster, capsys)
    assert restow(capsys, "scale", "train-1", "3")[0] == 2
    assert "can have 1 to 2" in restow(capsys, "scale", "train-1", "3")[2]
    assert restow(capsys, "scale", "train-1", "many")[0] == 2
    assert restow(capsys, "scale", "nobody", "1")[0] == 3


def test_checkpoints_in_a_folder_are_listed_and_the_damaged_are_named(tmp_path, capsys):
    whole, half = tmp_path / "step-00000012", tmp_path / "step-00000020"
    for folder in (whole, half):
        folder.mkdir()
        (folder / "data").write_bytes(b"x" * 10)
    files, path = checkpoint.open_folder(str(whole))
    told = checkpoint.Manifest(
        job="a-1", step=12, workers=2, time_s=0.0, signatures=[], names={},
        files={"data": checkpoint.checksum(files, f"{path}/data")},
    )  # fmt: skip
    (whole / checkpoint.MANIFEST).write_text(checkpoint.dumps(told))
    code, out, _ = restow(capsys, "checkpoint", "ls", str(tmp_path))
    assert code == 0
    assert "a-1" in out
    assert "was never finished" in out
    assert restow(capsys, "checkpoint", "verify", str(whole)) == (0, f"{whole}: whole, 10 B\n", "")
    (whole / "data").write_bytes(b"y" * 10)
    code, out, _ = restow(capsys, "checkpoint", "verify", str(tmp_path))
    assert code == 1
    assert "is damaged" in out
    assert restow(capsys, "checkpoint", "ls", str(tmp_path / "gone"))[0] == 3


def test_a_node_is_cordoned_drained_and_used_again(cluster, capsys):
    assert restow(capsys, "cordon", "m1") == (0, "nothing new is started on m1\n", "")
    assert "cordoned" in restow(capsys, "nodes")[1]
    assert restow(capsys, "uncordon", "m1") == (0, "m1 is in use again\n", "")
    assert restow(capsys, "drain", "m2") == (0, "m2 is empty\n", "")
    assert "drained" in restow(capsys, "nodes")[1]
    assert restow(capsys, "undrain", "m2") == (0, "m2 is in use again\n", "")
    assert "drained" not in restow(capsys, "nodes")[1]


def test_explain_says_what_is_not_known_yet(cluster, capsys):
    restow(capsys, "submit", "--", "python", "train.py")
    wait_until_running(cluster, capsys)
    code, out, _ = restow(capsys, "explain", "train-1")
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("a step")] == ["a step     not measured yet"]


def wait_until_running(cluster, capsys):
    """Follow the journal until the last rank has started."""
    from restow.client import Client

    for event in Client().events(follow=True):
        if event["type"] == "RankStarted":
            break
    while Client().show("train-1")["state"] != "running":
        pass  # each question is answered after the turn under way
    capsys.readouterr()


def test_without_a_command_the_help_is_printed_plainly(capsys):
    code, out, err = restow(capsys)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: restow [OPTIONS] COMMAND")
    assert err.rstrip().endswith("See a scattered job move, in two minutes.")


def test_ctrl_c_while_the_command_is_still_being_imported_shows_no_traceback(tmp_path):
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-m", "restow", "ps"], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")
