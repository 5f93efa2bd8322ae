"""Becomes an ordinary user and runs a program: `python ordinary_user.py PROGRAM ARG...` (as root; else it changes nothing).

The interpreter and this package often lie below a home that only root may enter. So that nothing about them has to
change, they are made visible in a mount namespace of this process alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from pathlib import Path

import restow

NOBODY = 65534
PROJECT = Path(__file__).resolve().parents[2]
CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [word.encode() if word else None for word in (source, target, kind)]
    if libc.mount(*words, ctypes.c_ulong(flags), options.encode() if options else None) != 0:
        raise OSError(ctypes.get_errno(), f"mount {source} on {target}: {os.strerror(ctypes.get_errno())}")


def closed_ancestor(path: Path) -> Path | None:
    """The outermost folder on the way to `path` that others may not enter."""
    return next((p for p in [*reversed(path.parents), path] if not p.stat().st_mode & 0o001), None)


def show_to_everybody(paths: list[Path]) -> None:
    """Make `paths` reachable for other users, for this process and its children only."""
    hidden = {path: ancestor for path in paths if (ancestor := closed_ancestor(path))}
    if not hidden:
        return
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    stage = Path(tempfile.gettempdir(), f"restow-test-stage-{os.getpid()}")
    stage.mkdir()
    mount("none", str(stage), "tmpfs", options="mode=755")
    for number, path in enumerate(hidden):
        (stage / str(number)).mkdir()
        mount(str(path), str(stage / str(number)), flags=MS_BIND | MS_REC)
    for ancestor in set(hidden.values()):
        mount("none", str(ancestor), "tmpfs", options="mode=755")
    for number, path in enumerate(hidden):
        path.mkdir(parents=True, exist_ok=True)
        mount(str(stage / str(number)), str(path), flags=MS_BIND | MS_REC)
    libc = ctypes.CDLL(None)
    libc.umount2(str(stage).encode(), 2)  # detached; the binds above keep what they show
    stage.rmdir()


def main(argv: list[str]) -> None:
    if os.geteuid() == 0:
        show_to_everybody([Path(sys.base_prefix), Path(sys.prefix), Path(restow.__file__).parents[1], PROJECT])
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        os.environ.pop("XDG_RUNTIME_DIR", None)
    os.chdir("/")
    os.execv(sys.executable, [sys.executable, *argv])


if __name__ == "__main__":
    main(sys.argv[1:])
