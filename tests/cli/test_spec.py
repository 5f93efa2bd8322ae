"""Specs: what is accepted, and that each mistake is one line with the key, the value, the line and the way out."""

from __future__ import annotations

import pytest

from restow import spec
from restow.errors import SpecError
from restow.job import CheckpointSpec, JobSpec

WHOLE = """\
name: digits
command: python train.py --name 'two words'
workers: 2
devices: 1..2
checkpoint: {folder: ck, every: 10min, keep: 3}
env: {SEED: 7}
memory: 8GB
steps: 5000
deadline: 2h
tenant: vision
migrate: false
fill: shadow
max_pause_s: 5
stop_grace_s: 2.5
"""


def load(tmp_path, text):
    (tmp_path / "train.py").touch()
    (tmp_path / "job.yaml").write_text(text)
    return spec.load(tmp_path / "job.yaml", cwd=tmp_path)


def test_every_key_is_read(tmp_path):
    assert load(tmp_path, WHOLE) == JobSpec(
        name="digits", command=("python", "train.py", "--name", "two words"), workers=2, devices=(1, 2), cwd=str(tmp_path),
        env=(("SEED", "7"),), memory_bytes=8_000_000_000, steps=5000, deadline_s=7200.0, tenant="vision",
        migrate=False, fill="shadow", max_pause_s=5.0,
        stop_grace_s=2.5, checkpoint=CheckpointSpec(folder=str(tmp_path / "ck"), every_s=600.0, keep=3),
    )  # fmt: skip


def test_a_command_may_be_a_list_and_cwd_is_relative_to_the_file(tmp_path):
    (tmp_path / "src").mkdir()
    loaded = load(tmp_path, "command: [python, -c, 'print(1)']\ncwd: src\n")
    assert loaded.command == ("python", "-c", "print(1)")
    assert loaded.cwd == str(tmp_path / "src")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("command: a\nworker: 2\n", "line 2: unknown key 'worker'; did you mean 'workers'?"),
        ("command: a\nworkers: 2\nworkers: 3\n", "line 3: workers is given twice; see line 2"),
        ("command: ['']\n", "line 1: command is empty; give the program to run"),
        ('command: ""\n', "line 1: command is empty; give the program to run"),
        ("command: []\n", "line 1: command is empty; give the program to run"),
        ("command: a\nzebra: 2\n", "line 2: unknown key 'zebra'; the keys are name, command"),
        ("command: a\nworkers: two\n", "line 2: workers is 'two'; write a number such as 2 or a range such as 1..8"),
        ("command: a\nworkers: true\n", "line 2: workers is True; write a number"),
        ("command: a\n\nworkers: 0\n", "line 3: workers is 0; a job needs at least 1"),
        ("command: a\nworkers: 2\ndevices: 1..3\n", "line 3: devices is 1..3; write a range between 1 and the number of workers"),
        ("command: a\ndevices: many\n", "line 2: devices is 'many'; write a number such as 2 or a range such as 1..8"),
        ("command: a\ncheckpoint: often\n", "line 2: checkpoint: every is 'often'; write a time such as 10min"),
        ("command: a\ncheckpoint: {evry: 5}\n", "line 2: checkpoint: unknown key 'evry'; did you mean 'every'?"),
        ("command: a\nsteps: -1\n", "line 2: steps is -1; it cannot be negative"),
        ("command: a\ndeadline: -5\n", "line 2: deadline is -5; write a time above 0, for example 2h"),
        ("command: a\ndeadline: 500 steps\n", "line 2: deadline is '500 steps'; write a time above 0, for example 2h"),
        ("command: a\ndeadline: soon\n", "line 2: deadline is 'soon'; write a time such as 10min"),
        ("command: a\ntenant: 3\n", "line 2: tenant is 3 (a whole number); write text"),
        ("command: a\nmemory: lots\n", "line 2: memory is 'lots'; write a size such as 8GB"),
        ("command: a\nenv: [A]\n", "line 2: env is ['A'] (a list); write NAME: value pairs"),
        ("command: a\nenv: {A: [1]}\n", "line 2: env: A is [1] (a list)"),
        ("command: a\nmigrate: perhaps\n", "line 2: migrate is 'perhaps' (text); write true or false"),
        ("command: a\nfill: magic\n", "line 2: fill is 'magic'; choose one of auto"),
        ("command: a\ncwd: nowhere\n", "there is no such folder"),
        ("\ncommand: python gone.py --lr 1\n", "line 2: command runs the script 'gone.py'; there is no such file in "),
        ("command: ./gone --lr 1\n", "line 1: command runs './gone'; there is no such file in "),
        ("command: ./job.yaml\n", "line 1: command runs './job.yaml', which may not be executed; chmod +x"),
        ("command: {a: 1}\n", "command is {'a': 1} (a map); write text or a list of words"),
        ('command: "a \'b"\n', "write a list of words instead"),
        ("workers: 2\n", "command is missing"),
        ("- a\n", "holds a list; write keys"),
        ("command: [a\n", "line 2: not YAML"),
        ("", "holds nothing; write keys"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, text, line):
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"gone\.yaml: No such file"):
        spec.load(tmp_path / "gone.yaml", cwd=tmp_path)


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GB", 8 * 10**9), ("512 MiB", 512 * 2**20), ("1.5g", 1_500_000_000), (12, 12), ("100", 100), ("2KB", 2000)],
)
def test_sizes(text, count):
    assert spec.parse_bytes("memory", text) == count


@pytest.mark.parametrize(
    ("command", "script"),
    [
        ("python train.py --lr 1", "train.py"),
        ("/usr/bin/python3.11 -u -X dev -Werror -W ignore train.py -m x", "train.py"),
        ("python -m my.training", ""),
        ("python -um my.training", ""),
        ("python -c pass", ""),
        ("python -", ""),
        ("python", ""),
        ("bash train.sh", ""),
    ],
)
def test_the_script_of_a_command_is_found(command, script):
    assert spec.script_of(command.split()) == script


@pytest.mark.parametrize("written", ["true", "interleave", "{mode: interleave, max_slowdown: 0.1}", ""])
def test_options_beside_a_spec_win_key_by_key_under_share(tmp_path, written):
    (tmp_path / "job.yaml").write_text(f"command: 'true'\nshare: {written}\n")
    got = spec.load(tmp_path / "job.yaml", cwd=tmp_path, instead={"share": {"protect": True}}).share
    assert (got.allow, got.protect) == (True, True)
    assert got.mode == ("interleave" if "interleave" in written else "auto")
    assert got.max_slowdown == (0.1 if "0.1" in written else 0.0)


def test_a_wrong_share_stays_wrong_beside_an_option(tmp_path):
    (tmp_path / "job.yaml").write_text("command: 'true'\nshare: [1]\n")
    with pytest.raises(SpecError, match=r"share is \[1\] \(a list\); write true, false, a mode"):
        spec.load(tmp_path / "job.yaml", cwd=tmp_path, instead={"share": {"protect": True}})
