"""What ranks printed: listing and reading by bounded pieces, so that a log of many gigabytes costs no memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from restow.errors import NotFound

PIECE_BYTES_MAX = 1 << 20
_NAME = re.compile(r"(?P<rank>\d+)\.g(?P<generation>\d+)(?P<rehearsal>\.rehearsal)?\.log")


def list_logs(folder: Path, rank: int | None = None, *, rehearsal: bool = False) -> list[dict[str, Any]]:
    """The logs of one job on this node, by rank and generation: {"rank", "generation", "bytes"}."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and rank in (None, int(match["rank"])) and bool(match["rehearsal"]) == rehearsal:
            entry = {"rank": int(match["rank"]), "generation": int(match["generation"]), "bytes": path.stat().st_size}
            found.append(entry)
    return sorted(found, key=lambda entry: (entry["rank"], entry["generation"]))


def read_log(path: Path, offset: int, max_bytes: int, *, is_growing: bool) -> dict[str, Any]:
    """{"text", "offset"}: whole lines from byte `offset`, at most `max_bytes`, and where to go on.

    The text is empty when there is nothing new. A last line without an end is given when its process is gone, or when it
    alone is longer than `max_bytes`. Raises NotFound.
    """
    size = min(max(max_bytes, 16), PIECE_BYTES_MAX)
    offset = max(offset, 0)
    try:
        with path.open("rb") as file:
            file.seek(offset)
            piece = file.read(size)
    except FileNotFoundError:
        raise NotFound(f"there is no log {path.name} of job {path.parent.name} on this node") from None
    if len(piece) == size or is_growing:
        end = piece.rfind(b"\n") + 1
        if end:
            piece = piece[:end]
        elif len(piece) == size:
            piece = _whole_characters(piece)
        else:
            piece = b""
    return {"text": piece.decode(errors="replace"), "offset": offset + len(piece)}


def tail_of(path: Path, lines: int) -> dict[str, Any]:
    """{"offset", "lines"}: where the last `lines` lines begin, and how many there are from there on. Reads from the end. An
    unfinished last line counts. Raises NotFound."""
    try:
        with path.open("rb") as file:
            at = end = file.seek(0, 2)
            found = 0  # line ends behind `at`, but for one that ends the file
            while at:
                size = min(at, PIECE_BYTES_MAX)
                at -= size
                file.seek(at)
                piece = file.read(size)
                until = len(piece) - (at + size == end and piece.endswith(b"\n"))
                while (until := piece.rfind(b"\n", 0, until)) >= 0:
                    found += 1
                    if found == lines:
                        return {"offset": at + until + 1, "lines": lines}
    except FileNotFoundError:
        raise NotFound(f"there is no log {path.name} of job {path.parent.name} on this node") from None
    return {"offset": 0, "lines": found + (end > 0)}


def _whole_characters(piece: bytes) -> bytes:
    """`piece` without the first bytes of a character whose rest is still to be read."""
    for cut in range(1, 4):
        first = piece[-cut]
        if first & 0xC0 == 0x80:
            continue
        length = 4 if first >= 0xF0 else 3 if first >= 0xE0 else 2 if first >= 0xC0 else 1
        return piece[:-cut] if length > cut else piece
    return piece
