"""The command simulate: a trace of jobs on a cluster that need not exist, under one policy or several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click

from restow.cli import simulate_files as files
from restow.cli.simulate_losses import losses_of, stragglers_of
from restow.cli.simulate_runs import Run, run_all
from restow.cli.simulate_table import print_table
from restow.errors import SpecError
from restow.own_policies import find_policy
from restow.sim.delays import Delays
from restow.sim.gavel import GavelWorld
from restow.sim.machines import Machines, read_machines
from restow.sim.pollux import PolluxWorld
from restow.sim.profiled import Profiled
from restow.sim.shockwave import ShockwaveWorld
from restow.sim.simulation import SimConfig
from restow.sim.standing import is_snapshot, read_standing
from restow.sim.traces import Trace, find_trace
from restow.sim.world import Recorded, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is simulated, whatever the policy."""

    trace: Trace
    machines: Machines
    begins_s: float = 0.0
    notes: tuple[str, ...] = ()


@click.command()
@click.argument("trace")
@click.option("--cluster", metavar="SPEC", help="8x4, 5x8:V100,5x8:K80, or a YAML file (docs/guides/simulate.md).")
@click.option("--policy", default="restow", metavar="P[,P...]", help="Names, or files such as mine.py; default: restow.")
@click.option("--table", type=click.Path(path_type=Path), help="Measured speeds: Gavel's JSON, or the folder of Pollux's traces.")
@click.option("--ideal", is_flag=True, help="With --table: a gang on several machines loses nothing, as in Gavel's own simulator.")
@click.option("--round", "round_s", type=float, default=0.0, metavar="S", help="Decide only so often, not at each event.")
@click.option("--look", "look_s", type=float, default=0.0, metavar="S", help="Decide at least so often: for las.")
@click.option("--move-s", type=float, metavar="S", help="What a move, or a return, costs its job; default: as predicted.")
@click.option("--start-s", type=float, default=0.0, metavar="S", help="From a launch to the first step.")
@click.option("--unknown", is_flag=True, help="Jobs do not say how long they are.")
@click.option("--error", type=float, default=0.0, metavar="PART", help="Policies believe speeds that are wrong by up to this part.")
@click.option("--mtbf-h", type=float, metavar="H", help="Each machine fails, after H hours on average.")
@click.option("--repair-s", type=float, metavar="S", help="With --mtbf-h: until a machine is back; default: 1800.")
@click.option("--checkpoint-s", type=float, metavar="S", help="With --mtbf-h: from one checkpoint to the next; default: none.")
@click.option("--stragglers", type=float, metavar="X", help="Now and then a device is slow: a step takes X times as long.")
@click.option("--straggler-h", type=float, metavar="H", help="With --stragglers: so often, on average; default: every 24 h.")
@click.option("--straggler-s", type=float, metavar="S", help="With --stragglers: for so long; default: 3600.")
@click.option("--seeds", type=int, default=1, metavar="N", help="So many runs of each, with other errors, failures and stragglers.")
@click.option("--compress", type=float, default=1.0, metavar="X", help="Jobs arrive X times as fast.")
@click.option("--first", type=int, metavar="N", help="Only the first N jobs.")
@click.option("--unseen-s", type=float, metavar="S", help="Of a snapshot: how long jobs take that never ran.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.html", help="Write a page to look at.")
@click.option("--json", "json_", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write all figures here.")
def simulate(
    trace: str, cluster: str | None, policy: str, table: Path | None, ideal: bool, round_s: float, look_s: float,
    move_s: float | None, start_s: float, unknown: bool, error: float, mtbf_h: float | None, repair_s: float | None,
    checkpoint_s: float | None, stragglers: float | None, straggler_h: float | None, straggler_s: float | None, seeds: int,
    compress: float, first: int | None, unseen_s: float | None, report: Path | None, json_: Path | None,
) -> int:  # fmt: skip
    """Run a TRACE of jobs on a cluster that need not exist, in virtual time, with the code that decides in a live one.

    \b
      restow simulate jobs.csv --cluster 8x4 --policy fifo,las,restow
      restow simulate gavel.trace --table simulation_throughputs.json --cluster 8x8:V100 --move-s 60
      restow simulate workload-6.csv --table pollux/simulator/traces --cluster 16x4 --round 60 --policy las
      restow simulate sacct.txt --cluster 16x8 --policy examples/policies/mine.py --json figures.json
      restow snapshot > now.json; restow simulate now.json --policy restow,srtf --report now.html

    A trace is a CSV of your own (id,submitted_s,workers,duration_s), the output of
    sacct --parsable2 --format=JobID,User,Submit,ElapsedRaw,AllocTRES, or a file of one of the published ones, which are
    known by their columns: Gavel, Shockwave, Pollux, Philly, ITP, ElasticFlow, Muri, Tiresias, Morphling, FGD;
    random:jobs=1000,gap=60,seed=3 makes one up. What restow snapshot printed of a live cluster is simulated on from there.
    The same command prints the same figures on any machine, but for the times that policies think.
    """
    times_s = {"--round": round_s, "--look": look_s, "--move-s": move_s or 0.0, "--start-s": start_s, "--unseen-s": unseen_s or 0.0}
    _check(times_s, error, seeds, first)
    losses = losses_of(mtbf_h, repair_s, checkpoint_s)
    slow = stragglers_of(stragglers, straggler_h, straggler_s)
    names = [name.strip() for name in policy.split(",") if name.strip()]
    if not names:
        raise SpecError("--policy names nothing; write for example --policy fifo,las")
    if seeds > 1 and not (error or losses.mtbf_s or slow.times > 1.0):
        raise SpecError(f"--seeds {seeds} says nothing without --error, --mtbf-h or --stragglers: all runs would be the same")
    files.check("--json", json_)
    files.check("--report", report)
    if is_snapshot(trace):
        given = {"--cluster": cluster, "--table": table, "--ideal": ideal, "--first": first, "--compress": compress != 1.0}
        subject = _standing(trace, [name for name, value in given.items() if value], unseen_s)
        world: Callable[[], World] = partial(Profiled, subject.machines)
    else:
        subject = _traced(trace, cluster, compress, first, unseen_s)
        world = _world(table, ideal, subject.trace.layout)
    for name in names:
        find_policy(name)  # what is wrong with one is said before anything runs
    delays = Delays(start_s=start_s, move_s=move_s, resume_s=move_s or 0.0)
    config = SimConfig(
        round_s=round_s, look_s=look_s, knows_total=not unknown, delays=delays, error=error, begins_s=subject.begins_s,
        losses=losses, stragglers=slow,
    )  # fmt: skip
    runs = [
        Run(
            trace=subject.trace, machines=subject.machines, world=world, policy=name, config=replace(config, seed=seed),
            is_recorded=report is not None,
        )
        for name in names for seed in range(seeds)
    ]  # fmt: skip
    machines = subject.machines
    about = [str(subject.trace), f"{len(machines.nodes)} machines, {machines.devices} devices", *subject.notes]
    click.echo("\n".join(about), err=True)
    results = run_all(runs)
    print_table(runs, results)
    if json_:
        files.write_json(json_, runs, results)
    if report:
        files.write_report(report, about, runs, results)
    return 0


def _check(times_s: dict[str, float], error: float, seeds: int, first: int | None) -> None:
    for name, value in times_s.items():
        if not 0 <= value < float("inf"):
            raise SpecError(f"{name} is {value:g}; write seconds, 0 or more")
    if not 0 <= error < 1:
        raise SpecError(f"--error is {error:g}; write a part of 0 or more and below 1, for example 0.2")
    for name, count in (("--seeds", seeds), ("--first", first)):
        if count is not None and count < 1:
            raise SpecError(f"{name} is {count}; it must be 1 or more")


def _traced(trace: str, cluster: str | None, compress: float, first: int | None, unseen_s: float | None) -> Subject:
    if unseen_s is not None:
        raise SpecError("--unseen-s says nothing of a trace: it tells how long each job is")
    if cluster is None:
        raise SpecError("--cluster is missing; write for example --cluster 8x4")
    found = find_trace(trace)
    if compress != 1.0:
        found = found.compressed(compress)
    if first:
        found = replace(found, rows=found.rows[:first])
    return Subject(trace=found, machines=read_machines(cluster))


def _standing(path: str, given: list[str], unseen_s: float | None) -> Subject:
    """`given`: options that are for traces only."""
    if given:
        raise SpecError(f"{given[0]} says nothing of a snapshot: it has its own machines, jobs and speeds")
    found = read_standing(Path(path), unseen_s)
    return Subject(trace=found.trace, machines=found.machines, begins_s=found.begins_s, notes=found.notes)


def _world(table: Path | None, ideal: bool, layout: str) -> Callable[[], World]:
    if table is None:
        if ideal:
            raise SpecError("--ideal says nothing without --table: without one nobody loses by being spread")
        return partial(Recorded)
    if table.is_dir():
        return partial(PolluxWorld, table)
    return partial(ShockwaveWorld if layout == "shockwave" else GavelWorld, table, spreads=not ideal)  # of the same tables
