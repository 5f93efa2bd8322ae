"""The same gang left alone: run again by torchrun, on loopback, without restow; then both are compared bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

    Raises SetupError.
    """
    with left_alone(part, examples, "--digest", str(digest), log=digest.with_suffix(".log")):
        pass


@contextmanager
def left_alone(part: Part, examples: Path, *more: str, log: Path) -> Iterator[None]:
    """The gang's own command under torchrun, beside what is done inside; at the end it is waited for. Raises SetupError.

    One thread per rank, as under restow: another number of threads adds in another order.
    """
    _, script, *arguments = part.command(examples, *more)
    argv = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(part.workers),
        f"--log-dir={log.parent}",  # a folder that it would leave in the temporary one
        script,
    ]
    env = {key: value for key, value in os.environ.items() if not key.startswith("RESTOW_") or key == "RESTOW_TEST"}
    env |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
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
            yield
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
        step = first_difference(a["losses"], b["losses"])
        if step is not None:
            return Comparison(
                is_identical=False, steps=steps, why_not=f"rank {rank}: the losses differ from step {step} on"
            )
        if a["sha256"] != b["sha256"]:
            return Comparison(is_identical=False, steps=steps, why_not=f"rank {rank}: the final parameters differ")
        steps = len(a["losses"])
    return Comparison(is_identical=True, steps=steps)


def compare_losses(shared: Sequence[Sequence[str]], alone: Sequence[Sequence[str]]) -> Comparison:
    """Compare what the ranks of both runs printed, for runs that were ended before they could write a digest."""
    steps = min((len(losses) for losses in shared), default=0)
    if not steps or len(shared) != len(alone):
        return Comparison(is_identical=False, steps=0, why_not="there are no losses to compare")
    for rank, (a, b) in enumerate(zip(shared, alone, strict=True)):
        step = first_difference(a, b)
        if step is not None:
            return Comparison(
                is_identical=False, steps=step - 1, why_not=f"rank {rank}: the losses differ from step {step} on"
            )
    return Comparison(is_identical=True, steps=steps)


def first_difference(a: Sequence[str], b: Sequence[str]) -> int | None:
    """The first step, from 1, whose losses are not the same; a run that ends earlier differs from there on."""
    if a == b:
        return None
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False), 1) if x != y), min(len(a), len(b)) + 1)


def read_digest(path: Path, rank: int) -> dict[str, list[str]] | None:
    """What a rank of an example wrote with --digest; None if it did not."""
    file = path if rank == 0 else path.with_name(f"{path.name}.rank{rank}")
    try:
        digest: dict[str, list[str]] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return digest
