"""Move a training job of three ranks while it trains, by restow and by its rivals, and say what each move cost.

    python bench/switch.py --json switch.json --plot switch.png
    python bench/switch.py --json switch.json --cases local-100MB --systems restow,torchrun_restart --moves 5

All systems run in the same lab (two nodes, a 200 Mbit/s link), move the same model with the same data, and are measured by the
same function (timeline.py). README.md says what each column means.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench import report, script_diff, timeline  # noqa: E402
from bench.cases import CASES, RATE_BITS_PER_S, WORLD_SIZE, Case  # noqa: E402
from bench.floor import floor_s  # noqa: E402
from bench.options import new_file  # noqa: E402
from bench.place import Here  # noqa: E402
from bench.run import RunFailed  # noqa: E402
from bench.systems.base import System, Trial  # noqa: E402
from bench.systems.restow import Restow  # noqa: E402
from bench.systems.torchft import TorchFT  # noqa: E402
from bench.systems.torchrun import DcpAsync, TorchrunElastic, TorchrunRestart  # noqa: E402

SYSTEMS: dict[str, type[Any]] = {
    system.name: system for system in (Restow, TorchrunRestart, DcpAsync, TorchrunElastic, TorchFT)
}
RIVALS = tuple(name for name in SYSTEMS if name != "restow")


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, _interrupt)  # so that what was started is ended
    rows: list[dict[str, Any]] = []
    folder = options.keep or Path(tempfile.mkdtemp(prefix="restow-bench-"))
    try:
        for case in options.cases:
            for system in options.systems:
                if case.fill == "shadow" and system.name != "restow":
                    continue  # to a rival this is local-100MB once more
                print(f"{case.name}: {system.name} ...", file=sys.stderr, flush=True)
                moves = options.moves if system.name == "restow" else options.rival_moves
                rows.append(row(system, case, folder / case.name, moves, options.lab))
                report.write_json(options.json, rows)
                print(report.table(rows[-1:]), file=sys.stderr, flush=True)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(report.table(rows))
    if options.plot:
        report.plot(rows, options.plot)


def row(system: System, case: Case, folder: Path, moves: int, lab: bool) -> dict[str, Any]:
    """One system in one case: medians over its moves, or the reason why there are none."""
    about = {
        "system": system.name,
        "case": case.name,
        "lines_changed": script_diff.lines_changed(system.script),
        "note": system.note,
        **dict.fromkeys(REQUIRED),
    }
    if reason := system.why_not():
        return {**about, "error": reason}
    try:
        with place(lab) as where:
            return {**about, **measured(system, case, where, folder, moves)}
    except (RunFailed, timeline.TooFewSteps) as error:
        return {**about, "error": str(error)}
    except Exception as error:  # one system's failure is a row that says so, not the end of the others
        traceback.print_exc()
        return {**about, "error": f"{type(error).__name__}: {error}"[:300]}


REQUIRED = (
    "state_bytes", "downtime_s", "lost_step_s", "lost_steps", "wire_bytes", "lower_bound_bytes", "bit_identical", "floor_s",
)  # fmt: skip


def measured(system: System, case: Case, where: Any, folder: Path, moves: int) -> dict[str, Any]:
    """Run the moves and the run that never moves; the fields of a row."""
    options = [f"--state-mb={case.state_mb:g}"]
    trials = list(_costed(system.trials(case, where, folder, moves, options)))
    reference = system.reference(case, where, folder, options)
    state_bytes = max(trial["state_bytes"] for trial in trials) or round(case.state_mb * 1e6)
    fields = (
        "downtime_s", "pause_s", "lost_step_s", "lost_steps", "wire_bytes", "idle_wire_bytes", "step_before_s", "step_after_s",
    )  # fmt: skip
    same = [timeline.same_run(trial["marks"], trial["digests"], reference.marks, reference.digests) for trial in trials]
    differs = [timeline.first_difference(trial["marks"], reference.marks) for trial in trials]
    return {
        **{name: median(trial[name] for trial in trials) for name in fields},
        "state_bytes": state_bytes,
        "lower_bound_bytes": case.lower_bound_bytes(state_bytes),
        "floor_s": floor_s(case, state_bytes),
        "bit_identical": all(same),
        "first_loss_that_differs": min((step for step in differs if step is not None), default=None),
        "worst_downtime_s": max(trial["downtime_s"] for trial in trials),
        "moves": [{name: trial[name] for name in (*fields, "told")} for trial in trials],
    }


def _costed(trials: Iterable[Trial]) -> Iterator[dict[str, Any]]:
    for trial in trials:
        cost = timeline.cost(trial.marks, WORLD_SIZE, trial.began_s, since_s=trial.since_s, until_s=trial.until_s)
        yield {
            "downtime_s": cost.downtime_s,
            "pause_s": cost.pause_s,
            "lost_step_s": cost.lost_step_s,
            "lost_steps": cost.lost_steps,
            "step_before_s": cost.step_before_s,
            "step_after_s": cost.step_after_s,
            "wire_bytes": sum(trial.wire.between(*gap) for gap in cost.gaps_s),
            "idle_wire_bytes": _idle_wire_bytes(trial, cost),
            "marks": trial.marks,
            "digests": trial.digests,
            "state_bytes": trial.state_bytes,
            "told": trial.told,
        }


def _idle_wire_bytes(trial: Trial, cost: timeline.Cost) -> int:
    """What crosses in as long a time while the job, which is on one machine by then, just trains: words of the system itself."""
    begin_s = cost.gaps_s[-1][1]
    end_s = min(trial.until_s, max(mark.end_s for mark in trial.marks))
    span_s = sum(end_s - begin_s for begin_s, end_s in cost.gaps_s)
    return round(trial.wire.between(begin_s, end_s) / (end_s - begin_s) * span_s) if end_s > begin_s else 0


def place(lab: bool) -> Any:
    """The lab, or this machine alone."""
    if not lab:
        return Here()
    from restow.lab import Lab

    # no devices of the lab's own: the ranks of every system alike share all cores, unpinned
    return Lab(nodes=2, devices=0, rate_bits_per_s=RATE_BITS_PER_S)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the rows here")
    parser.add_argument("--plot", type=Path, help="draw them here (PNG or SVG)")
    parser.add_argument("--cases", default=",".join(CASES), help="default: all")
    parser.add_argument("--systems", default="restow", help="default: restow; its rivals are added by --rivals")
    parser.add_argument("--rivals", default=",".join(RIVALS), help="default: all; 'none' for none")
    parser.add_argument("--moves", type=int, default=5, help="measured moves of restow per case")
    parser.add_argument("--rival-moves", type=int, default=3, help="measured moves of each rival per case")
    parser.add_argument("--no-lab", dest="lab", action="store_false", help="on this machine alone, without a shaped link")
    parser.add_argument("--keep", type=Path, help="keep every line that the ranks printed in this folder")
    options = parser.parse_args()
    options.cases = [CASES[name] for name in _names(parser, "--cases", options.cases, CASES)]
    wanted = [*options.systems.split(","), *options.rivals.split(",")]
    names = _names(parser, "--systems or --rivals", ",".join(dict.fromkeys(wanted)), SYSTEMS)
    options.systems = [SYSTEMS[name]() for name in names]
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return options


def _names(parser: argparse.ArgumentParser, option: str, text: str, known: dict[str, Any]) -> list[str]:
    names = [name for name in text.split(",") if name and name != "none"]
    for name in names:
        if name not in known:
            parser.error(f"{option} names {name!r}; choose from {', '.join(known)}")
    return names


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
