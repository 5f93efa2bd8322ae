"""What the agent told this process through its environment, read once. Nobody else in the SDK reads os.environ."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A worker under restow. Names and meanings: docs/design/001-processes.md."""

    job: str
    rank: int
    world_size: int
    workers_most: int  # the greatest world size that the job may have; 0: it may have no other
    generation: int
    role: str  # "rank" or "twin"
    node: str
    address: str  # of this node; where the fill port is opened
    page: str
    agent: str  # path of the agent's socket
    secret: bytes
    store: tuple[str, int]
    nodes: tuple[str, ...]  # of each rank of `generation`
    cuda_collectives: str  # "nccl", or "gloo" where ranks of the job share a GPU
    log: str
    gate: tuple[str, int]  # folder of the gates of this node, index of our device; ("", -1): none
    keeps_priority: bool  # must this process's scheduling class stay as it is? See priority.py
    memory_bytes: int  # the most that this worker may take of its device; 0: no limit
    slots: str  # where private state is put at each save point, so that it outlives this process; empty: nowhere
    private: str  # where private state is kept while a switch is being prepared, so that it outlives this process


def read_environment() -> Environment | None:
    """None when this process does not run under restow (plain python, torchrun)."""
    read = os.environ.get
    if not read("RESTOW_JOB") or not read("RESTOW_PAGE"):
        return None
    host, _, port = os.environ["RESTOW_STORE"].rpartition(":")
    return Environment(
        job=os.environ["RESTOW_JOB"],
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        workers_most=int(read("RESTOW_WORKERS_MOST", "0")),
        generation=int(os.environ["RESTOW_GENERATION"]),
        role=os.environ["RESTOW_ROLE"],
        node=os.environ["RESTOW_NODE"],
        address=os.environ["RESTOW_ADDRESS"],
        page=os.environ["RESTOW_PAGE"],
        agent=os.environ["RESTOW_AGENT"],
        secret=bytes.fromhex(os.environ["RESTOW_SECRET"]),
        store=(host, int(port)),
        nodes=tuple(json.loads(read("RESTOW_NODES", "[]"))),
        cuda_collectives=read("RESTOW_CUDA_COLLECTIVES", "nccl"),
        log=read("RESTOW_LOG", ""),
        gate=_gate(read("RESTOW_GATE", "")),
        keeps_priority=read("RESTOW_KEEP_PRIORITY", "0") == "1",
        memory_bytes=int(read("RESTOW_MEMORY_BYTES", "0")),
        slots=read("RESTOW_SLOTS", ""),
        private=read("RESTOW_PRIVATE", ""),
    )


def _gate(text: str) -> tuple[str, int]:
    folder, _, device = text.rpartition(":")
    return (folder, int(device)) if folder else ("", -1)


def torchrun_environment() -> tuple[int, int, int]:
    """(rank, world size, local rank) as torchrun gives them; (0, 1, 0) for plain python."""
    read = os.environ.get
    return int(read("RANK", "0")), int(read("WORLD_SIZE", "1")), int(read("LOCAL_RANK", "0"))
