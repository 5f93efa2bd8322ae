"""Policies in worlds that were published, on the workloads that were published, every move charged.

    python bench/policies.py --json policies.json
    python bench/policies.py --worlds A,C --policies gavel,srsf --json policies.json

| world | | |
|---|---|---|
| A-ideal | Gavel's 500 jobs, one each 500 s, on 40 V100, 40 P100 and 40 K80 | moves and spreading free, as in its simulator |
| A | the same | measured speeds over several machines, 30 s for every move and return |
| A-unknown | the same | jobs do not say how long they are |
| B5, B120 | the same | 5 s and 120 s |
| C-ideal, C | Gavel's 500 jobs, one each 1440 s, on 64 V100 | spreading free; measured, 60 s for every move |
| D1 to D6 | Pollux's five workloads on 16 machines of four T4 | rounds of a minute, 30 s for every start |
| F | Gavel's 96 jobs on 8 V100, 16 P100 and 24 K80 | 30 s |

`peer_reference_s`: the average that the peer's own simulator gave for that policy in that world, where one is known (research notes
of 2026-11): it says whether the worlds are the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench.options import new_file  # noqa: E402
from restow.errors import RestowError  # noqa: E402
from restow.own_policies import find_policy  # noqa: E402
from restow.policies.base import Policy  # noqa: E402
from restow.policies.las import Las  # noqa: E402
from restow.sim.agents import Delays  # noqa: E402
from restow.sim.gavel import GavelWorld  # noqa: E402
from restow.sim.machines import machines  # noqa: E402
from restow.sim.pollux import PolluxWorld  # noqa: E402
from restow.sim.simulation import SimConfig, Simulation  # noqa: E402
from restow.sim.traces import Trace, read  # noqa: E402
from restow.sim.world import World  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared" / "data"
HOUR_S = 3600.0
ROUND_S = 360.0  # of Gavel
GAVEL = "5x8:V100,5x8:P100,5x8:K80"
G96 = "2x4:V100,4x4:P100,6x4:K80"


def tiresias() -> Policy:
    """As Pollux's simulator has it: two queues, the border at 16 device hours."""
    return Las(levels_s=(16 * HOUR_S,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    workload: str
    trace: Callable[[], Trace]
    world: Callable[[], World]
    cluster: str
    delays: Delays
    rounds_s: float = 0.0  # also for policies that need none
    knows_total: bool = True  # do jobs say how long they are?
    policies: tuple[str, ...] = ("fifo", "srsf", "gavel", "worth")
    references_s: tuple[tuple[str, float], ...] = ()


@lru_cache(maxsize=2)
def gavel_world(spreads: bool) -> GavelWorld:
    return GavelWorld(SHARED / "gavel/scheduler/simulation_throughputs.json", spreads=spreads)


@lru_cache(maxsize=1)
def pollux_world() -> PolluxWorld:
    return PolluxWorld(SHARED / "pollux/simulator/traces")


def g500(gap: int, stretched: float = 1.0) -> Trace:
    return read(SHARED / f"gavel/generated/gavel_gen500_seed0_lam{gap}_multi.trace").compressed(1 / stretched)


def _moves(seconds: float) -> Delays:
    return Delays(move_s=seconds, resume_s=seconds)


def _gavel(move_s: float, spreads: bool = True, **more: Any) -> Setting:
    return Setting(
        workload="500 jobs, 500 s apart", trace=partial(g500, 500), world=partial(gavel_world, spreads), cluster=GAVEL,
        delays=_moves(move_s), **more,
    )  # fmt: skip


def _consolidation(spreads: bool, **more: Any) -> Setting:
    return Setting(
        workload="500 jobs, 1440 s apart", trace=partial(g500, 900, 1.6), world=partial(gavel_world, spreads), cluster="8x8:V100",
        delays=_moves(60.0), policies=("fifo", "worth"), **more,
    )  # fmt: skip


def _pollux(number: int, **more: Any) -> Setting:
    return Setting(
        workload=f"workload-{number}", trace=lambda: read(SHARED / f"pollux/simulator/workloads/workload-{number}.csv"),
        world=pollux_world, cluster="16x4:T4", delays=Delays(start_s=30.0, move_s=30.0, resume_s=30.0), rounds_s=60.0,
        policies=("tiresias", "srsf", "worth"), **more,
    )  # fmt: skip


WORLDS = {
    "A-ideal": _gavel(0.0, spreads=False, references_s=(("gavel", 19.18 * HOUR_S), ("fifo", 29.35 * HOUR_S))),
    "A": _gavel(30.0, references_s=(("gavel", 20.45 * HOUR_S), ("fifo", 29.38 * HOUR_S))),
    "A-unknown": _gavel(30.0, knows_total=False, policies=("worth",)),
    "B5": _gavel(5.0),
    "B120": _gavel(120.0),
    "C-ideal": _consolidation(spreads=False, references_s=(("fifo", 15.56 * HOUR_S),)),
    "C": _consolidation(spreads=True, references_s=(("fifo", 21.37 * HOUR_S),)),
    "D1": _pollux(1),
    "D2": _pollux(2),
    "D3": _pollux(3),
    "D4": _pollux(4),
    "D6": _pollux(6, references_s=(("tiresias", 3469.7),)),
    "F": Setting(
        workload="96 jobs", trace=lambda: read(SHARED / "gavel/scheduler/traces/physical_cluster/max_min_fairness.trace"),
        world=partial(gavel_world, True), cluster=G96, delays=_moves(30.0), references_s=(("gavel", 4.33 * HOUR_S),),
    ),
    "F-ideal": Setting(
        workload="96 jobs", trace=lambda: read(SHARED / "gavel/scheduler/traces/physical_cluster/max_min_fairness.trace"),
        world=partial(gavel_world, False), cluster=G96, delays=_moves(0.0), references_s=(("gavel", 4.06 * HOUR_S),),
    ),
}  # fmt: skip


def measure(name: str, setting: Setting, policy: str) -> dict[str, Any]:
    found = tiresias() if policy == "tiresias" else find_policy(policy)
    round_s = setting.rounds_s or (ROUND_S if policy == "gavel" else 0.0)
    config = SimConfig(round_s=round_s, delays=setting.delays, knows_total=setting.knows_total)
    outcome = Simulation(setting.trace().rows, machines(setting.cluster), setting.world(), found, config).run()
    figures = outcome.figures()
    return {
        "world": name, "workload": setting.workload, "policy": policy, "avg_jct_s": figures["avg_jct_s"],
        "p99_jct_s": figures["p99_jct_s"], "makespan_s": figures["makespan_s"], "worst_ftf": figures["worst_ftf"],
        "moves": outcome.changes, "move_cost_s": setting.delays.move_s, "peer_reference_s": dict(setting.references_s).get(policy),
        "decide_max_s": figures["decide_max_s"], "wall_s": figures["wall_s"],
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    reference_s = row["peer_reference_s"]
    beside = f"{reference_s / HOUR_S:.2f} h published, {100 * (row['avg_jct_s'] / reference_s - 1):+.1f} %" if reference_s else ""
    return (
        f"{row['world']:8} {row['policy']:9} {row['avg_jct_s'] / HOUR_S:7.2f} h  p99 {row['p99_jct_s'] / HOUR_S:6.1f} h  "
        f"makespan {row['makespan_s'] / HOUR_S:6.1f} h  fairness {row['worst_ftf']:5.1f}  {row['moves']:6} moves  {beside}"
    )


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
