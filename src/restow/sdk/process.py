"""This process under restow: where what it prints goes, and how it ends without another word."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from restow.free_memory import free_part

SLEEP_FREE_PART_MIN = 0.3  # of the machine's memory: whoever keeps its own while it sleeps must not be in the way of others


def leave() -> NoReturn:
    """End this process now: its rank lives elsewhere, or the twin is not needed. The script's own clean-up must not run:
    it would save, log or destroy what now belongs to another process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def speak(log: str) -> None:
    """From now on what the script prints is the rank's: the rehearsal's file is left."""
    sys.stdout.flush()
    sys.stderr.flush()
    if not log:
        return
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def may_sleep() -> bool:
    """Is there memory enough for a process that only waits until it is wanted back?"""
    return free_part() >= SLEEP_FREE_PART_MIN
