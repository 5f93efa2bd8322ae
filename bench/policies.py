"""Policies in worlds that were published, on the workloads that were published, every move charged.

    python bench/policies.py --json policies.json
    python bench/policies.py --worlds A,C --policies gavel,srsf --json policies.json

| world | | |
|---|---|---|
| A-ideal | Gavel's 500 jobs, one each 500 s, on 40 V100, 40 P100 and 40 K80 | moves and spreading free, as in its simulator |
| A | the same | measured speeds over several machines, 30 s for every move and return |
| A-unknown | the same | jobs do not say how long they are |
| A-wrong0 to 2 | the same | speeds are believed wrong by up to 20 %, three times differently |
| B5, B120 | the same | 5 s and 120 s |
| C-ideal, C | Gavel's 500 jobs, one each 1440 s, on 64 V100 | spreading free; measured, 60 s for every move |
| D1 to D6 | Pollux's five workloads on 16 machines of four T4 | rounds of a minute, 30 s for every start |
| F | Gavel's 96 jobs on 8 V100, 16 P100 and 24 K80 | 30 s |
| G | its 100 jobs that are all there from the start | 30 s |
| H-ideal | Muri's 992 jobs (trace3) on 64 GPUs | up to four interleave as in its simulator, 4 to 46 s for every start |
| H | the same | pairs lose what Gavel measured on V100, three on a device are not known |
| F-ideal, G-ideal | the same | moves and spreading free |
| J-ideal, J | Shockwave's 120 jobs, whose batches change, on 32 V100 | moves free; 20 s for every change |
| I | Morphling's 406 jobs on eight machines of eight A800, gangs of a given size | 260 s for every start, move and return |

`worth-no-moves`, `worth-no-sharing` and `worth-neither` leave parts of `worth` out, to see what each is worth.

`peer_reference_s`, `peer_makespan_s`: the average and the makespan that the peer's own simulator gave for that policy in that
world, where they are known (research notes of 2026-11): they say whether the worlds are the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench.options import new_file  # noqa: E402
from bench.worlds import WORLDS  # noqa: E402
from bench.worlds.setting import HOUR_S, Setting  # noqa: E402
from restow.errors import RestowError  # noqa: E402
from restow.own_policies import find_policy  # noqa: E402
from restow.policies.base import Policy  # noqa: E402
from restow.policies.gandiva.policy import Gandiva  # noqa: E402
from restow.policies.las import Las  # noqa: E402
from restow.policies.worth.config import WorthConfig  # noqa: E402
from restow.policies.worth.policy import Worth  # noqa: E402
from restow.sim.machines import machines  # noqa: E402
from restow.sim.simulation import SimConfig, Simulation  # noqa: E402

ROUND_S = 360.0  # of Gavel's simulator, in which Gandiva was looked at
RESET_S = 1000.0  # the least time between two of its answers of how time is parted
OWN: Mapping[str, Callable[[], Policy]] = {
    "tiresias": lambda: Las(levels_s=(16 * HOUR_S,)),  # as Pollux's simulator has it: two queues
    "gandiva": lambda: Gandiva(quantum_s=ROUND_S, anew_s=RESET_S),  # as Gavel's simulator has it
    "worth-no-moves": lambda: Worth(WorthConfig(moves=False)),
    "worth-no-sharing": lambda: Worth(WorthConfig(shares=False)),
    "worth-neither": lambda: Worth(WorthConfig(moves=False, shares=False)),
}
"""Policies that are only of use here."""


def measure(name: str, setting: Setting, policy: str) -> dict[str, Any]:
    found = OWN[policy]() if policy in OWN else find_policy(policy)
    round_s = setting.rounds_s or (setting.turn_s if policy.startswith("gavel") else 0.0)
    look_s = ROUND_S if policy == "gandiva" else 0.0
    config = SimConfig(
        round_s=round_s, look_s=look_s, delays=setting.delays, knows_total=setting.knows_total, error=setting.error,
        seed=setting.seed,
    )  # fmt: skip
    outcome = Simulation(setting.trace().rows, machines(setting.cluster), setting.world(), found, config).run()
    figures = outcome.figures()
    return {
        "world": name, "workload": setting.workload, "policy": policy, "avg_jct_s": figures["avg_jct_s"],
        "p99_jct_s": figures["p99_jct_s"], "makespan_s": figures["makespan_s"], "worst_ftf": figures["worst_ftf"],
        "moves": outcome.changes, "suspensions": sum(job.suspensions for job in outcome.jobs),
        "move_cost_s": setting.delays.move_s, "peer_reference_s": dict(setting.references_s).get(policy),
        "peer_makespan_s": dict(setting.makespans_s).get(policy),
        "decide_max_s": figures["decide_max_s"], "wall_s": figures["wall_s"],
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['world']:8} {row['policy']:14} {row['avg_jct_s'] / HOUR_S:7.2f} h  p99 {row['p99_jct_s'] / HOUR_S:6.1f} h  "
        f"makespan {row['makespan_s'] / HOUR_S:6.2f} h  fairness {row['worst_ftf']:5.1f}  {row['moves']:6} moves,"
        f" {row['suspensions']} of them suspensions"
        + _beside("average", row["avg_jct_s"], row["peer_reference_s"])
        + _beside("makespan", row["makespan_s"], row["peer_makespan_s"])
    )


def _beside(what: str, found_s: float, reference_s: float | None) -> str:
    return f"  {what} {reference_s / HOUR_S:.2f} h published, {100 * (found_s / reference_s - 1):+.1f} %" if reference_s else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the rows here")
    parser.add_argument("--worlds", default=",".join(WORLDS), help="default: all")
    parser.add_argument("--policies", help="names, or files; default: those of each world")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in options.worlds.split(","):
        if name not in WORLDS:
            parser.error(f"--worlds names {name!r}; there are {', '.join(WORLDS)}")
        for policy in options.policies.split(",") if options.policies else WORLDS[name].policies:
            try:
                rows.append(measure(name, WORLDS[name], policy))
            except RestowError as error:
                parser.exit(error.exit_code, f"{name}, {policy}: {error}\n")
            print(line(rows[-1]), flush=True)
            options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
