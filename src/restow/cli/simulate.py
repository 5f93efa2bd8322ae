"""The command simulate: a trace of jobs on a cluster that need not exist, under one policy or several."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from restow.errors import Refused, SpecError
from restow.own_policies import Bounded, find_policy
from restow.sim.agents import Delays
from restow.sim.gavel import GavelWorld
from restow.sim.machines import read_machines
from restow.sim.outcome import Outcome
from restow.sim.pollux import PolluxWorld
from restow.sim.shockwave import ShockwaveWorld
from restow.sim.simulation import SimConfig, Simulation
from restow.sim.traces import Trace, find_trace
from restow.sim.world import Recorded, World

DECISION_S_MAX = 60.0
PR_SET_PDEATHSIG = 1  # of prctl(2)
HOURS_FROM_S, MINUTES_FROM_S = 7200.0, 120.0


@dataclass(frozen=True, slots=True)
class Run:
    """What one process simulates; picklable."""

    trace: Trace
    cluster: str
    policy: str
    table: str
    ideal: bool
    config: SimConfig


@click.command()
@click.argument("trace")
@click.option("--cluster", required=True, metavar="SPEC", help="8x4, 5x8:V100,5x8:K80, or a YAML file (docs/guides/simulate.md).")
@click.option("--policy", default="restow", metavar="P[,P...]", help="Names, or files such as mine.py; default: restow.")
@click.option("--table", type=click.Path(path_type=Path), help="Measured speeds: Gavel's JSON, or the folder of Pollux's traces.")
@click.option("--ideal", is_flag=True, help="With --table: a gang on several machines loses nothing, as in Gavel's own simulator.")
@click.option("--round", "round_s", type=float, default=0.0, metavar="S", help="Decide only so often, not at each event.")
@click.option("--look", "look_s", type=float, default=0.0, metavar="S", help="Decide at least so often: for las.")
@click.option("--move-s", type=float, metavar="S", help="What a move, or a return, costs its job; default: as predicted.")
@click.option("--start-s", type=float, default=0.0, metavar="S", help="From a launch to the first step.")
@click.option("--unknown", is_flag=True, help="Jobs do not say how long they are.")
@click.option("--error", type=float, default=0.0, metavar="PART", help="Policies believe speeds that are wrong by up to this part.")
@click.option("--seeds", type=int, default=1, metavar="N", help="So many runs of each, with other errors.")
@click.option("--compress", type=float, default=1.0, metavar="X", help="Jobs arrive X times as fast.")
@click.option("--first", type=int, metavar="N", help="Only the first N jobs.")
@click.option("--json", "json_", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write all figures here.")
def simulate(
    trace: str, cluster: str, policy: str, table: Path | None, ideal: bool, round_s: float, look_s: float, move_s: float | None,
    start_s: float, unknown: bool, error: float, seeds: int, compress: float, first: int | None, json_: Path | None,
) -> int:  # fmt: skip
    """Run a TRACE of jobs on a cluster that need not exist, in virtual time, with the code that decides in a live one.

    \b
      restow simulate jobs.csv --cluster 8x4 --policy fifo,las,restow
      restow simulate gavel.trace --table simulation_throughputs.json --cluster 8x8:V100 --move-s 60
      restow simulate workload-6.csv --table pollux/simulator/traces --cluster 16x4 --round 60 --policy las
      restow simulate sacct.txt --cluster 16x8 --policy examples/policies/mine.py --json figures.json

    A trace is a CSV of your own (id,submitted_s,workers,duration_s), the output of
    sacct --parsable2 --format=JobID,User,Submit,ElapsedRaw,AllocTRES, or a file of one of the published ones, which are
    known by their columns: Gavel, Shockwave, Pollux, Philly, ITP, ElasticFlow, Muri, Tiresias, Morphling, FGD;
    random:jobs=1000,gap=60,seed=3 makes one up.
    The same command prints the same figures on any machine, but for the times that policies think.
    """
    _check({"--round": round_s, "--look": look_s, "--move-s": move_s or 0.0, "--start-s": start_s}, error, seeds, first)
    found = find_trace(trace)
    if compress != 1.0:
        found = found.compressed(compress)
    if first:
        found = replace(found, rows=found.rows[:first])
    machines = read_machines(cluster)
    names = [name.strip() for name in policy.split(",") if name.strip()]
    if not names:
        raise SpecError("--policy names nothing; write for example --policy fifo,las")
    if ideal and not table:
        raise SpecError("--ideal says nothing without --table: without one nobody loses by being spread")
    if seeds > 1 and not error:
        raise SpecError(f"--seeds {seeds} says nothing without --error: all runs would be the same")
    if json_ and (json_.is_dir() or not json_.absolute().parent.is_dir()):
        raise SpecError(f"--json {json_} cannot be written: it is a folder, or lies in none that is there")
    for name in names:
        find_policy(name)  # what is wrong with one is said before anything runs
    delays = Delays(start_s=start_s, move_s=move_s, resume_s=move_s or 0.0)
    config = SimConfig(round_s=round_s, look_s=look_s, knows_total=not unknown, delays=delays, error=error)
    runs = [
        Run(found, cluster, name, str(table or ""), ideal, replace(config, seed=seed)) for name in names for seed in range(seeds)
    ]
    click.echo(f"{found}\n{len(machines.nodes)} machines, {machines.devices} devices", err=True)
    outcomes = _run_all(runs)
    _print(runs, outcomes)
    if json_:
        rows = [
            {"trace": found.path, "policy": run.policy, "seed": run.config.seed, **outcome.figures()}
            for run, outcome in zip(runs, outcomes, strict=True)
        ]
        try:
            json_.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        except OSError as failure:
            raise SpecError(f"--json {json_} cannot be written: {failure.strerror}") from None
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


def _world(run: Run) -> World:
    if not run.table:
        return Recorded()
    if Path(run.table).is_dir():
        return PolluxWorld(Path(run.table))
    gavel = ShockwaveWorld if run.trace.layout == "shockwave" else GavelWorld  # of the same tables
    return gavel(Path(run.table), spreads=not run.ideal)


def _simulation(run: Run) -> Simulation:
    policy = Bounded(find_policy(run.policy), DECISION_S_MAX)
    return Simulation(run.trace.rows, read_machines(run.cluster), _world(run), policy, run.config)


def _run(run: Run, tell: Callable[[int, float], None] | None = None) -> Outcome:
    try:
        return _simulation(run).run(tell)
    except Refused as error:
        raise Refused(f"{run.policy}: {error}") from None


def _run_all(runs: Sequence[Run]) -> list[Outcome]:
    """One with a bar of its jobs, or several at once, each in a process of its own."""
    if len(runs) == 1:
        with _progress(f"{runs[0].policy}: ", len(runs[0].trace.rows)) as tell:
            return [_run(runs[0], tell)]
    with _progress("", len(runs)) as tell:
        return _run_beside(runs, tell)


def _run_beside(runs: Sequence[Run], tell: Callable[[int, float], None]) -> list[Outcome]:
    """As many at a time as there are cores. Whatever ends this ends them: no pool, whose own end waits for its workers."""
    waiting, outcomes = list(enumerate(runs)), dict[int, Outcome]()
    running: dict[Any, tuple[int, Any]] = {}  # our end of its line → its number, its process
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                number, run = waiting.pop(0)
                ours, theirs = multiprocessing.Pipe(duplex=False)
                process = multiprocessing.get_context("fork").Process(target=_work, args=(run, theirs, os.getpid()))
                process.start()
                theirs.close()
                running[ours] = number, process
            ready: list[Any] = multiprocessing.connection.wait(list(running))
            for line in ready:
                number, process = running.pop(line)
                try:
                    said: Any = line.recv()
                except EOFError:
                    why = "its run ended without a word: the policy ended its process, or the memory was not enough"
                    raise Refused(f"{runs[number].policy}: {why}") from None
                process.join()
                if isinstance(said, BaseException):
                    raise said
                outcomes[number] = said
                tell(len(outcomes), 0.0)
    finally:
        for _, process in running.values():
            process.kill()
    return [outcomes[number] for number in range(len(runs))]


def _work(run: Run, line: Any, parent: int) -> None:
    """In a process of its own. Ctrl-C is the parent's business, and without a parent there is nobody to work for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    try:
        line.send(_run(run))
    except Exception as error:  # told by the parent, as if it had happened there
        line.send(error)


@contextmanager
def _progress(words: str, total: int) -> Iterator[Any]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, now_s: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    done_of = TextColumn(words + "{task.completed}/{task.total}")
    columns = (done_of, BarColumn(), TextColumn("{task.fields[day]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, day="")

        def tell(done: int, now_s: float) -> None:
            bar.update(task, completed=done, day=f"day {now_s / 86400:.1f}" if now_s else "")

        yield tell


def _print(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> None:
    head = ("policy", "avg JCT", "p50", "p99", "makespan", "queueing", "busy", "moves", "suspended", "decision p99", "simulated in")
    lines: list[tuple[str, ...]] = [head]
    several = len({run.config.seed for run in runs}) > 1
    for run, outcome in zip(runs, outcomes, strict=True):
        figures = outcome.figures()
        lines.append((
            run.policy + (f" seed {run.config.seed}" if several else ""), *(_time(figures[key]) for key in (
                "avg_jct_s", "p50_jct_s", "p99_jct_s", "makespan_s", "avg_queueing_s")),
            f"{100 * figures['utilization']:.0f} %", str(figures["moves"]), str(figures["suspensions"]),
            f"{1e3 * figures['decide_p99_s']:.1f} ms", f"{figures['wall_s']:.2f} s",
        ))  # fmt: skip
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        click.echo("  ".join(cells))


def _time(seconds: float) -> str:
    if seconds >= HOURS_FROM_S:
        return f"{seconds / 3600:.2f} h"
    return f"{seconds / 60:.1f} min" if seconds >= MINUTES_FROM_S else f"{seconds:.1f} s"
