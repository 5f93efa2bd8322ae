"""Bad scripts and bad wishes against real daemons, asked through the real command line: one clear line, the right exit code,
and afterwards no process and no shared memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from restow.errors import Refused
from tests.live.cluster import PATIENCE_S, ROOT, Cluster

LOOP = """
import restow, torch, sys, time, os
job = restow.init()
model = torch.nn.Linear(4, 1)
model, optimizer = job.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
for _ in job.steps(range(1_000_000)):
    optimizer.zero_grad()
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    if job.step == 20:
        {at_20}
"""
PRINTED_LINES = 200_000  # of a thousand bytes


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster({"a": 4}) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: Cluster) -> Iterator[None]:
    """Ends what the test began, and looks that nothing of it remains: no rank, no store, no child of one, no shared memory."""
    yield
    for job in cluster.client.ps(every=False):
        with contextlib.suppress(Refused):  # it may have ended since
            cluster.client.cancel(job["id"])
        cluster.client.wait(job["id"], limit_s=PATIENCE_S)
    cluster.await_true(lambda: not list(cluster.shm.glob("*/*-*.*")), "shared memory is left")
    cluster.await_true(lambda: not of_jobs(cluster), "processes of jobs are left")


def of_jobs(cluster: Cluster) -> list[psutil.Process]:
    """Everything that a job of this cluster started, and what that started."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if environment.get("RESTOW_JOB") and environment.get("RESTOW_AGENT", "").startswith(str(cluster.folder)):
                found += [process] if process.status() != psutil.STATUS_ZOMBIE else []
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "restow", *words]


def environment(cluster: Cluster) -> dict[str, str]:
    return {**os.environ, "RESTOW_HOME": str(cluster.folder / "home"), "PYTHONPATH": str(ROOT / "src")}


def restow(cluster: Cluster, *words: str, cwd: Path | None = None) -> tuple[int, str, str]:
    """Exit code, what it printed, and its errors."""
    said = subprocess.run(command(*words), env=environment(cluster), cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_S)
    return said.returncode, said.stdout, said.stderr


def submit(cluster: Cluster, *options: str, script: str, where: str = "a:0") -> tuple[int, str, str]:
    workers = str(len(where.split()))
    return restow(cluster, "submit", "-n", workers, "--env", f"PLACEMENT={where}", *options, "--", "python", "-c", script)


def started(cluster: Cluster, *options: str, script: str, where: str = "a:0", says: str = "ready") -> str:
    """The id of a job that runs and has printed `says`."""
    code, out, err = submit(cluster, "--json", *options, script=script, where=where)
    assert code == 0, err
    job = str(json.loads(out)["id"])
    for piece in cluster.client.logs(job, follow=True):
        if says in piece["text"]:
            break
    return job


def test_the_tail_of_a_log_is_that_of_each_rank(cluster):
    code, out, err = submit(cluster, "--json", script="print(*range(5000), sep='\\n')", where="a:0 a:1")
    assert code == 0, err
    job = json.loads(out)["id"]
    assert restow(cluster, "wait", job)[0] == 0
    assert restow(cluster, "logs", job, "--tail", "2")[1].splitlines() == ["[0] 4998", "[0] 4999", "[1] 4998", "[1] 4999"]
    assert restow(cluster, "logs", job, "--tail", "1", "--rank", "1", "-f")[1] == "4999\n"
    assert restow(cluster, "logs", job, "--tail", "0")[1] == ""
    assert len(restow(cluster, "logs", job, "--tail", "9999")[1].splitlines()) == 10000


# ---------------------------------------------------------------- bad scripts


@pytest.mark.parametrize(
    ("script", "ending"),
    [
        ("raise ValueError('the rate is a fish')", "rank 0 on a exited with code 1: ValueError: the rate is a fish"),
        ("import os; os._exit(3)", "rank 0 on a exited with code 3"),
        (LOOP.format(at_20="os._exit(9)"), "rank 0 on a exited with code 9"),
        ("import sys; sys.exit('no data here')", "rank 0 on a exited with code 1: no data here"),
        ("import os; os.kill(os.getpid(), 11)", "rank 0 on a was ended by signal 11"),
        ("import restow; restow.init().prepare(7)", "prepare was given a int, which has no state_dict and load_state_dict"),
    ],
)
def test_a_script_that_fails_is_one_line_with_its_last_words(cluster, script, ending):
    code, out, err = submit(cluster, "-w", script=script)
    assert (code, err) == (1, "")
    assert ending in out.splitlines()[-1]


def test_a_program_that_does_not_exist_is_named(cluster, tmp_path):
    code, _, err = restow(cluster, "submit", "-w", "--env", "PLACEMENT=a:0", "--", "python", "nowhere.py", cwd=tmp_path)
    assert code == 2
    assert f"command runs the script 'nowhere.py'; there is no such file in {tmp_path}" in err
    code, _, err = restow(cluster, "submit", "-w", "--env", "PLACEMENT=a:0", "--", "./nowhere.sh", cwd=tmp_path)
    assert code == 2
    assert f"command runs './nowhere.sh'; there is no such file in {tmp_path}" in err
    code, out, _ = restow(cluster, "submit", "-w", "--env", "PLACEMENT=a:0", "--", "nowhere", cwd=tmp_path)
    assert code == 1
    assert "rank 0 on a could not be started: " in out
    assert "nowhere" in out


def test_an_error_in_rank_1_alone_is_the_reason_and_ends_the_gang(cluster):
    script = LOOP.format(at_20="assert job.rank != 1, 'rank 1 fell over'")
    code, out, _ = submit(cluster, "-w", script=script, where="a:0 a:1 a:2")
    assert code == 1
    assert out.splitlines()[-1].endswith("rank 1 on a exited with code 1: AssertionError: rank 1 fell over (<string>:11)")


def test_a_rank_that_ends_while_others_train_is_the_reason(cluster):
    script = LOOP.format(at_20="job.rank == 1 and sys.exit()")
    code, out, _ = submit(cluster, "-w", script=script, where="a:0 a:1 a:2")
    assert code == 1
    assert "rank 1 ended by itself while others trained; then rank " in out.splitlines()[-1]


def test_a_child_that_a_script_forks_and_leaves_ends_with_its_job(cluster):
    left = "import os, time\nif os.fork() == 0:\n    time.sleep(1000)\nprint('left a child')"
    code, out, _ = submit(cluster, "-f", script=left)
    assert code == 0
    assert out.splitlines()[-2] == "left a child"
    assert out.splitlines()[-1].endswith("done: ended by itself")


def test_two_hundred_megabytes_of_output_all_arrive_and_cost_the_controller_no_memory(cluster):
    assert cluster._controller
    controller = psutil.Process(cluster._controller.pid)
    before = controller.memory_info().rss
    script = f"import sys\nfor _ in range({PRINTED_LINES}):\n    sys.stdout.write('x' * 999 + '\\n')"
    submitted = command("submit", "-f", "--env", "PLACEMENT=a:0", "--", "python", "-c", script)
    following = subprocess.Popen(submitted, env=environment(cluster), stdout=subprocess.PIPE)
    assert following.stdout
    lines = sum(1 for _ in following.stdout)
    assert (following.wait(PATIENCE_S), lines) == (0, PRINTED_LINES + 2)
    assert controller.memory_info().rss - before < 60e6


def test_a_script_that_is_deaf_to_sigterm_is_killed_after_its_grace(cluster, tmp_path):
    spec = tmp_path / "deaf.yaml"
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(1000)"
    spec.write_text(json.dumps({"command": ["python", "-c", deaf], "stop_grace_s": 0.5, "env": {"PLACEMENT": "a:0"}}))
    code, out, err = restow(cluster, "submit", "--json", str(spec))
    assert code == 0, err
    job = json.loads(out)["id"]
    next(cluster.client.logs(job, follow=True))
    asked = time.monotonic()
    assert restow(cluster, "cancel", job)[0] == 0
    assert restow(cluster, "wait", job)[:2] == (1, f"{job}: cancelled\n")
    assert time.monotonic() - asked < 10  # not the default grace and more


def test_a_script_that_never_reaches_prepare_is_not_moved_and_show_says_so(cluster):
    job = started(cluster, script="import restow, time; restow.init(); print('ready', flush=True); time.sleep(1000)")
    shown = restow(cluster, "show", job)[1]
    assert "not yet: it has not finished its first steps under the SDK" in shown


def test_a_script_that_hangs_in_a_step_goes_on_being_shown_and_can_be_cancelled(cluster):
    job = started(cluster, script=LOOP.format(at_20="print('ready', flush=True); time.sleep(1000)"))
    cluster.await_true(lambda: cluster.client.show(job)["step"] == 20, "the last step never was reported")
    code, _, err = restow(cluster, "wait", job, "--limit-s", "0.1")
    assert (code, err) == (5, f"restow: job {job} has not ended within 0.1 s\n")
    assert restow(cluster, "cancel", job)[0] == 0


def test_a_job_for_which_shared_memory_has_no_room_says_so(cluster):
    if not cluster.is_bounded:
        pytest.skip("a small file system cannot be mounted here")
    filler = cluster.shm / "a/filler"
    room = os.statvfs(cluster.shm / "a")
    filler.write_bytes(bytes(room.f_bavail * room.f_frsize))
    try:
        code, out, _ = submit(cluster, "-w", script="print('never')")
    finally:
        filler.unlink()
    assert code == 1
    assert "rank 0 on a could not be started: shared memory page" in out.splitlines()[-1]
    assert "No space left on device; free some of" in out.splitlines()[-1]


# ---------------------------------------------------------------- a script without the SDK


@pytest.mark.slow  # half a minute until restow knows that the SDK is not used
def test_an_ordinary_script_is_moved_by_its_own_checkpoint_and_show_says_what_that_costs(cluster, tmp_path):
    checkpoint, go_on = tmp_path / "plain.pt", ["--steps", "1000000", "--checkpoint", str(tmp_path / "plain.pt")]
    ordinary = ["python", str(ROOT / "examples/plain_ddp.py"), *go_on, "--log-every", "1000"]
    words = ["submit", "-n", "2", "--name", "plain", "--env", "PLACEMENT=a:0 a:1", "--", *ordinary]
    assert restow(cluster, *words)[0] == 0
    (job,) = [job["id"] for job in cluster.client.ps(every=False)]
    cluster.await_true(lambda: cluster.client.show(job)["why_not"], "restow never found that the SDK is not used")
    shown = restow(cluster, "show", job)[1]
    assert "not live: its script does not use restow's SDK. restow migrate stops it (SIGTERM, 10 s for its own checkpoint)" in shown
    assert "a pause of about 7 s and the steps since that checkpoint" in shown
    assert restow(cluster, "migrate", job, "--to", "a:2 a:3")[0] == 0
    cluster.await_true(lambda: "goes on after step" in restow(cluster, "logs", job)[1], "it never went on elsewhere")
    view = cluster.client.show(job)
    assert (view["placement"], view["generation"], view["state"]) == (["a:2", "a:3"], 2, "running")
    assert checkpoint.exists()


# ---------------------------------------------------------------- wishes that cannot be granted


def test_moves_that_cannot_be_are_refused_in_one_line(cluster):
    one = started(cluster, "--name", "one", script=LOOP.format(at_20="print('ready', flush=True); time.sleep(1000)"))
    two = started(cluster, "--name", "two", script="import time; print('ready', flush=True); time.sleep(1000)", where="a:1")
    _, out, _ = submit(cluster, "--name", "over", "-w", "--json", script="pass", where="a:2")
    over = json.loads(out)["id"]
    for words, code, line in [
        ((one, "--to", "a:1"), 4, f"no room at a:1, held by {two}: job {one} cannot join, {two} has not made 20 steps yet"),
        ((one, "--to", "b:0"), 3, "device b:0 does not exist or its node is lost; see restow nodes"),
        ((one, "--to", "a:9"), 3, "device a:9 does not exist or its node is lost; see restow nodes"),
        ((one, "--to", "a:0"), 4, f"job {one} is at a:0 already"),
        ((one, "--to", "a:2 a:3"), 2, f"--to names 2 slots; job {one} has 1 worker, write one slot per rank"),
        ((one, "--to", "a:2@0.5"), 2, "--to names a part of a device, a:2@0.5; restow divides devices by itself, write a:2"),
        ((one, "--to", "nonsense"), 2, "slot is 'nonsense'; write node:device"),
        ((one, "--pack"), 4, f"job {one} is on one machine already (a); --to moves it elsewhere"),
        ((one,), 2, 'give either --to "m1:0 m1:1" or --pack'),
        (("nobody", "--to", "a:2"), 3, "job 'nobody' does not exist; restow ps shows all"),
        ((over, "--to", "a:3"), 4, f"job {over} is done; only a running job can be moved"),
    ]:
        got, out, err = restow(cluster, "migrate", *words)
        assert (got, out, err.count("\n")) == (code, "", 1), (words, err)
        assert err.startswith(f"restow: {line}"), words


# ---------------------------------------------------------------- Ctrl-C and kill -9


@pytest.mark.parametrize("words", [("logs", "-f"), ("wait",), ("events", "-f", "--job")])
def test_ctrl_c_ends_the_following_and_never_the_job(cluster, words):
    job = started(cluster, script="import time; print('ready', flush=True); time.sleep(1000)")
    code, err = interrupted(cluster, [*words, job], first_line=words != ("wait",))
    assert (code, err.strip()) == (130, "restow: interrupted")
    assert cluster.client.show(job)["state"] == "running"


def test_ctrl_c_while_a_submitted_job_is_followed_says_that_it_goes_on(cluster):
    script = "import time; print('ready', flush=True); time.sleep(1000)"
    words = ["submit", "-f", "--name", "long", "--env", "PLACEMENT=a:0", "--", "python", "-u", "-c", script]
    code, err = interrupted(cluster, words, first_line=True)
    (job,) = [job["id"] for job in cluster.client.ps(every=False)]
    assert code == 130
    assert f"{job} goes on; restow cancel {job} ends it" in err
    assert err.splitlines()[-1] == "restow: interrupted"


def test_a_killed_follower_harms_nobody(cluster):
    job = started(cluster, script="import time; print('ready', flush=True); time.sleep(1000)")
    following = subprocess.Popen(command("logs", "-f", job), env=environment(cluster), stdout=subprocess.PIPE, text=True)
    assert following.stdout
    following.stdout.readline()
    following.kill()
    following.communicate()
    assert cluster.client.show(job)["state"] == "running"


def interrupted(cluster: Cluster, words: list[str], *, first_line: bool) -> tuple[int, str]:
    """Exit code and errors of a command that gets Ctrl-C once it has printed, or talks to the controller."""
    unbuffered = {**environment(cluster), "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(command(*words), env=unbuffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout
    try:
        if first_line:
            child.stdout.readline()
        else:
            cluster.await_true(lambda: psutil.Process(child.pid).net_connections("unix"), "it never asked the controller")
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=PATIENCE_S)
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()
    return child.returncode, err
