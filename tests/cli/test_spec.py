"""Specs: what is accepted, and that each mistake is one line with the key, the value, the line and the way out."""

from __future__ import annotations

import pytest

from restow import spec
from restow.errors import SpecError
from restow.job import JobSpec

WHOLE = """\
name: digits
command: python train.py --name 'two words'
workers: 2
env: {SEED: 7}
memory: 8GB
migrate: false
fill: shadow
max_pause_s: 5
stop_grace_s: 2.5
"""


def load(tmp_path, text):
    (tmp_path / "job.yaml").write_text(text)
    return spec.load(tmp_path / "job.yaml", cwd=tmp_path)


def test_every_key_is_read(tmp_path):
    assert load(tmp_path, WHOLE) == JobSpec(
        name="digits", command=("python", "train.py", "--name", "two words"), workers=2, cwd=str(tmp_path), env=(("SEED", "7"),),
        memory_bytes=8_000_000_000, migrate=False, fill="shadow", max_pause_s=5.0, stop_grace_s=2.5,
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
        ("command: a\nzebra: 2\n", "line 2: unknown key 'zebra'; the keys are name, command"),
        ("command: a\nworkers: two\n", "line 2: workers is 'two' (text); write a whole number"),
        ("command: a\nworkers: true\n", "line 2: workers is True (true/false)"),
        ("command: a\n\nworkers: 0\n", "line 3: workers is 0; a job needs at least 1"),
        ("command: a\nmemory: lots\n", "line 2: memory is 'lots'; write a size such as 8GB"),
        ("command: a\nenv: [A]\n", "line 2: env is ['A'] (a list); write NAME: value pairs"),
        ("command: a\nenv: {A: [1]}\n", "line 2: env: A is [1] (a list)"),
        ("command: a\nmigrate: perhaps\n", "line 2: migrate is 'perhaps' (text); write true or false"),
        ("command: a\nfill: magic\n", "line 2: fill is 'magic'; choose one of auto"),
        ("command: a\ncwd: nowhere\n", "there is no such folder"),
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
