"""How fast the simulator is, and how fast a policy decides, on one core.

    python bench/simulator.py --json simulator.json
    python bench/simulator.py --policy las --only gavel500,itp --json simulator.json

Each row runs in a process of its own. The traces are published ones (shared/data) or made up with a seed.

gavel500    500 jobs of Gavel's generator on 120 devices of three kinds, measured speeds
itp         69,351 jobs of ten clusters of Microsoft, each on as many devices as its jobs hold on average, half as many more
jobs100k    100,000 made-up jobs on 10,000 devices
decide_10k  one decision after another on 10,000 devices with 5,000 active jobs, while 50 jobs come and go
decide_100k one decision on 100,000 devices with 50,000 active jobs
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench.options import new_file  # noqa: E402
from restow.own_policies import find_policy  # noqa: E402
from restow.sim.gavel import GavelWorld  # noqa: E402
from restow.sim.machines import machines  # noqa: E402
from restow.sim.outcome import Outcome  # noqa: E402
from restow.sim.simulation import SimConfig, Simulation  # noqa: E402
from restow.sim.traces import Trace, find_trace, read  # noqa: E402
from restow.sim.world import Recorded, World  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared" / "data"
ROWS = ("gavel500", "itp", "jobs100k", "decide_10k", "decide_100k")
DEVICES_EACH = 8
CHURN = 50


def simulate(trace: Trace, cluster: str, world: World, policy: str, config: SimConfig) -> Outcome:
    return Simulation(trace.rows, machines(cluster), world, find_policy(policy), config).run()


def gavel500(policy: str) -> dict[str, Any]:
    trace = read(SHARED / "gavel/generated/gavel_gen500_seed0_lam500_multi.trace")
    world = GavelWorld(SHARED / "gavel/scheduler/simulation_throughputs.json")
    began_s = time.perf_counter()
    outcome = simulate(trace, "5x8:V100,5x8:P100,5x8:K80", world, policy, SimConfig())
    return {"gavel500_s": time.perf_counter() - began_s, "gavel500_avg_jct_s": outcome.avg_jct_s}


def itp(policy: str) -> dict[str, Any]:
    seconds, jobs = 0.0, 0
    for number in range(1, 11):
        trace = read(SHARED / f"elasticflow-traces/x/cluster{number:02d}.csv")
        span_s = max(row.submitted_s + row.duration_s for row in trace.rows)
        busy = sum(row.workers * row.duration_s for row in trace.rows) / span_s
        size = max(math.ceil(1.5 * busy), max(row.workers for row in trace.rows))
        began_s = time.perf_counter()
        outcome = simulate(trace, f"{math.ceil(size / DEVICES_EACH)}x{DEVICES_EACH}", Recorded(), policy, SimConfig())
        seconds += time.perf_counter() - began_s
        jobs += len(outcome.jobs)
    return {"itp_s": seconds, "itp_jobs": jobs}


def jobs100k(policy: str) -> dict[str, Any]:
    """As many as 10,000 devices can carry: three devices for 9 h on average for each job, one every 10 s."""
    trace = find_trace("random:jobs=100000,gap=10,seed=1,longest=86400")
    began_s = time.perf_counter()
    outcome = simulate(trace, f"{10_000 // DEVICES_EACH}x{DEVICES_EACH}", Recorded(), policy, SimConfig(round_s=300.0))
    return {"jobs100k_s": time.perf_counter() - began_s, "jobs100k_active_most": outcome.decisions.jobs_most}


def decide(policy: str, devices: int, jobs: int) -> tuple[list[float], int]:
    """Seconds of each decision of a cluster that is full, and bytes that the process has at most."""
    trace = find_trace(f"random:jobs={jobs + CHURN},gap=0,seed=2")
    late = tuple(row if n < jobs else _at(row, 1.0 + n - jobs) for n, row in enumerate(trace.rows))
    config = SimConfig()
    simulation = Simulation(late, machines(f"{devices // DEVICES_EACH}x{DEVICES_EACH}"), Recorded(), find_policy(policy), config)
    simulation.run_until(CHURN + 1.0)
    seconds = simulation.decisions.seconds
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _at(row: Any, time_s: float) -> Any:
    from dataclasses import replace

    return replace(row, submitted_s=time_s)


def decide_10k(policy: str) -> dict[str, Any]:
    seconds, memory = decide(policy, 10_000, 5_000)
    ordered = sorted(seconds)
    p99_s = ordered[math.ceil(0.99 * len(ordered)) - 1]
    return {"decide_10k_p99_s": p99_s, "decide_10k_mem_bytes": memory, "decide_10k_times": len(ordered)}


def decide_100k(policy: str) -> dict[str, Any]:
    seconds, _ = decide(policy, 100_000, 50_000)
    return {"decide_100k_s": max(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the figures here")
    parser.add_argument("--policy", default="restow", help="default: restow")
    parser.add_argument("--only", default=",".join(ROWS), help="default: all rows")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(globals()[options.row](options.policy)))
        return
    figures: dict[str, Any] = {"policy": options.policy}
    for row in options.only.split(","):
        if row not in ROWS:
            parser.error(f"--only names {row!r}; the rows are {', '.join(ROWS)}")
        command = [sys.executable, __file__, "--row", row, "--policy", options.policy, "--json", str(options.json)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{row:12} failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        figures |= found
        print(f"{row:12} " + ", ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True)
    options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
