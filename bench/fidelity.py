"""Is the simulator right about the live system? One small workload, live in the lab and in the simulator, job by job.

    python bench/fidelity.py --json fidelity.json
    python bench/fidelity.py --json again.json --calibration fidelity.json    # with what was measured of the kinds of jobs then
    python bench/fidelity.py --json again.json --live fidelity.json           # and its live run, too: only simulates

Two machines of three and two devices, 200 Mbit/s between them, and ten jobs of four kinds that come over a minute or two: gangs of
one to three workers, some of which the link slows down when they are scattered, some that may share their devices. The default
policy decides in both. The simulator is told of the jobs what was measured of one of each kind alone (steps on one machine and on
two, bytes, state, how long it takes to start, to end, to have twins ready), before the workload ran; of sharing it knows turns at a
device, first come, first served; of moves what perf.py predicts. Nothing is fitted to the live run.

mean_abs_error: of the completion times (submitted to done), mean over the jobs of |simulated / live - 1|. README.md says more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench.options import new_file  # noqa: E402
from bench.replay import calibration, live  # noqa: E402
from bench.replay.deeds import Deeds  # noqa: E402
from bench.replay.simulated import Measured, simulate  # noqa: E402
from bench.replay.workload import DEVICES, KINDS, RATE_BITS_PER_S, WORKLOAD  # noqa: E402
from bench.run import RunFailed  # noqa: E402
from bench.systems.restow import Cluster  # noqa: E402
from restow.frozen import from_wire, to_wire  # noqa: E402
from restow.lab import Lab  # noqa: E402
from restow.sim.standing import machines_of  # noqa: E402


def main() -> None:
    options = _options()
    found = options.live or _run(options)
    measured = {name: Measured.from_json(wire) for name, wire in found["calibration"].items()}
    known = from_wire(found["cluster"])
    runs = {
        "live": live.deeds(known, found["ids"], found["events"]),
        "simulated": simulate(WORKLOAD, KINDS, measured, machines_of(known)),
    }
    jobs = {way: {name: asdict(deeds) for name, deeds in run.items()} for way, run in runs.items()}
    figures = {**compared(**runs), "failures": live.failures(found["events"])}
    _write(options.json, {**figures, "jobs": jobs, **found})
    print("\n".join(table(**runs, figures=figures)))


def _run(options: argparse.Namespace) -> dict[str, Any]:
    """Calibration and the live run, as they are written. Each is written as soon as it is there."""
    folder = Path(tempfile.mkdtemp(prefix="restow-bench-"))
    devices = {node: [{"index": index, "kind": "cpu"} for index in range(count)] for node, count in DEVICES.items()}
    try:
        with (
            Lab(nodes=len(DEVICES), devices=0, rate_bits_per_s=RATE_BITS_PER_S) as place,
            Cluster(place, nodes=tuple(DEVICES), devices=devices) as cluster,
        ):
            measured = options.calibration
            if not measured:
                _say("each kind of job alone ...")
                found = calibration.measure(cluster, KINDS, folder)
                measured = {name: kind.to_json() for name, kind in found.items()}
            known = live.known_of(cluster)
            written = {"calibration": measured, "cluster": to_wire(known)}
            _write(options.json, written)
            _say(f"{len(WORKLOAD)} jobs, live ...")
            return _write(options.json, {**written, **live.run(cluster, WORKLOAD, KINDS, folder)})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what will be read there again."""
    text = json.dumps(found, indent=1)
    path.write_text(text + "\n")
    return dict(json.loads(text))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- numbers


def compared(live: Mapping[str, Deeds], simulated: Mapping[str, Deeds]) -> dict[str, Any]:
    """The figures of the comparison. Jobs that only one of both knows are our own mistake."""
    assert live.keys() == simulated.keys()
    errors = {name: simulated[name].jct_s / deeds.jct_s - 1.0 for name, deeds in live.items()}
    both = {"live": live, "simulated": simulated}
    return {
        "mean_abs_error": sum(map(abs, errors.values())) / len(errors),
        "errors": errors,
        "moves": {way: sum(len(deeds.moves) for deeds in run.values()) for way, run in both.items()},
        "consolidations": {way: sum(deeds.consolidations for deeds in run.values()) for way, run in both.items()},
        "pairs": {way: len(pairs_of(run)) for way, run in both.items()},
        "same_moves": all(live[name].ways == simulated[name].ways for name in live),
        "same_pairs": pairs_of(live) == pairs_of(simulated),
    }


def pairs_of(run: Mapping[str, Deeds]) -> set[tuple[str, str]]:
    """Who shared devices with whom."""
    return {(min(name, other), max(name, other)) for name, deeds in run.items() for other in deeds.partners}


def table(live: Mapping[str, Deeds], simulated: Mapping[str, Deeds], figures: Mapping[str, Any]) -> list[str]:
    lines = [f"{'job':<5}{'kind':<8}{'live':>9}{'simulated':>11}{'error':>8}  what happened (live | simulated, where it differs)"]
    for arrival in WORKLOAD:
        one, other = live[arrival.name], simulated[arrival.name]
        happened = words(one) if words(one) == words(other) else f"{words(one)} | {words(other)}"
        error = figures["errors"][arrival.name]
        figures_ = f"{one.jct_s:>7.1f} s{other.jct_s:>9.1f} s{error:>8.1%}"
        lines.append(f"{arrival.name:<5}{arrival.kind:<8}{figures_}  {happened}".rstrip())
    counts = [
        f"{what} {figures[key]['live']} live, {figures[key]['simulated']} simulated"
        for what, key in (("moves:", "moves"), ("to fewer machines:", "consolidations"), ("pairs that shared:", "pairs"))
    ]
    lines.append("; ".join(counts))
    lines.append(f"mean_abs_error {figures['mean_abs_error']:.1%}")
    lines += [f"live, and not known to the simulator: {failure}" for failure in figures["failures"]]
    for what, key in (("no move to fewer machines", "consolidations"), ("no pair that shared its devices", "pairs")):
        if not figures[key]["live"]:
            lines.append(f"{what} was seen live: this run does not show what it should")
    return lines


def words(deeds: Deeds) -> str:
    moved = [f"{now} → {then}" for now, then in deeds.ways]
    shared = [f"shared with {', '.join(deeds.partners)}"] if deeds.partners else []
    return "; ".join(moved + shared)


# ---------------------------------------------------------------- options


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the numbers here")
    parser.add_argument("--calibration", type=Path, help="what an earlier run has measured of the kinds of jobs: its --json")
    parser.add_argument("--live", type=Path, help="an earlier run, of which only the simulation is made again: its --json")
    options = parser.parse_args()
    try:
        options.calibration = options.calibration and _part(options.calibration, ("calibration",))["calibration"]
        options.live = options.live and _part(options.live, ("calibration", "cluster", "ids", "events"))
    except ValueError as error:
        parser.error(str(error))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return options


def _part(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """These keys of a file that this command wrote. Raises ValueError, which says what is wrong with it."""
    try:
        written: Any = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(written, dict) or not set(keys) <= written.keys():
        raise ValueError(f"{path} holds no {' and '.join(keys)}; give what --json of an earlier run has written")
    if not KINDS.keys() <= written["calibration"].keys():
        raise ValueError(f"{path} is of another workload: its jobs are of the kinds {', '.join(written['calibration'])}")
    return {key: written[key] for key in keys}


if __name__ == "__main__":
    try:
        main()
    except RunFailed as error:
        sys.exit(f"bench: {error}")
