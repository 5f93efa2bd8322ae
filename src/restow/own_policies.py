"""A policy by its name, or out of a file of one's own: `mine.py`, which defines `policy()`.

The file is run: it is as trusted as whoever names it.
"""

from __future__ import annotations

import difflib
import importlib.util
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from restow.cluster import Snapshot
from restow.errors import SpecError
from restow.faults import place_of, words_of
from restow.placement import Schedule
from restow.policies.base import Policy
from restow.policies.names import POLICIES

DEFAULT_POLICY = "restow"


def find_policy(name: str) -> Policy:
    """Raises SpecError, naming the line of a file where it fails."""
    if name in POLICIES:
        return POLICIES[name]()
    if name.endswith(".py"):
        return _from_file(Path(name))
    close = difflib.get_close_matches(name, POLICIES, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else f"the policies are {', '.join(POLICIES)}, or a file such as mine.py"
    raise SpecError(f"there is no policy {name!r}; {hint}")


def _from_file(path: Path) -> Policy:
    if not path.is_file():
        raise SpecError(f"policy {path}: there is no such file")
    found = importlib.util.spec_from_file_location(f"restow_policy_{path.stem}", path)
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        if not callable(getattr(module, "policy", None)):
            raise SpecError(f"policy {path} defines no policy(); it is to return what has decide(snapshot)")
        policy: Any = module.policy()
    except SpecError:
        raise
    except (Exception, SystemExit) as error:  # whatever is wrong in somebody's file
        raise SpecError(f"policy {place_of(error, path)}: {words_of(error)}; a policy file defines policy()") from None
    if not callable(getattr(policy, "decide", None)):
        raise SpecError(f"policy {path}: policy() gives a {type(policy).__name__} without decide(snapshot)")
    return policy


class Bounded:
    """A policy that is given up when it thinks for too long: it may loop. Only on the main thread of a process, by its alarm."""

    def __init__(self, policy: Policy, limit_s: float):
        self._policy, self._limit_s = policy, limit_s

    def decide(self, snapshot: Snapshot) -> Schedule:
        """Raises TimeoutError."""
        return self._within(self._policy.decide, snapshot)

    def plan(self, snapshot: Snapshot) -> Schedule:
        return self._within(getattr(self._policy, "plan", self._policy.decide), snapshot)

    def _within(self, question: Callable[[Snapshot], Schedule], snapshot: Snapshot) -> Schedule:
        before = signal.signal(signal.SIGALRM, self._expired)
        signal.setitimer(signal.ITIMER_REAL, self._limit_s)
        try:
            return question(snapshot)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)

    def _expired(self, *_: object) -> None:
        raise TimeoutError(f"it thought for more than {self._limit_s:g} s")
