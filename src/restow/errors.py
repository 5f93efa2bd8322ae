"""Every exception that restow raises for a user's mistake.

    RestowError                  one clear line: the thing, the value, the way out; `exit_code` for the CLI
    ├── SpecError                a job spec that cannot be accepted
    ├── NotFound                 no such job, node, device or link
    ├── Refused                  understood, but not possible now (a move of a job that cannot move, a plan that is stale)
    ├── Unreachable              the controller, an agent or Ray does not answer
    ├── SetupError               this machine lacks something: a port, shared memory, a permission, a package
    ├── ScriptError              the training script used the SDK in a way that cannot work
    └── TraceError               a trace, or a cluster to simulate, that cannot be read

    IllegalTransition            our own mistake; never shown to users as advice, always a bug

What the world does (a killed worker, a lost node) is not here: that is an event, see messages.py.
"""

from __future__ import annotations


class RestowError(Exception):
    """A mistake that the user can mend. `str(error)` is one line without a traceback."""

    exit_code = 1


class SpecError(RestowError):
    """The spec names something wrong; nothing was submitted."""

    exit_code = 2


class NotFound(RestowError):
    """The named thing does not exist."""

    exit_code = 3


class Refused(RestowError):
    """The request is clear, but restow will not do it now; the line says why and what would help."""

    exit_code = 4


class Unreachable(RestowError):
    """Nobody answers at the other end."""

    exit_code = 5


class SetupError(RestowError):
    """This machine lacks something that restow needs."""

    exit_code = 6


class ScriptError(RestowError):
    """The training script uses the SDK in a way that cannot work."""

    exit_code = 7


class TraceError(RestowError):
    """A trace of jobs, or the cluster to simulate, cannot be read; the line names file, line and column."""

    exit_code = 8


class IllegalTransition(AssertionError):
    """A job was asked to do what the table in job.py does not allow: a bug in restow."""
