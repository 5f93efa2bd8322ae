"""What came of the runs of `restow simulate`, a line each."""

from __future__ import annotations

from collections.abc import Sequence

import click

from restow.cli.simulate_runs import Result, Run
from restow.sim.report.words import duration

HEAD = ("policy", "avg JCT", "p50", "p99", "makespan", "queueing", "busy", "moves", "suspended", "decision p99", "simulated in")
LOSSES = ("failures", "lost steps", "lost device time")
STRAGGLERS = ("stragglers",)


def print_table(runs: Sequence[Run], results: Sequence[Result]) -> None:
    fails = any(run.config.losses.mtbf_s for run in runs)
    slows = any(run.config.stragglers.times > 1.0 for run in runs)
    lines: list[tuple[str, ...]] = [(*HEAD, *(LOSSES if fails else ()), *(STRAGGLERS if slows else ()))]
    several = len({run.config.seed for run in runs}) > 1
    for run, (outcome, _) in zip(runs, results, strict=True):
        figures = outcome.figures()
        lines.append((
            run.policy + (f" seed {run.config.seed}" if several else ""), *(duration(figures[key]) for key in (
                "avg_jct_s", "p50_jct_s", "p99_jct_s", "makespan_s", "avg_queueing_s")),
            f"{100 * figures['utilization']:.0f} %", str(figures["moves"]), str(figures["suspensions"]),
            f"{1e3 * figures['decide_p99_s']:.1f} ms", f"{figures['wall_s']:.2f} s",
            *((str(figures["failures"]), str(figures["lost_steps"]), duration(figures["lost_device_s"])) if fails else ()),
            *((str(figures["stragglers"]),) if slows else ()),
        ))  # fmt: skip
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        click.echo("  ".join(cells))
