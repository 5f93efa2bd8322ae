"""The files that `restow simulate` writes: figures as JSON, and a page to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from restow.cli.simulate_runs import Result, Run
from restow.errors import SpecError
from restow.sim.report import Ran, page


def check(option: str, path: Path | None) -> None:
    """Raises SpecError before anything runs, not after."""
    if path and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise SpecError(f"{option} {path} cannot be written: it is a folder, or lies in none that is there")


def write_json(path: Path, runs: Sequence[Run], results: Sequence[Result]) -> None:
    rows = [
        {"trace": run.trace.path, "policy": run.policy, "seed": run.config.seed, **outcome.figures()}
        for run, (outcome, _) in zip(runs, results, strict=True)
    ]
    _write("--json", path, json.dumps({"rows": rows}, indent=1) + "\n")


def write_report(path: Path, about: Sequence[str], runs: Sequence[Run], results: Sequence[Result]) -> None:
    ran = [
        Ran(policy=run.policy, seed=run.config.seed, outcome=outcome, history=history)
        for run, (outcome, history) in zip(runs, results, strict=True)
        if history
    ]
    _write("--report", path, page(f"restow simulate: {runs[0].trace.path}", about, ran))


def _write(option: str, path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as failure:
        raise SpecError(f"{option} {path} cannot be written: {failure.strerror}") from None
