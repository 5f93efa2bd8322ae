"""restow: runs PyTorch jobs on shared machines and restows them while they train.

In a training script:

    import restow
    job = restow.init(seed=0)
    model, optimizer = job.prepare(model, optimizer)
    for batch in job.steps(loader, total=1000):
        ...
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restow.sdk.fuse import Sweep, sweep
    from restow.sdk.members import sweep_members
    from restow.sdk.session import Job, init

__all__ = ["Job", "Sweep", "init", "sweep", "sweep_members"]
_WHERE = {
    "Job": "restow.sdk.session",
    "Sweep": "restow.sdk.fuse",
    "init": "restow.sdk.session",
    "sweep": "restow.sdk.fuse",
    "sweep_members": "restow.sdk.members",
}
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The SDK needs torch, the rest of the package does not: it is imported when it is first used."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'restow' has no attribute {name!r}")
