"""Alibaba's pods of 2023 on its machines: what each wants of processors, memory and parts of GPUs, packed until nothing fits.

Source: the traces that come with FGD (Weng et al., USENIX ATC 2023; hkust-adsl/kubernetes-scheduler-simulator, Apache-2.0), and its
experiment: every pod of a list once, in random order, then pods of it drawn at random, one after another until together they want
`ratio` times the GPUs that there are. Nobody leaves. How fast a pod is was not recorded: a step is a second.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

from restow.cluster import Device, Node
from restow.errors import TraceError
from restow.placement import Placement, is_scattered
from restow.sim.machines import Machines
from restow.sim.rows import Row
from restow.sim.traces import table
from restow.sim.traces.layouts import MIB, MS
from restow.sim.world import Nodes, kind_of

FOREVER_S = 1e9
NODE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
POD_COLUMNS = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")


def read_machines(path: Path) -> Machines:
    """Those with GPUs. Raises TraceError."""
    _check_columns(path, NODE_COLUMNS)
    nodes = []
    for line in table.lines(path):
        devices = tuple(Device(index=index, kind=line.text("model")) for index in range(line.whole("gpu")))
        if devices:
            nodes.append(Node(
                name=line.text("sn"), address=line.text("sn"), devices=devices, cores=line.decimal("cpu_milli", scale=MS),
                host_bytes=line.whole("memory_mib") * MIB,
            ))  # fmt: skip
    if not nodes:
        raise TraceError(f"{path} names no machine with GPUs")
    return Machines(nodes=tuple(nodes))


def read_pods(path: Path) -> tuple[Row, ...]:
    """All of a list, also those that want no GPU: they take cores from those that do. Raises TraceError."""
    _check_columns(path, POD_COLUMNS)
    rows = []
    for line in table.lines(path):
        devices = line.whole("num_gpu")
        workers = max(1, devices)
        try:
            rows.append(Row(
                id=line.text("name"), submitted_s=0.0, workers=workers, duration_s=FOREVER_S,
                share=line.decimal("gpu_milli", scale=MS) if devices else 0.0, model=line.values.get("gpu_spec", "").strip(),
                cores=line.decimal("cpu_milli", scale=MS) / workers, host_bytes=line.whole("memory_mib") * MIB // workers,
            ))  # fmt: skip
        except TraceError as error:
            raise error if str(error).startswith(str(path)) else line.error("", str(error)) from None
    if not rows:
        raise TraceError(f"{path} names no pods")
    return tuple(rows)


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in table.columns_of(path)]
    if missing:
        raise TraceError(f"{path} has no column {missing[0]}; it is to have {','.join(columns)}")


def devices_wanted(row: Row) -> float:
    return row.workers * row.share


def inflated(pods: Sequence[Row], devices: int, ratio: float, seed: int) -> tuple[Row, ...]:
    """The pods that come, one each second, until they want `ratio` times so many devices."""
    rng = random.Random(seed)
    coming = list(pods)
    rng.shuffle(coming)
    wanted = sum(map(devices_wanted, coming))
    while wanted > ratio * devices:
        wanted -= devices_wanted(coming.pop(rng.randrange(len(coming))))
    while wanted + devices_wanted(pod := pods[rng.randrange(len(pods))]) <= ratio * devices:
        coming.append(pod)
        wanted += devices_wanted(pod)
    return tuple(replace(pod, id=f"pod-{number}", submitted_s=float(number)) for number, pod in enumerate(coming))


class Pods:
    """A pod lies on one machine, of a kind that it names, or on any."""

    def work(self, row: Row) -> float:
        return row.duration_s

    def step_s(self, row: Row, placement: Placement, nodes: Nodes, beside: Sequence[tuple[Row, Placement]] = ()) -> float:
        is_right = not row.model or kind_of(placement, nodes) in row.model.split("|")
        return 1.0 if is_right and not is_scattered(placement) else math.inf

    def alike(self, row: Row) -> Hashable:
        return row.model

    def place(self, placement: Placement, nodes: Nodes) -> Hashable:
        return is_scattered(placement)
