"""Runs a program inside a node of a lab: `enter.py --net PATH:INODE [--user PATH:INODE] [--env K=V]... -- CMD ARG...`

Standard library only, and few modules of it: it runs as `python -I -S enter.py` in about 15 ms, joins the namespaces and
becomes the program. Joining is done here, between two execs, because it is safe only in a process with one thread.

The inode is checked since PATH goes through /proc/<pid>/fd of the lab's holder: if the holder is gone and its pid is
somebody else's, this must fail and not land elsewhere.
"""

from __future__ import annotations

import ctypes
import os
import sys

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000


def unshare(flags: int) -> None:
    """Leave into new namespaces. Raises OSError. For CLONE_NEWUSER the process must have one thread."""
    _checked("unshare", ctypes.c_int(flags))


def join(descriptor: int, flag: int) -> None:
    """Join the namespace behind an open descriptor. Raises OSError."""
    _checked("setns", ctypes.c_int(descriptor), ctypes.c_int(flag))


def _checked(name: str, *arguments: ctypes.c_int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _join_path(place: str, flag: int) -> None:
    path, _, inode = place.rpartition(":")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if os.fstat(descriptor).st_ino != int(inode):
        raise OSError(f"{path} is another namespace now; the lab is gone")
    join(descriptor, flag)
    os.close(descriptor)


def main(arguments: list[str]) -> None:
    """Become the program. Exits with 125 when the node cannot be entered, 127 or 126 as a shell does."""
    split = arguments.index("--")
    options, command = arguments[:split], arguments[split + 1 :]
    places = {"--user": CLONE_NEWUSER, "--net": CLONE_NEWNET}
    try:
        for name, value in zip(options[::2], options[1::2], strict=True):
            if name == "--env":
                key, _, text = value.partition("=")
                os.environ[key] = text
            else:
                _join_path(value, places[name])
    except OSError as error:
        sys.exit(_complain(f"cannot enter the node: {error}", 125))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(_complain(f"{command[0]}: {error.strerror}", 127 if isinstance(error, FileNotFoundError) else 126))


def _complain(text: str, code: int) -> int:
    print(f"restow lab: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main(sys.argv[1:])
