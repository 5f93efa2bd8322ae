"""The journal: what was appended is there after any end, in order, and a foreign file is refused with one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from restow.controller.journal import Journal
from restow.errors import SetupError
from restow.job import JobSpec
from restow.messages import CancelAsked, JobSubmitted


def test_events_come_back_in_order_with_their_numbers(tmp_path):
    events = [JobSubmitted(time_s=1.0, job="a", spec=JobSpec(command=("true",))), CancelAsked(time_s=2.0, job="a")]
    journal = Journal(tmp_path / "journal.db")
    assert journal.append(events) == [1, 2]
    journal.close()
    again = Journal(tmp_path / "journal.db")
    assert list(again.events()) == list(enumerate(events, 1))
    assert [number for number, _ in again.events(after=1)] == [2]
    assert again.append(events[1:]) == [3]
    again.close()


def test_what_was_appended_survives_kill_9(tmp_path):
    script = (
        "import os, sys; from pathlib import Path\n"
        "from restow.controller.journal import Journal; from restow.messages import CancelAsked\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "journal.append([CancelAsked(time_s=1.0, job='a')]); os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "journal.db"
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -signal.SIGKILL
    journal = Journal(path)
    assert [event.job for _, event in journal.events()] == ["a"]
    journal.close()


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    path = tmp_path / "journal.db"
    path.write_text("not a database, but long enough to be taken for a broken one" * 20)
    with pytest.raises(SetupError, match="move it away"):
        Journal(path)


def test_nobody_else_may_read_it(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    journal.close()
    assert os.stat(tmp_path / "journal.db").st_mode & 0o077 == 0
