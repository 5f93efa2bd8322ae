"""How many jobs keep their deadlines, policy by policy, on the traces that ElasticFlow was tried on (Gu et al., ASPLOS 2023).

    python bench/deadlines.py --json deadlines.json
    python bench/deadlines.py --traces cluster03,cluster06 --policies edf,deadline --json deadlines.json

Each trace on as many devices as its jobs hold on average, half as many more, in machines of eight. Gangs keep their size, and take
as long as was recorded: a job whose deadline is nearer than that (about half of them, whose deadlines ElasticFlow keeps by giving
them more devices) cannot be in time whatever the policy; `possible` is the part of all jobs that could, each alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench.options import new_file  # noqa: E402
from bench.worlds.setting import HOUR_S, SHARED  # noqa: E402
from restow.errors import RestowError  # noqa: E402
from restow.own_policies import find_policy  # noqa: E402
from restow.sim.machines import machines  # noqa: E402
from restow.sim.simulation import SimConfig, Simulation  # noqa: E402
from restow.sim.traces import Trace, read  # noqa: E402
from restow.sim.world import Recorded  # noqa: E402

TRACES = {
    **{name: f"elasticflow-traces/x/{name}.csv" for name in ("195job", "cluster01", "cluster05", "cluster06", "cluster10")},
    "philly": "elasticflow/ElasticFlow/traces_for_ElasticFlow/philly_103959.csv",
}
POLICIES = ("fifo", "srtf", "las", "edf", "deadline")
DEVICES_EACH = 8
LOOK_S = 600.0  # for las, which counts time


def machines_for(trace: Trace) -> int:
    span_s = max(row.submitted_s + row.duration_s for row in trace.rows) - trace.rows[0].submitted_s
    busy = sum(row.workers * row.duration_s for row in trace.rows) / span_s
    return math.ceil(max(1.5 * busy, max(row.workers for row in trace.rows)) / DEVICES_EACH)


def measure(name: str, trace: Trace, policy: str) -> dict[str, Any]:
    number = machines_for(trace)
    config = SimConfig(look_s=LOOK_S if policy == "las" else 0.0)
    outcome = Simulation(trace.rows, machines(f"{number}x{DEVICES_EACH}"), Recorded(), find_policy(policy), config).run()
    due_s = {row.id: row.deadline_s for row in trace.rows}
    possible = sum(row.submitted_s + row.duration_s <= row.deadline_s for row in trace.rows)
    met = sum(job.ended_s <= due_s[job.id] for job in outcome.jobs)
    return {
        "trace": name, "jobs": len(trace.rows), "devices": number * DEVICES_EACH, "policy": policy,
        "met_part": met / len(trace.rows), "possible_part": possible / len(trace.rows), "avg_jct_s": outcome.avg_jct_s,
        "suspensions": outcome.changes, "decide_max_s": max(outcome.decisions.seconds), "wall_s": outcome.wall_s,
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['trace']:9} {row['jobs']:5} jobs, {row['devices']:4} devices  {row['policy']:8} {100 * row['met_part']:4.1f} % met  "
        f"({100 * row['possible_part']:.0f} % possible)  avg {row['avg_jct_s'] / HOUR_S:6.2f} h  {row['suspensions']:5} suspended  "
        f"{row['wall_s']:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the rows here")
    parser.add_argument("--traces", default=",".join(TRACES), help="default: all")
    parser.add_argument("--policies", default=",".join(POLICIES), help="names, or files; default: %(default)s")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in options.traces.split(","):
        if name not in TRACES:
            parser.error(f"--traces names {name!r}; there are {', '.join(TRACES)}")
        trace = read(SHARED / TRACES[name])
        for policy in options.policies.split(","):
            try:
                rows.append(measure(name, trace, policy))
            except RestowError as error:
                parser.exit(error.exit_code, f"{name}, {policy}: {error}\n")
            print(line(rows[-1]), flush=True)
            options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
