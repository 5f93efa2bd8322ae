"""Several training jobs on the same devices: alone, in turns, packed freely, and through the gate, in windows that alternate.

    python bench/multiplex.py --json multiplex.json
    python bench/multiplex.py --json multiplex.json --cases balanced,overlap --cycles 2 --window-s 6

Gangs of two ranks lie on the same two devices, one on each of two nodes of the lab, joined by 200 Mbit/s. Everything is
measured in one run: each cycle has a window for each job alone and one for each mode, and a mode's speeds are put against the
alone windows of its own cycle. README.md says what each column means.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench.options import new_file  # noqa: E402
from bench.place import ROOT, set_rate  # noqa: E402
from bench.run import RunFailed  # noqa: E402
from bench.systems.restow import Cluster, Watched  # noqa: E402
from bench.timeline import said  # noqa: E402
from restow.bound import Demand, best_total, fair_speed  # noqa: E402
from restow.lab import Lab  # noqa: E402

RATE_BITS_PER_S = 200e6
SCRIPT = ROOT / "bench" / "multiplex_job.py"
SETTLE_S = 2.0  # after a change, not looked at: who waits for whom is to be the same in each step again ...
SETTLE_STEPS = 2  # ... nor so many steps of each window
MODES = {  # what each window's jobs are told; `gate`: turns inside a step, with the link's gate where restow chooses to
    "turns": {"mode": "time-slice"},
    "free": {"mode": "free"},
    "gate": {"mode": "interleave", "link": "auto"},
    "devices": {"mode": "interleave", "link": "off"},
    "link": {"mode": "interleave", "link": "on"},
    "auto": {"mode": "auto"},  # nothing: restow measures what it thinks worth measuring, and chooses
}
CHOICE_S = 90.0  # for restow to have chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one step of a job takes. The payload crosses the link once per step: 3.1 MB take about 125 ms."""

    device_ms: float
    payload_mb: float
    layers: int = 1
    stall_ms: float = 0.0
    jitter: float = 0.0

    @property
    def options(self) -> list[str]:
        return [
            f"--device-ms={self.device_ms:g}", f"--payload-mb={self.payload_mb:g}", f"--layers={self.layers}",
            f"--stall-ms={self.stall_ms:g}", f"--jitter={self.jitter:g}",
        ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    loads: tuple[Load, ...]
    device: str = "virtual"


def _twice(load: Load) -> tuple[Load, Load]:
    return load, load


CASES = {
    case.name: case
    for case in (
        Case(name="balanced", loads=_twice(Load(device_ms=130, payload_mb=3.1))),
        Case(name="unequal", loads=(Load(device_ms=200, payload_mb=1.1), Load(device_ms=50, payload_mb=4.6))),
        Case(name="network-bound", loads=_twice(Load(device_ms=60, payload_mb=3.1))),
        Case(name="compute-bound", loads=_twice(Load(device_ms=200, payload_mb=1.35))),
        Case(name="overlap", loads=_twice(Load(device_ms=130, payload_mb=3.1, layers=4))),
        Case(name="jitter", loads=_twice(Load(device_ms=130, payload_mb=3.1, jitter=0.3))),
        Case(name="three", loads=(Load(device_ms=80, payload_mb=2.0, stall_ms=80),) * 3),
        Case(name="core-balanced", loads=_twice(Load(device_ms=130, payload_mb=3.1)), device="core"),
        Case(name="core-network-bound", loads=_twice(Load(device_ms=55, payload_mb=3.1)), device="core"),
    )
}


@dataclass(slots=True)
class Window:
    """What one job did in one window: when its steps ended (of rank 0), and the processor time of each."""

    name: str = ""
    ends_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @property
    def period_s(self) -> float:
        """Seconds per step: the whole stretch, since steps come in bursts where jobs take turns."""
        ends = self.ends_s[SETTLE_STEPS:]
        if len(ends) < 3:
            raise RunFailed(f"a window ({self.name}) has only {len(self.ends_s)} steps of a job; make --window-s longer")
        return (ends[-1] - ends[0]) / (len(ends) - 1)


def main() -> None:
    options = _options()
    rows = []
    folder = Path(tempfile.mkdtemp(prefix="restow-bench-"))
    try:
        for case in options.cases:
            print(f"{case.name} ...", file=sys.stderr, flush=True)
            try:
                rows.append(measured(case, options, folder / case.name))
            except RunFailed as error:
                rows.append({"case": case.name, "jobs": len(case.loads), "error": str(error)})
            print(line(rows[-1]), file=sys.stderr, flush=True)
            options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(HEAD)
    for row in rows:
        print(line(row))


# ---------------------------------------------------------------- one case


class Control:
    """The page by which jobs are held; see multiplex_job.py."""

    def __init__(self, path: Path, jobs: int):
        path.write_bytes(bytes(4096))
        descriptor = os.open(path, os.O_RDWR)
        self._words = memoryview(mmap.mmap(descriptor, 4096)).cast("q")
        os.close(descriptor)
        self.path, self._jobs = path, jobs

    def let_run(self, numbers: Sequence[int]) -> None:
        for number in range(self._jobs):
            self._words[number * 2] = 0 if number in numbers else 1


def measured(case: Case, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All windows of one case, then whether the numbers are those of the jobs alone."""
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(Lab(nodes=2, devices=0, rate_bits_per_s=RATE_BITS_PER_S))
        devices = {"m1": [{"index": 0, "core": 0}], "m2": [{"index": 0, "core": (os.cpu_count() or 1) - 1}]}
        cluster = stack.enter_context(Cluster(place, devices=devices))
        control = Control(folder / "control", len(case.loads))
        control.let_run(range(len(case.loads)))
        jobs = [Watched(cluster, submit(cluster, case, load, number, control, folder)) for number, load in enumerate(case.loads)]
        for job in jobs:
            job.wait_until("its first steps", lambda view: view["step"] >= 25, timeout_s=180)
        await_looks(jobs)
        numbers = range(len(jobs))
        spans: list[tuple[str, tuple[int, ...], float, float]] = []
        chosen: list[str] = []
        for _ in range(options.cycles):
            for number in numbers:
                spans.append(window(f"alone{number}", (number,), control, options.window_s))
            for name in options.modes:
                for job in jobs:
                    cluster.client.share(job.job, **MODES[name], quantum_s=options.quantum_s)
                if name == "auto":
                    chosen.append(choice(jobs, control))
                spans.append(window(name, tuple(numbers), control, options.window_s))
        made = [job.show()["step"] for job in jobs]
        lines = [job.lines() for job in jobs]
        for job in jobs:
            cluster.client.cancel(job.job)
        for job in jobs:
            cluster.client.wait(job.job, limit_s=60)
        set_rate(place, None)  # the numbers do not depend on how fast they travel
        same = [
            losses(lines[number], made[number]) == reference(cluster, case, number, made[number], folder)
            for number in numbers
        ]
    numbers_ = numbers_of(case, spans, [list(said(text, "step")) for text in lines])
    return {**numbers_, **({"chosen": chosen} if chosen else {}), "bit_identical": all(same)}


def submit(cluster: Cluster, case: Case, load: Load, number: int, control: Control, folder: Path) -> str:
    more = [f"--control={control.path}"]
    return _submit(cluster, case, load, number, folder, more, {"mode": "interleave"})


def _submit(
    cluster: Cluster, case: Case, load: Load, number: int, folder: Path, more: list[str], share: dict[str, Any]
) -> str:
    source = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    command = (
        sys.executable, str(SCRIPT), f"--number={number}", f"--device={case.device}", f"--page={folder}", *load.options, *more,
    )  # fmt: skip
    spec = {
        "command": command, "name": f"job{number}", "workers": 2, "cwd": str(ROOT), "env": (("PYTHONPATH", source),),
        "migrate": False, "share": share,
    }  # fmt: skip
    return str(cluster.client.submit(spec)["id"])


def await_looks(jobs: Sequence[Watched]) -> None:
    """Until nobody stands still any more for a look at a job that came later: who is held by us then would be waited for."""
    deadline_s = time.monotonic() + CHOICE_S
    while time.monotonic() < deadline_s:
        sharing = [job.client.explain(job.job)["sharing"] or {} for job in jobs]
        if all(not each.get("held_part") for each in sharing) and all(each.get("alone_step_s") for each in sharing[1:]):
            return
        time.sleep(1.0)


def window(name: str, numbers: tuple[int, ...], control: Control, length_s: float) -> tuple[str, tuple[int, ...], float, float]:
    control.let_run(numbers)
    time.sleep(SETTLE_S)
    begin_s = time.monotonic()
    time.sleep(length_s)
    return name, numbers, begin_s, time.monotonic()


def choice(jobs: Sequence[Watched], control: Control) -> str:
    """The mode that restow chose: what it is in once turns were measured, and computing freely too if it began to."""
    control.let_run(range(len(jobs)))
    deadline_s, before = time.monotonic() + CHOICE_S, ""
    while time.monotonic() < deadline_s:
        told = jobs[0].client.explain(jobs[0].job)
        known = {mode for totals in told["tried"].values() for mode in totals}
        mode = str(told["sharing"]["mode"])
        if "interleave" in known and (mode != "free" or "free" in known):
            if mode == before:
                return mode
            before = mode  # a decision may be on its way
        time.sleep(3.0)
    raise RunFailed(f"restow measured nothing of {jobs[0].job} within {CHOICE_S:.0f} s")


def losses(lines: list[str], steps: int) -> list[str]:
    """Every loss of rank 0 and 1 up to `steps`, in order."""
    found = {(mark["rank"], mark["step"]): mark["loss"] for mark in said(lines, "step")}
    return [found.get((rank, step), "") for rank in (0, 1) for step in range(steps - 1)]


def reference(cluster: Cluster, case: Case, number: int, steps: int, folder: Path) -> list[str]:
    """The same job left alone, without device time: that changes when things happen, not what."""
    load = case.loads[number]
    quick = Load(device_ms=0, payload_mb=load.payload_mb, layers=load.layers, jitter=load.jitter)
    job = Watched(cluster, _submit(cluster, case, quick, number, folder, [f"--steps={steps}"], {"mode": "exclusive"}))
    job.wait_until("its end", lambda view: view["state"] == "done", timeout_s=600)
    return losses(job.lines(), steps)


# ---------------------------------------------------------------- numbers


def numbers_of(
    case: Case, spans: Sequence[tuple[str, tuple[int, ...], float, float]], marks: Sequence[Sequence[dict[str, Any]]]
) -> dict[str, Any]:
    """Sums of relative speeds by mode, each against the alone windows of its own cycle; medians over the cycles."""
    count = len(case.loads)
    modes = [name for name in dict.fromkeys(name for name, *_ in spans) if name in MODES]
    per_cycle = count + len(modes)
    cycles = []
    for at in range(0, len(spans), per_cycle):
        cycle = {
            name: [_cut(f"{name}, job {number}, {begin_s:.1f} s", marks[number], begin_s, end_s) for number in numbers]
            for name, numbers, begin_s, end_s in spans[at : at + per_cycle]
        }
        alone = [cycle[f"alone{number}"][0] for number in range(count)]
        speeds = {
            mode: [alone[number].period_s / cycle[mode][number].period_s for number in range(count)] for mode in modes
        }
        cycles.append((alone, speeds))
    demands = [_demand(case, case.loads[number], [alone[number] for alone, _ in cycles]) for number in range(count)]
    bound = best_total(demands)
    totals = {mode: [sum(speeds[mode]) for _, speeds in cycles] for mode in modes}
    gate_speeds = [median(speeds["gate"][number] for _, speeds in cycles) for number in range(count)]
    are_equal = len(set(case.loads)) == 1
    return {
        "case": case.name,
        "jobs": count,
        "device": case.device,
        "overlapped": any(load.layers > 1 for load in case.loads),
        "alone_ms": [round(demand.period_s * 1e3, 1) for demand in demands],
        "device_ms": [round(demand.device_s * 1e3, 1) for demand in demands],
        "network_ms": [round(demand.network_s * 1e3, 1) for demand in demands],
        "bound": bound,
        "bound_at_equal_speeds": count * fair_speed(demands),
        **{mode: median(values) for mode, values in totals.items()},
        **{f"{mode}_each": values for mode, values in totals.items()},
        "gate_speeds": gate_speeds,
        "ratio_to_bound": median(totals["gate"]) / bound,
        "ratio_spread": [min(totals["gate"]) / bound, max(totals["gate"]) / bound],
        "fairness": max(gate_speeds) / min(gate_speeds) - 1 if are_equal else None,
    }


def _cut(name: str, marks: Sequence[dict[str, Any]], begin_s: float, end_s: float) -> Window:
    mine = [mark for mark in marks if mark["rank"] == 0 and begin_s <= mark["end_s"] < end_s]
    return Window(name, ends_s=[mark["end_s"] for mark in mine], cpu_s=[mark["cpu_s"] for mark in mine])


def _demand(case: Case, load: Load, alone: Sequence[Window]) -> Demand:
    """Per step, alone: its period as measured; its device time as set, or on a core all processor time that it took, what
    collectives take included; of the link what the period does not explain, or the bytes by the rate where they are hidden."""
    period_s = median(window.period_s for window in alone)
    device_s = load.device_ms / 1e3
    if case.device == "core":
        device_s = median(cpu_s for window in alone for cpu_s in window.cpu_s[SETTLE_STEPS:])
    wire_s = load.payload_mb * 1e6 * 8 / RATE_BITS_PER_S  # a ring of two sends the payload once each way
    network_s = wire_s if load.layers > 1 else min(wire_s, max(0.0, period_s - device_s - load.stall_ms / 1e3))
    return Demand(period_s=period_s, device_s=device_s, network_s=network_s)


HEAD = (
    f"{'case':<20}{'jobs':>5}{'bound':>8}{'turns':>8}{'free':>8}{'gate':>8}{'of bound':>10}{'spread':>14}{'fairness':>10}"
    "  bit-identical"
)


def line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['case']:<20}{row['jobs']:>5}  {row['error']}"
    fairness = f"{row['fairness']:.1%}" if row["fairness"] is not None else "-"
    spread = f"{row['ratio_spread'][0]:.0%}-{row['ratio_spread'][1]:.0%}"
    chosen = f"; restow chose {', '.join(row['chosen'])}: {row['auto']:.2f}" if "chosen" in row else ""
    return (
        f"{row['case']:<20}{row['jobs']:>5}{row['bound']:>8.2f}{row['turns']:>8.2f}{row['free']:>8.2f}{row['gate']:>8.2f}"
        f"{row['ratio_to_bound']:>10.1%}{spread:>14}{fairness:>10}  {'yes' if row['bit_identical'] else 'NO'}"
        f"{chosen}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the rows here")
    parser.add_argument("--cases", default=",".join(CASES), help="default: all")
    parser.add_argument(
        "--modes", default="turns,free,gate", help=f"of {', '.join(MODES)}; needs these three; auto: what restow chooses of them"
    )
    parser.add_argument("--cycles", type=int, default=3, help="rounds of windows")
    parser.add_argument("--window-s", type=float, default=8.0, help="seconds of each window")
    parser.add_argument("--quantum-s", type=float, default=1.0, help="of a turn where jobs take turns")
    options = parser.parse_args()
    unknown = [name for name in options.cases.split(",") if name not in CASES]
    if unknown:
        parser.error(f"--cases names {unknown[0]!r}; choose from {', '.join(CASES)}")
    options.cases = [CASES[name] for name in options.cases.split(",")]
    options.modes = options.modes.split(",")
    if not {"turns", "free", "gate"} <= set(options.modes) <= set(MODES):
        parser.error(f"--modes is {','.join(options.modes)}; needs turns, free and gate, and knows {', '.join(MODES)} beside them")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return options


if __name__ == "__main__":
    main()
