"""Options that benchmarks have in common."""

from __future__ import annotations

import argparse
from pathlib import Path


def new_file(text: str) -> Path:
    """The type of `--json`: said at once, not after minutes, where it cannot be written."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written: it is a folder or lies in none that exists")
    return path
