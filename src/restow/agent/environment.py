"""The environment of a rank. Pure: what the agent was started with, the job's spec and its place in, variables out."""

from __future__ import annotations

import json
from collections.abc import Mapping

from restow.agent.devices import LocalDevice
from restow.agent.folders import Folders
from restow.config import CLUSTER_MARK
from restow.messages import Launch, Prepare
from restow.placement import nodes_of


def base_environment(inherited: Mapping[str, str], cluster_id: str) -> dict[str, str]:
    """What the agent's own environment gives to the user's programs: not what Ray says to its workers, its token among it."""
    kept = {name: value for name, value in inherited.items() if not name.startswith("RAY_")}
    return {**kept, CLUSTER_MARK: cluster_id}


def rank_environment(
    command: Launch | Prepare, rank: int, *, base: Mapping[str, str], folders: Folders, node: str, address: str,
    interface: str, device: LocalDevice,
) -> dict[str, str]:  # fmt: skip
    """All variables of one process. The spec's may replace what restow merely suggests, never what it needs."""
    job, generation, placement = command.job, command.generation, command.placement
    here = [r for r, slot in enumerate(placement) if slot.node == node]
    host, port = command.store
    suggested = {"PYTHONUNBUFFERED": "1", "GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    needed = {
        "RANK": str(rank),
        "WORLD_SIZE": str(len(placement)),
        "LOCAL_RANK": "0" if device.is_gpu else str(here.index(rank)),  # a GPU rank sees one GPU, its own
        "LOCAL_WORLD_SIZE": str(len(here)),
        "GROUP_RANK": str(nodes_of(placement).index(node)),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": job,
        "TORCHELASTIC_RESTART_COUNT": "0",  # older torch asks for it where there is an agent's store
        "RESTOW_JOB": job,
        "RESTOW_WORKERS_MOST": str(command.spec.workers if command.spec.workers_min else 0),
        "RESTOW_GENERATION": str(generation),
        "RESTOW_ROLE": "twin" if isinstance(command, Prepare) else "rank",
        "RESTOW_PAGE": str(folders.page(job, rank, generation)),
        "RESTOW_PRIVATE": str(folders.private(job, rank, generation)),
        "RESTOW_SLOTS": str(folders.slots(job, rank, generation)) if command.spec.recover and len(placement) > 1 else "",
        "RESTOW_LOG": str(folders.log(job, rank, generation)),
        "RESTOW_AGENT": str(folders.agent_socket),
        "RESTOW_SECRET": command.secret,
        "RESTOW_STORE": f"{host}:{port}",
        "RESTOW_NODES": json.dumps([slot.node for slot in placement]),
        "RESTOW_ADDRESS": address,
        "RESTOW_NODE": node,
        "RESTOW_GATE": f"{folders.gates}:{device.device.index}",
        "RESTOW_MEMORY_BYTES": str(command.spec.share.memory_bytes),
    }
    if len({(slot.node, slot.device) for slot in placement}) < len(placement):
        needed["RESTOW_CUDA_COLLECTIVES"] = "gloo"  # NCCL refuses two ranks of a group on one GPU
    if device.is_gpu:
        needed |= {"CUDA_VISIBLE_DEVICES": str(device.device.index), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    else:
        suggested["OMP_NUM_THREADS"] = "1"
        needed["CUDA_VISIBLE_DEVICES"] = ""
    kept = {name: value for name, value in base.items() if name != "CUDA_VISIBLE_DEVICES"}
    return {**kept, **suggested, **dict(command.spec.env), **needed}
