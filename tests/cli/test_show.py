"""How tables are written: cut at the edge of a terminal, whole everywhere else."""

from __future__ import annotations

import io
import os
import sys

import pytest

from restow.cli import show

ROWS = [["digits-1", "because of this and that " * 5]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "length"), [(io.StringIO, len("digits-1  ") + len(ROWS[0][1].rstrip())), (Terminal, 40)])
def test_lines_end_at_the_edge_of_a_terminal_only(monkeypatch, stream, length):
    printed = stream()
    monkeypatch.setattr(sys, "stdout", printed)
    monkeypatch.setattr(show.shutil, "get_terminal_size", lambda: os.terminal_size((40, 20)))
    show.table(["JOB", "WHY"], ROWS)
    assert [len(line) for line in printed.getvalue().splitlines()][1] == length
