"""The process that gives out what a node's vault holds of one job, forked by the nursery when the job comes back.

It maps the files, checks them, serves them as a rank would (sdk/transport.py), says in the store of the new generation where it is,
and ends when it is told to, or when nobody has asked for long. A rank's own state is a tensor of bytes by the name of its file; how
many bytes each has is the answer to the question for private state.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from restow import vault
from restow.agent.checkpoint_writer import load
from restow.errors import RestowError
from restow.placement import Placement, Slot, nodes_of

LIFE_S = 900  # its twins have come and gone by then, or the attempt is over


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What to serve, to whom."""

    folder: str
    node: str
    address: str
    secret: str
    store: tuple[str, int]
    kept: Placement
    replicas: tuple[str, ...]
    step: int
    checkpoint: str = ""  # instead of the folder of a vault
    checkpoint_secret: str = ""

    def to_wire(self) -> dict[str, Any]:
        return {
            "folder": self.folder, "node": self.node, "address": self.address, "secret": self.secret,
            "store": list(self.store), "kept": [list(slot) for slot in self.kept],
            "replicas": list(self.replicas), "step": self.step, "checkpoint": self.checkpoint,
            "checkpoint_secret": self.checkpoint_secret,
        }  # fmt: skip

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Orders:
        return cls(
            folder=wire["folder"], node=wire["node"], address=wire["address"], secret=wire["secret"],
            store=(wire["store"][0], int(wire["store"][1])), kept=tuple(Slot(*slot) for slot in wire["kept"]),
            replicas=tuple(wire["replicas"]), step=int(wire["step"]), checkpoint=wire["checkpoint"],
            checkpoint_secret=wire["checkpoint_secret"],
        )  # fmt: skip


def keep(orders: Orders, report: int) -> int:
    """Serve until ended. Says {} or {"error"} to `report` once the files are checked."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        serve(orders)
    except (RestowError, OSError, RuntimeError) as error:
        os.write(report, json.dumps({"error": str(error).splitlines()[0]}).encode())
        os._exit(1)
    os.close(report)
    signal.alarm(LIFE_S)
    while True:
        signal.pause()


def check_step(manifest: vault.Manifest, orders: Orders) -> None:
    if manifest.step != orders.step:
        raise RestowError(f"a state in {orders.folder} is of step {manifest.step}, not of step {orders.step}")


def serve(orders: Orders) -> Any:
    """Check the files, publish them and say where; returns the server. Raises RestowError when they are damaged."""
    import torch.distributed as dist

    from restow.sdk.transport import FillServer

    published, sizes = _from_checkpoint(orders) if orders.checkpoint else _from_vault(orders)
    server = FillServer(orders.address, bytes.fromhex(orders.secret))
    server.publish(published, json.dumps(sizes).encode())
    host, port = orders.store
    store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))
    store.set(f"source/vault/{nodes_of(orders.kept).index(orders.node)}", f"{orders.address}:{server.port}")
    print(f"vault: serving {orders.checkpoint or orders.folder} at port {server.port}", file=sys.stderr, flush=True)
    return server


def _from_checkpoint(orders: Orders) -> tuple[dict[str, Any], dict[str, int]]:
    manifest, published, privates = load(orders.checkpoint, bytes.fromhex(orders.checkpoint_secret))
    if manifest.step != orders.step or manifest.workers != len(orders.kept):
        found = f"step {manifest.step} of {manifest.workers} ranks"
        raise RestowError(f"{orders.checkpoint} is of {found}, not of step {orders.step} of {len(orders.kept)}")
    published |= {vault.of_rank(rank): blob for rank, blob in privates.items()}
    return published, {vault.of_rank(rank): blob.numel() for rank, blob in privates.items()}


def _from_vault(orders: Orders) -> tuple[dict[str, Any], dict[str, int]]:
    """What this node's vault holds, by name, and how many bytes each rank's own has."""
    from restow.sdk.vault import map_state, tensors_of

    folder, kept = Path(orders.folder), orders.kept
    published: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    if orders.node in orders.replicas:
        manifest, flat = map_state(folder, vault.REPLICA)
        check_step(manifest, orders)
        published = {**tensors_of(manifest, flat)}
    for rank, slot in enumerate(kept):
        if slot.node == orders.node:
            own, blob = map_state(folder, vault.of_rank(rank))
            check_step(own, orders)
            published[vault.of_rank(rank)], sizes[vault.of_rank(rank)] = blob, blob.numel()
    return published, sizes
