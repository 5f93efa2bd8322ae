"""Ordinary programs in the nursery's hands: how they are started, what they see, how they end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from restow.messages import LaunchFailed, RankExited, RankStarted, Stop
from tests.agent.node import Node, is_gone

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as node:
        yield node


def test_a_script_runs_as_main_with_torch_there_already(node: Node):
    ended, printed = node.python(
        "import sys\nwarm = 'torch' in sys.modules\nprint(__name__, __file__, warm)\nprint(sys.argv[1:], sys.path[0])\n"
        "print(__import__('__main__').warm)"
    )
    assert (ended.code, ended.reason, ended.role) == (0, "", "rank")
    assert printed.splitlines() == [f"__main__ {node.folder}/script.py True", f"[] {node.folder}", "True"]


def test_a_module_and_code_run_as_python_would(node: Node):
    node.script("import sys; print('module', sys.argv, __spec__.name)", "aside.py")
    _, printed = node.run_to_end("python", "-m", "aside", "x", "y")
    assert printed == f"module ['{node.folder}/aside.py', 'x', 'y'] aside\n"
    _, printed = node.run_to_end("python3", "-u", "-c", "import sys; print(sys.argv, repr(sys.path[0]))", "z")
    assert printed == "['-c', 'z'] ''\n"


def test_the_environment_is_exactly_what_was_given(node: Node):
    _, printed = node.python(
        "import os\nfor k in sorted(os.environ):\n    print(f'{k}={os.environ[k]}')", env={"COLOUR": "blue", "RANK": "7"}
    )
    seen = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
    assert seen["COLOUR"] == "blue"
    assert (seen["RANK"], seen["WORLD_SIZE"], seen["LOCAL_RANK"], seen["OMP_NUM_THREADS"]) == ("0", "1", "0", "1")
    assert seen["RESTOW_AGENT"] == str(node.config.node_dir / "agent.sock")
    assert seen["GLOO_SOCKET_IFNAME"] == "lo"
    assert seen["PATH"] == os.environ["PATH"]
    assert not [name for name in seen if name.startswith("RAY_")]


def test_a_flag_or_an_early_setting_gets_a_new_interpreter(node: Node):
    code = "import sys, os; print('torch' in sys.modules, sys.flags.optimize, os.environ.get('PYTHONHASHSEED'))"
    assert node.run_to_end("python", "-O", "-c", code)[1] == "False 1 None\n"
    assert node.run_to_end("python", "-c", code, env={"PYTHONHASHSEED": "3"})[1] == "False 0 3\n"


def test_other_programs_are_executed(node: Node):
    ended, printed = node.run_to_end("sh", "-c", "echo $RANK of $WORLD_SIZE; exit 3")
    assert (printed, ended.code, ended.reason) == ("0 of 1\n", 3, "0 of 1")


def test_an_exception_is_the_reason_and_its_traceback_shows_the_script_only(node: Node):
    ended, printed = node.python("def f():\n    raise ValueError('no such colour: blue')\nf()")
    assert (ended.code, ended.reason) == (1, "ValueError: no such colour: blue (script.py:2)")
    assert "bootstrap" not in printed
    assert printed.startswith(f'Traceback (most recent call last):\n  File "{node.folder}/script.py", line 3, in <module>')


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sys; sys.exit(5)", (5, "")),
        ("import sys; sys.exit('out of paper')", (1, "out of paper")),
        ("import os; os._exit(9)", (9, "")),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", (-9, "killed by SIGKILL")),
        ("x = (", (1, "SyntaxError: '(' was never closed (<string>, line 1)")),
        ("raise KeyboardInterrupt", (-2, "killed by SIGINT")),
        ("import atexit; atexit.register(print, 'bye'); print('hi')", (0, "")),
    ],
)
def test_every_ending_has_its_code_and_its_words(node: Node, code: str, expected: tuple[int, str]):
    ended, printed = node.run_to_end("python", "-c", code)
    assert (ended.code, ended.reason) == expected
    if "bye" in code:
        assert printed == "hi\nbye\n"


def test_what_cannot_be_started_says_why_in_one_line(node: Node):
    for command, cwd, reason in [
        (["python", "missing.py"], "", f"script missing.py in {node.folder}: No such file or directory"),
        (["no-such-program"], "", f"no-such-program: no such program in {node.folder} or on PATH"),
        (["python", "-c", "1"], "/nowhere", "working directory /nowhere: No such file or directory"),
        ([node.script("text", "plain.txt")], "", f"{node.folder}/plain.txt: Permission denied"),
    ]:
        job = node.launch(*command, cwd=cwd)
        assert node.await_event(LaunchFailed, job=job).reason == reason
    assert list(node.config.shm_dir.glob("*.page")) == []


def test_a_rank_on_a_device_that_is_not_there_is_refused(node: Node):
    job = node.launch("true", placement="a:99")
    assert "node a has no device 99" in node.await_event(LaunchFailed, job=job).reason


def test_random_numbers_are_those_of_a_new_process(node: Node):
    """Python, NumPy and torch all begin with entropy; forks of one process must not share it."""
    code = "import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.initial_seed(), torch.rand(1).item())"
    first, second = (node.run_to_end("python", "-c", code)[1].split() for _ in range(2))
    assert not set(first) & set(second)


def test_every_line_is_kept_in_order_when_the_rank_is_killed(node: Node):
    ended, printed = node.python(
        "import os, sys, signal\nfor i in range(200):\n    print('out', i)\n    print('err', i, file=sys.stderr)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert ended.code == -9
    assert printed.splitlines() == [f"{stream} {i}" for i in range(200) for stream in ("out", "err")]


def test_loader_workers_by_fork_and_by_spawn_find_the_classes_of_the_script(node: Node):
    script = node.script(
        "import torch, sys\nfrom torch.utils.data import DataLoader, Dataset\n"
        "class Squares(Dataset):\n    def __len__(self): return 4\n    def __getitem__(self, i): return torch.tensor(i * i)\n"
        "if __name__ == '__main__':\n"
        "    for method in ('fork', 'spawn'):\n"
        "        loader = DataLoader(Squares(), num_workers=1, multiprocessing_context=method)\n"
        "        print(method, [int(x) for x in loader])\n"
    )
    ended, printed = node.run_to_end("python", script)
    assert (ended.code, printed) == (0, "fork [0, 1, 4, 9]\nspawn [0, 1, 4, 9]\n")


def test_stop_ends_a_rank_and_its_children_even_when_they_ignore_sigterm(node: Node):
    job = node.launch(
        "python", node.script(
            "import os, signal, subprocess, sys, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "child = subprocess.Popen(['sleep', '1000'])\n"
            "own = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
            "print(child.pid, own.pid)\nprint('up')\ntime.sleep(1000)"
        )
    )  # fmt: skip
    pid = node.await_event(RankStarted, job=job).pid
    node.await_line(job, "up")
    children = [int(word) for word in node.log(job).split()[:2]]
    node.tell(Stop(job=job, generation=1, grace_s=0.2))
    ended = node.await_event(RankExited, job=job)
    assert (ended.code, ended.reason) == (-signal.SIGKILL, "killed by SIGKILL")
    for process in (pid, *children):
        node.await_true(lambda process=process: is_gone(process), f"{process} is left")


def test_stop_leaves_time_to_end_in_order(node: Node):
    job = node.launch(
        "python", "-c", "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "print('up')\ntime.sleep(1000)",
    )
    node.await_line(job, "up")
    node.tell(Stop(job=job, generation=1, grace_s=30))
    assert node.await_event(RankExited, job=job).code == 0


def test_what_a_rank_leaves_behind_is_ended_with_it(node: Node):
    """In its group, in its session, and in a session of its own."""
    ended, printed = node.python(
        "import subprocess\nfor own in (False, True):\n"
        "    child = subprocess.Popen(['sleep', '1000'], process_group=0 if not own else None, start_new_session=own)\n"
        "    print(child.pid)\n"
        "print(subprocess.Popen(['sleep', '1000']).pid)"
    )
    assert ended.code == 0
    for pid in map(int, printed.split()):
        node.await_true(lambda pid=pid: is_gone(pid), f"{pid} is left")


def test_what_forks_and_forks_is_ended(node: Node, tmp_path: Path):
    """A loop in a session of its own that starts processes for ever and does not care that its parent is gone."""
    marker, forked = f"7{os.getpid()}", tmp_path / "forked"
    ended, _ = node.python(
        "import os, subprocess, time\n"
        f"loop = 'while :; do sleep {marker} & sleep 0.01; : > {forked}; done'\n"
        "subprocess.Popen(['sh', '-c', loop], start_new_session=True)\n"
        f"while not os.path.exists({str(forked)!r}): time.sleep(0.01)"
    )
    assert ended.code == 0

    def left() -> list[str]:
        return [p for p in os.listdir("/proc") if p.isdigit() and not is_gone(int(p)) and marker in arguments_of(p)]

    node.await_true(lambda: not left(), "the loop goes on")


def arguments_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_command_told_twice_is_done_once(node: Node):
    job = node.launch("python", "-c", "print('once')")
    node.await_event(RankExited, job=job)
    node.launch("python", "-c", "print('once')", job=job)
    assert node.log(job) == "once\n"


def test_a_rank_is_pinned_and_bounded_as_its_device_says():
    core = max(os.sched_getaffinity(0))
    group = Path("/sys/fs/cgroup/cpu/restow-agent-test")
    try:
        group.mkdir()
        (group / "cgroup.procs").read_text()
    except OSError:
        pytest.skip("control groups cannot be written here")
    try:
        entry = f'{{"index": 4, "kind": "cpu", "share": 0.5, "core": {core}, "cgroup": "{group}"}}'
        with Node(warm=False, devices=f'{{"devices": [{entry}]}}') as node:
            assert node.ask("status")["devices"] == [{"index": 4, "kind": "cpu", "memory_bytes": 0, "share": 0.5}]
            code = "import os; print(os.sched_getaffinity(0), 'restow-agent-test' in open('/proc/self/cgroup').read())"
            _, printed = node.run_to_end("python", "-c", code, placement="a:4")
            assert printed == f"{{{core}}} True\n"
    finally:
        group.rmdir()


def test_a_log_of_many_megabytes_is_read_in_pieces(node: Node):
    ended, _ = node.run_to_end(sys.executable, "-c", "for i in range(40):\n print('é' * 50_000)")
    assert ended.code == 0
    piece = node.ask("logs", job=ended.job, rank=0, generation=1, offset=0, max_bytes=10**12)
    assert len(piece["text"].encode()) <= 1 << 20
    assert node.log(ended.job, max_bytes=4097) == ("é" * 50_000 + "\n") * 40
    assert node.ask("logs", job=ended.job)["logs"] == [{"rank": 0, "generation": 1, "bytes": 40 * 100_001}]
