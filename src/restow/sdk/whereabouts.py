"""Where the training thread is right now, as lines for a person, and whether it waits for others there; for other threads."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from typing import Any

from restow.sdk import group as groups_module

FRAMES_MAX = 12
_LIBRARIES = f"{os.sep}site-packages{os.sep}", f"{os.sep}restow{os.sep}sdk{os.sep}", f"{os.sep}lib{os.sep}python"
_WAITS = tuple(
    path.replace("/", os.sep)
    for path in (
        "torch/distributed/", "restow/sdk/sentinel.py", "restow/sdk/group.py", "restow/sdk/passage.py", "restow/sdk/agreement.py",
        "restow/gate/",
    )
)  # fmt: skip


def whereabouts() -> dict[str, Any]:
    """{"at": the innermost line of the script, "stack": frames from there inwards, "waits": for others?, "given": the
    collectives of its generation so far}."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    frames = traceback.extract_stack(frame, limit=64) if frame else traceback.StackSummary()
    own = [index for index, each in enumerate(frames) if not any(part in each.filename for part in _LIBRARIES)]
    inner = frames[own[-1] if own else 0 :]
    waits = any(part in each.filename for each in inner for part in _WAITS)
    given = sum(group.inner.launched() for group in groups_module.groups)
    if groups_module.link is not None:
        given += groups_module.link.waiting
    stack = [_line(each) for each in inner[:FRAMES_MAX]]
    return {"at": stack[0] if stack else "", "stack": stack, "waits": waits, "given": given}


def _line(frame: traceback.FrameSummary) -> str:
    return f"{os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}"
