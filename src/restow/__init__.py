"""restow: runs PyTorch jobs on shared machines and restows them while they train.

In a training script:

    import restow
    job = restow.init(seed=0)
    model, optimizer = job.prepare(model, optimizer)
    for batch in job.steps(loader, total=1000):
        ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restow.sdk.session import Job, init

__all__ = ["Job", "init"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The SDK needs torch, the rest of the package does not: it is imported when it is first used."""
    if name in __all__:
        from restow.sdk import session

        return getattr(session, name)
    raise AttributeError(f"module 'restow' has no attribute {name!r}")
