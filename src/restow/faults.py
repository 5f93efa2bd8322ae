"""Where an error was raised and what it says, in one line, for errors in code that is not ours: a policy of the user's own."""

from __future__ import annotations

import traceback
from pathlib import Path

OURS = str(Path(__file__).parent)


def place_of(error: BaseException, otherwise: object = "") -> str:
    """File and line: the last one outside restow, if there is any."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith((OURS, "<frozen"))]
    found = (theirs or frames)[-1:]
    return f"{found[0].filename}, line {found[0].lineno}" if found else str(otherwise)


def words_of(error: BaseException) -> str:
    """Its kind and the first line of what it says."""
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
