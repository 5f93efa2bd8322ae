"""torchft, where it can be imported: members join and leave a running job; the one that joins is warm and heals by its peers."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.cases import WORLD_SIZE, Case
from bench.place import ROOT, Wire, environment, free_port, python, set_rate
from bench.run import Run
from bench.systems.base import Reference, Trial
from bench.systems.torchrun import shape_when_warm

OPEN_ENDED = 100_000  # steps; the harness ends the job when it has seen enough


class TorchFT:
    """Moves one rank at a time: its successor joins as a spare, then it is ended."""

    name = "torchft"
    script = ROOT / "bench" / "rivals" / "torchft_ddp.py"
    note = "process group transport, successor joins as a spare before the old member is killed, lighthouse heartbeat 1 s"

    def why_not(self) -> str:
        missing = importlib.util.find_spec("torchft") is None
        return "torchft is not installed (pip install torchft)" if missing else ""

    def reference(self, case: Case, place: Any, folder: Path, options: list[str]) -> Reference:
        with Run(folder / "torchft-alone") as run:
            self._start(run, place, ["m1"] * WORLD_SIZE, [*options, f"--steps={case.steps}"])
            run.wait_for("the end", lambda: len(run.digests()) == WORLD_SIZE)
            return Reference(marks=run.marks(), digests=run.digests())

    def trials(self, case: Case, place: Any, folder: Path, moves: int, options: list[str]) -> Iterator[Trial]:
        for number in range(moves):
            set_rate(place, None)
            with Run(folder / f"torchft-{number}") as run, Wire(place, "m1") as wire:
                members, lighthouse = self._start(run, place, case.now, [*options, f"--steps={OPEN_ENDED}"])
                shape_when_warm(run, place, case)
                run.wait_for_step(case.warm + case.before)
                began_s = time.monotonic()
                for rank, (now, then) in enumerate(zip(case.now, case.then, strict=True)):
                    if now == then:
                        continue
                    successor = WORLD_SIZE + rank
                    self._member(run, place, then, successor, lighthouse, [*options, f"--steps={OPEN_ENDED}"])
                    run.wait_for(
                        "the successor's steps", lambda who=successor: sum(mark.rank == who for mark in run.marks()) >= 2
                    )
                    run.watched.remove(members[rank])
                    run.end(members[rank])
                    left_s = time.monotonic()
                    run.wait_for(
                        "a step without the old member",
                        lambda since=left_s: any(mark.start_s > since for mark in run.marks()),
                    )
                over_s = time.monotonic()
                run.wait_for(
                    "steps after",
                    lambda since=over_s: len({mark.step for mark in run.marks() if mark.start_s > since}) > case.after,
                )
                yield Trial(marks=run.marks(), began_s=began_s, since_s=run.shaped_s, wire=wire)

    def _start(self, run: Run, place: Any, ranks_on: Any, options: list[str]) -> tuple[dict[int, Any], str]:
        node, port = place.nodes["m1"], free_port()
        serve = (
            "import sys, threading; from torchft.coordination import LighthouseServer;"
            "server = LighthouseServer(bind=sys.argv[1], min_replicas=int(sys.argv[2]), join_timeout_ms=10000,"
            " quorum_tick_ms=20, heartbeat_timeout_ms=1000); threading.Event().wait()"
        )
        run.start(node, python("-c", serve, f"0.0.0.0:{port}", str(WORLD_SIZE)), environment(node))
        lighthouse = f"http://{node.address}:{port}"
        members = {rank: self._member(run, place, name, rank, lighthouse, options) for rank, name in enumerate(ranks_on)}
        return members, lighthouse

    def _member(self, run: Run, place: Any, name: str, member: int, lighthouse: str, options: list[str]) -> Any:
        node = place.nodes[name]
        env = environment(
            node, MEMBER=str(member), MEMBERS=str(WORLD_SIZE), MEMBER_ADDRESS=node.address, TORCHFT_LIGHTHOUSE=lighthouse
        )
        return run.start(node, python(str(self.script), *options), env)
