"""A protected job beside a background job, and a small model being served beside a training job: what the one that matters feels.

    python bench/protect.py --json protect.json

Windows alternate, in one run: the protected job alone, both; the server alone, both. The device of each job is the same core
(`--device core`, the default: real matrix products) or a stand-in for a GPU (`--device virtual`). README.md says more.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench.multiplex import RATE_BITS_PER_S, Control  # noqa: E402
from bench.options import new_file  # noqa: E402
from bench.place import ROOT  # noqa: E402
from bench.systems.restow import Cluster, Watched  # noqa: E402
from bench.timeline import said  # noqa: E402
from restow.lab import Lab  # noqa: E402

TRAIN, SERVE = ROOT / "bench" / "multiplex_job.py", ROOT / "bench" / "serve_job.py"
LEARN_S = 20.0  # for the guard to find the background job's share before anything is looked at


def main() -> None:
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="restow-bench-"))
    try:
        numbers: dict[str, Any] = {"device": options.device}
        numbers |= beside_a_background_job(options, folder / "protect")
        options.json.write_text(json.dumps(numbers, indent=1) + "\n")
        numbers |= beside_a_server(options, folder / "serve")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    print(
        f"protected    {numbers['protected_slowdown_mean']:+.1%} mean, {numbers['protected_slowdown_p95']:+.1%} p95"
        f" (idle {numbers['protected_idle']:.0%} of the time alone);"
        f" the background gets {numbers['background_share']:.2f} of its speed\n"
        f"serving      p50 {numbers['serve_p50_ratio']:.2f}, p99 {numbers['serve_p99_ratio']:.2f} times alone"
        f" ({numbers['serve_p99_alone_ms']:.1f} ms alone); the training beside it gets {numbers['training_share']:.2f}"
    )


class Stage:
    """Two jobs on the same devices of a lab, one device on each node."""

    def __init__(
        self, options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack, nodes: tuple[str, ...] = ("m1", "m2")
    ):
        folder.mkdir(parents=True)
        self.options, self.folder = options, folder
        place = stack.enter_context(Lab(nodes=2, devices=0, rate_bits_per_s=RATE_BITS_PER_S))
        devices = {"m1": [{"index": 0, "core": 0}], "m2": [{"index": 0, "core": (os.cpu_count() or 1) - 1}]}
        self.cluster = stack.enter_context(Cluster(place, nodes, devices))
        self.control = Control(folder / "control", 2)
        self.control.let_run((0, 1))

    def submit(self, name: str, script: Path, number: int, workers: int, share: dict[str, Any], *more: str) -> Watched:
        source = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
        command = (
            sys.executable, str(script), f"--control={self.control.path}", f"--number={number}",
            f"--device={self.options.device}", f"--page={self.folder}", *more,
        )  # fmt: skip
        spec = {
            "command": command, "name": name, "workers": workers, "cwd": str(ROOT),
            "env": (("PYTHONPATH", source), ("RESTOW_KEEP_PRIORITY", str(int(self.options.device == "virtual")))),
            "migrate": False, "share": share,
        }  # fmt: skip
        return Watched(self.cluster, str(self.cluster.client.submit(spec)["id"]))

    def windows(self, cycles: int) -> list[tuple[str, float, float]]:
        """Job 0 alone, job 1 alone, both; and again."""
        self.control.let_run((0, 1))
        time.sleep(LEARN_S)
        spans = []
        for _ in range(cycles):
            for name, numbers in (("first", (0,)), ("second", (1,)), ("both", (0, 1))):
                self.control.let_run(numbers)
                time.sleep(1.0)
                begin_s = time.monotonic()
                time.sleep(self.options.window_s)
                spans.append((name, begin_s, time.monotonic()))
        return spans


def beside_a_background_job(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        stage = Stage(options, folder, stack)
        important = stage.submit(
            "important", TRAIN, 0, 2, {"protect": True}, "--device-ms=130", f"--payload-mb={options.payload_mb}"
        )
        important.wait_until("its first steps", lambda view: view["step"] >= 25, timeout_s=180)
        options_ = ("--device-ms=200", "--payload-mb=0.02", "--layers=20", "--buckets=1")
        background = stage.submit("background", TRAIN, 1, 2, {"mode": "best-effort"}, *options_)
        background.wait_until("its first steps", lambda view: view["step"] >= 5, timeout_s=180)
        spans = stage.windows(options.cycles)
        first, second = ([mark for mark in said(job.lines(), "step") if mark["rank"] == 0] for job in (important, background))
        explained = stage.cluster.client.explain(important.job)
    alone, both = _periods(first, spans, "first"), _periods(first, spans, "both")
    lent_alone, lent = _periods(second, spans, "second"), _periods(second, spans, "both")
    return {
        "protected_slowdown_mean": mean(both) / mean(alone) - 1,
        "protected_slowdown_p95": _p(both, 95) / _p(alone, 95) - 1,
        "protected_step_ms": mean(alone) * 1e3,
        "protected_idle": 1 - 0.130 / mean(alone),
        "background_share": mean(lent_alone) / mean(lent) if lent else 0.0,
        "protected_steps": len(both),
        "pairs": explained["pairs"],
    }


def beside_a_server(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        stage = Stage(options, folder, stack, nodes=("m1",))
        options_ = ("--device-ms=200", "--payload-mb=0.02", "--layers=100")
        training = stage.submit("training", TRAIN, 1, 1, {"mode": "best-effort"}, *options_)
        training.wait_until("its first steps", lambda view: view["step"] >= 25, timeout_s=180)
        server = stage.submit(
            "server", SERVE, 0, 1, {"protect": True}, f"--request-ms={options.request_ms}", f"--rate={options.requests_per_s}"
        )
        server.wait_until("it runs", lambda view: view["state"] == "running", timeout_s=60)
        spans = stage.windows(options.cycles)
        requests = list(said(server.lines(), "request"))
        steps = [mark for mark in said(training.lines(), "step") if mark["rank"] == 0]
    alone, both = (
        [r["latency_s"] for r in requests for name, begin_s, end_s in spans if name == wanted and begin_s <= r["end_s"] < end_s]
        for wanted in ("first", "both")
    )
    lent_alone, lent = _periods(steps, spans, "second"), _periods(steps, spans, "both")
    return {
        "serve_p50_ratio": median(both) / median(alone),
        "serve_p99_ratio": _p(both, 99) / _p(alone, 99),
        "serve_p50_alone_ms": median(alone) * 1e3,
        "serve_p99_alone_ms": _p(alone, 99) * 1e3,
        "serve_requests": len(both),
        "training_share": mean(lent_alone) / mean(lent) if lent else 0.0,
    }


def _periods(marks: list[dict[str, Any]], spans: list[tuple[str, float, float]], wanted: str) -> list[float]:
    """Seconds of the steps that lie in windows of this name."""
    found: list[float] = []
    for name, begin_s, end_s in spans:
        ends = [mark["end_s"] for mark in marks if begin_s <= mark["end_s"] < end_s]
        if name == wanted:
            found += [later - earlier for earlier, later in itertools.pairwise(ends[1:])]
    return found


def _p(values: list[float], percent: int) -> float:
    return quantiles(values, n=100)[percent - 1] if len(values) > 1 else values[0]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the numbers here")
    parser.add_argument("--device", choices=("core", "virtual"), default="core")
    parser.add_argument("--payload-mb", type=float, default=3.1, help="of the protected job: idle half of its time")
    parser.add_argument("--cycles", type=int, default=4)
    parser.add_argument("--window-s", type=float, default=10.0)
    parser.add_argument("--request-ms", type=float, default=5.0)
    parser.add_argument("--requests-per-s", type=float, default=40.0)
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return options


if __name__ == "__main__":
    main()
