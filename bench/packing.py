"""How much of the GPUs is allocated when pods that want parts of them come until nothing fits: FGD's experiment on Alibaba's pods.

    python bench/packing.py --json packing.json
    python bench/packing.py --lists default,gpushare100 --policies fgd,worth --seeds 1 --json packing.json

Pods of a list come one each second on its 1,213 machines with 6,212 GPUs until they want 1.3 times the GPUs that there are; nobody
leaves (sim/pods.py). Every policy is asked each two minutes, in the simulator that drives the same core and policies as a live
controller. `allocated` is looked at when the pods that have come want as much as there is, `at_end` when all have come.

fgd          learns what pods usually want from those that have come
fgd-known    is told it beforehand, as in its authors' experiment

After each run the machines are added up anew: no device, core or byte is given away twice, whatever the policy believes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench.options import new_file  # noqa: E402
from bench.worlds.setting import SHARED  # noqa: E402
from restow.errors import RestowError  # noqa: E402
from restow.own_policies import find_policy  # noqa: E402
from restow.policies.base import Policy  # noqa: E402
from restow.policies.fgd import Fgd  # noqa: E402
from restow.policies.packing.wants import PARTS, Mix, Want  # noqa: E402
from restow.sim.machines import Machines  # noqa: E402
from restow.sim.pods import Pods, devices_wanted, inflated, read_machines, read_pods  # noqa: E402
from restow.sim.rows import Row  # noqa: E402
from restow.sim.simulation import SimConfig, Simulation  # noqa: E402

LISTS = ("default", "gpushare40", "gpushare100", "multigpu20", "gpuspec33")
POLICIES = ("bestfit", "fgd", "worth")
RATIO = 1.3  # as in the experiment of FGD's authors
ROUND_S = 120.0
SEED = 42  # the first one; theirs are 42 to 51
FOLDER = SHARED / "fgd/data/csv"


def mix_of(pods: Sequence[Row]) -> Mix:
    def want(row: Row) -> Want:
        return Want(row.workers, round(row.share * PARTS), row.workers * row.cores, row.workers * row.host_bytes, row.model)

    return Mix(Counter(map(want, pods)))


def measure(name: str, policy: str, seed: int, machines: Machines) -> dict[str, Any]:
    pods = read_pods(FOLDER / f"openb_pod_list_{name}.csv")
    rows = inflated(pods, machines.devices, RATIO, seed)
    found: Policy = Fgd(mix_of(pods)) if policy == "fgd-known" else find_policy(policy)
    began_s = time.perf_counter()
    simulation = Simulation(rows, machines, Pods(), found, SimConfig(round_s=ROUND_S))
    simulation.run_until(_full_s(rows, machines.devices))
    at_full = _allocated(simulation, rows, machines)
    simulation.run_until(rows[-1].submitted_s + 4 * ROUND_S)
    _check(simulation, rows, machines)
    seconds = simulation.decisions.seconds
    return {
        "list": name, "policy": policy, "seed": seed, "pods": len(rows), "allocated": at_full,
        "at_end": _allocated(simulation, rows, machines),
        "moves": sum(record.job.moves for record in simulation.state.records.values()),
        "decide_s": sum(seconds), "decide_max_s": max(seconds), "decisions": len(seconds), "wall_s": time.perf_counter() - began_s,
    }  # fmt: skip


def _full_s(rows: Sequence[Row], devices: int) -> float:
    """When the pods that have come want as many devices as there are, and the round of the last of them is over."""
    wanted = 0.0
    for row in rows:
        wanted += devices_wanted(row)
        if wanted >= devices:
            return (row.submitted_s // ROUND_S + 1) * ROUND_S
    return rows[-1].submitted_s


def _allocated(simulation: Simulation, rows: Sequence[Row], machines: Machines) -> float:
    jobs = {id: simulation.state.records[id].job for id in simulation.state.active_ids}
    return sum(devices_wanted(row) for row in rows if row.id in jobs and jobs[row.id].placement) / machines.devices


def _check(simulation: Simulation, rows: Sequence[Row], machines: Machines) -> None:
    devices: dict[tuple[str, int], float] = defaultdict(float)
    cores: dict[str, float] = defaultdict(float)
    host: dict[str, int] = defaultdict(int)
    for row in rows:
        record = simulation.state.records.get(row.id)
        for slot in record.job.placement if record else ():
            devices[slot[:2]] += row.share
            cores[slot.node] += row.cores
            host[slot.node] += row.host_bytes
    assert all(used <= 1 + 1e-6 for used in devices.values()), "a device is given away twice"
    for node in machines.nodes:
        assert cores[node.name] <= node.cores + 1e-3, f"{node.name} gives away more cores than it has"
        assert host[node.name] <= node.host_bytes, f"{node.name} gives away more memory than it has"


def line(row: dict[str, Any]) -> str:
    each_ms = 1000 * row["decide_s"] / row["pods"]
    return (
        f"{row['list']:12} {row['policy']:10} seed {row['seed']}  "
        f"{100 * row['allocated']:6.2f} %  at the end {100 * row['at_end']:6.2f} %  "
        f"{row['moves']:4} moves  {each_ms:5.1f} ms a pod, slowest decision {row['decide_max_s']:.2f} s  {row['wall_s']:5.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the rows here")
    parser.add_argument("--lists", default=",".join(LISTS))
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--seeds", type=int, default=3, help="how many, default: 3")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    try:
        machines = read_machines(FOLDER / "openb_node_list_gpu_node.csv")
        for seed in range(SEED, SEED + options.seeds):
            for name in options.lists.split(","):
                for policy in options.policies.split(","):
                    rows.append(measure(name, policy, seed, machines))
                    print(line(rows[-1]), flush=True)
                    options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    except RestowError as error:
        parser.exit(error.exit_code, f"{error}\n")


if __name__ == "__main__":
    main()
