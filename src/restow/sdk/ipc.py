"""CUDA tensors of another process on this machine: opened by handle and copied on the device, never through the host.

Handles are pickles that torch makes; they are only opened after the peer proved to be a process of this job.
"""

from __future__ import annotations

import base64
import pickle

import torch


def export(tensor: torch.Tensor) -> str | None:
    """A handle for another process, or None where the driver cannot share this memory (it then goes by the socket)."""
    from torch.multiprocessing.reductions import reduce_tensor

    try:
        return base64.b64encode(pickle.dumps(reduce_tensor(tensor.detach()))).decode()
    except RuntimeError:  # expandable segments, no IPC in this container, memory from elsewhere
        return None


def copy_from(handle: str, tensor: torch.Tensor) -> bool:
    """Copy what `handle` names into `tensor`, on its device's current stream; False if it cannot be opened here."""
    rebuild, arguments = pickle.loads(base64.b64decode(handle))
    try:
        theirs = rebuild(*arguments)
    except RuntimeError:  # another device that this one cannot reach, or no IPC: it then goes by the socket
        return False
    tensor.copy_(theirs)
    return True
