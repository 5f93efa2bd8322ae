"""The same gang left alone: run again by torchrun, on loopback, without restow; then both are compared bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from restow.demo.scene import Part
from restow.demo.stage import end
from restow.errors import SetupError

RUN_S_MAX = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Of every rank's losses and of the final parameters, buffers and optimizer state."""

    is_identical: bool
    steps: int  # losses per rank that were compared
    why_not: str = ""


def run_alone(part: Part, examples: Path, digest: Path) -> None:
    """Run the gang's own command under torchrun, writing its digests to `digest`; blocks until it is done.

    One thread per rank, as under restow: another number of threads adds in another order. Raises SetupError.
    """
    _, script, *arguments = part.command(examples, "--digest", str(digest))
    argv = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(part.workers),
        script,
    ]
    env = {key: value for key, value in os.environ.items() if not key.startswith("RESTOW_")}
    env |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    log = digest.with_suffix(".log")
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*argv, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
        try:
            child.wait(RUN_S_MAX)
        except subprocess.TimeoutExpired:
            raise SetupError(f"the gang left alone was not done after {RUN_S_MAX:.0f} s") from None
        finally:
            end(child)
    if child.returncode != 0:
        last = (log.read_text(errors="replace").strip().splitlines() or ["(it said nothing)"])[-1]
        raise SetupError(f"the gang left alone ended with {child.returncode}: {last}")


def compare(moved: Path, alone: Path, workers: int) -> Comparison:
    """Compare what both runs wrote, rank by rank; the first difference is named."""
    steps = 0
    for rank in range(workers):
        a, b = read_digest(moved, rank), read_digest(alone, rank)
        if a is None or b is None:
            which = "that was moved" if a is None else "left alone"
            return Comparison(
                is_identical=False, steps=steps, why_not=f"rank {rank} of the job {which} wrote no digest"
            )
        if a["losses"] != b["losses"]:
            pairs = zip(a["losses"], b["losses"], strict=False)
            first = next(
                (n for n, (x, y) in enumerate(pairs, 1) if x != y), min(len(a["losses"]), len(b["losses"])) + 1
            )
            return Comparison(
                is_identical=False, steps=steps, why_not=f"rank {rank}: the losses differ from step {first} on"
            )
        if a["sha256"] != b["sha256"]:
            return Comparison(is_identical=False, steps=steps, why_not=f"rank {rank}: the final parameters differ")
        steps = len(a["losses"])
    return Comparison(is_identical=True, steps=steps)


def read_digest(path: Path, rank: int) -> dict[str, list[str]] | None:
    """What a rank of an example wrote with --digest; None if it did not."""
    file = path if rank == 0 else path.with_name(f"{path.name}.rank{rank}")
    try:
        digest: dict[str, list[str]] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return digest
