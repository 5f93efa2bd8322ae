"""Three rivals under torchrun: stop and restart, asynchronous DCP and restart, and torchrun's own elasticity.

Their best settings: checkpoints in shared memory that both nodes see (no disk, no copy over the link), a poll every 20 ms,
no grace, and nothing waits for a default time-out.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.cases import RATE_BITS_PER_S, WORLD_SIZE, Case
from bench.place import ROOT, Here, Wire, environment, free_port, python, set_rate
from bench.run import Run
from bench.systems.base import Reference, Trial

RIVALS = ROOT / "bench" / "rivals"
SPARE_S = 8.0  # on two cores a new agent takes 3 to 6 s to start; its job goes on meanwhile
STEP_S = 0.3  # a step of 100 MB inside one node there; over the link it is the bytes of the ring's busiest direction


def torchrun(
    run: Run, place: Any, ranks_on: Sequence[str], script: Path, options: list[str]
) -> list[subprocess.Popen[bytes]]:
    """Start one torchrun per node, with as many ranks as the node is named; the first node holds rank 0."""
    nodes = list(dict.fromkeys(ranks_on))
    port = free_port()
    return [
        run.start(
            place.nodes[name],
            python(
                "-m", "torch.distributed.run",
                f"--nnodes={len(nodes)}", f"--node-rank={index}", f"--nproc-per-node={ranks_on.count(name)}",
                f"--master-addr={place.nodes[nodes[0]].address}", f"--master-port={port}",
                f"--local-addr={place.nodes[name].address}",
                "--monitor-interval=0.02", str(script), *options,
            ),
            environment(place.nodes[name]),
        )
        for index, name in enumerate(nodes)
    ]  # fmt: skip


def alone(place: Any, folder: Path, script: Path, options: list[str]) -> Reference:
    """The job on one node from its first step to its last."""
    with Run(folder) as run:
        torchrun(run, place, ["m1"] * WORLD_SIZE, script, options)
        run.wait_for_end()
        return Reference(marks=run.marks(), digests=run.digests())


def shape_when_warm(run: Run, place: Any, case: Case) -> None:
    """Open the link for the start, which nobody measures, and give it its rate from the last warm step on; without a link all steps
    are alike."""
    run.wait_for_step(case.warm - 1)
    if not isinstance(place, Here):
        set_rate(place, RATE_BITS_PER_S)
        run.shaped_s = time.monotonic()


class _Restarting:
    """What the three have in common."""

    name = ""
    note = ""

    @property
    def script(self) -> Path:
        return RIVALS / f"{self.name}.py"

    def why_not(self) -> str:
        return ""

    def steps(self, case: Case) -> int:
        return case.steps

    def reference(self, case: Case, place: Any, folder: Path, options: list[str]) -> Reference:
        return alone(place, folder / f"{self.name}-alone", RIVALS / "plain.py", [*options, f"--steps={self.steps(case)}"])

    def trials(self, case: Case, place: Any, folder: Path, moves: int, options: list[str]) -> Iterator[Trial]:
        for number in range(moves):
            checkpoint = Path(tempfile.mkdtemp(prefix="restow-bench-", dir="/dev/shm"))
            more = [f"--steps={self.steps(case)}", f"--move-at={self.steps(case) - case.after}", f"--checkpoint={checkpoint}"]
            try:
                set_rate(place, None)
                with Run(folder / f"{self.name}-{number}") as run, Wire(place, "m1") as wire:
                    began_s = self._move(run, place, case, [*options, *more])
                    yield Trial(
                        marks=run.marks(),
                        began_s=min([*run.noted("move"), began_s]),
                        since_s=run.shaped_s,
                        wire=wire,
                        digests=run.digests(),
                        state_bytes=run.state_bytes(),
                    )
            finally:
                shutil.rmtree(checkpoint, ignore_errors=True)

    def _move(self, run: Run, place: Any, case: Case, options: list[str]) -> float:
        """Run the job to its end with one move; when the first thing was done for it from outside."""
        old = torchrun(run, place, case.now, self.script, options)
        shape_when_warm(run, place, case)
        run.wait_for_end(old)
        torchrun(run, place, case.then, self.script, options)
        run.wait_for_end()
        return float("inf")  # the ranks themselves begin


class TorchrunRestart(_Restarting):
    name = "torchrun_restart"
    note = "torch.save at the move step into shared memory, torchrun again as soon as the old one has ended"


class DcpAsync(_Restarting):
    name = "dcp_async"
    note = "dcp.async_save with its own group into shared memory, training goes on until it is done, then torchrun again"


class TorchrunElastic(_Restarting):
    """One agent per group of ranks that moves together, all in one rendezvous of a fixed number of agents.

    A spare agent that waited in the rendezvous beforehand was tried: the agents restarted one another again and again. So the
    new agent is warm (torch imported, on the destination) and joins at the instant when the old one is ended.
    """

    name = "torchrun_elastic"
    note = (
        "c10d rendezvous in a store of its own, N:N agents, last_call_timeout=1, keep-alive 1 s x 3, checkpoint at the move "
        "step in shared memory, the new agent warm before the old one is ended"
    )

    def steps(self, case: Case) -> int:
        """More than others make: the new agent has to be there before the move step comes."""
        over_link_s = 4 / 3 * case.state_mb * 1e6 / 3 * 8 / RATE_BITS_PER_S
        return case.steps + 2 + math.ceil(SPARE_S / (STEP_S if case.crosses else over_link_s))

    def _move(self, run: Run, place: Any, case: Case, options: list[str]) -> float:
        pairs = list(zip(case.now, case.then, strict=True))
        staying = [now for now, then in pairs if now == then]
        moving = [(now, then) for now, then in pairs if now != then]
        endpoint = self._open_store(run, place)
        agents = (1 if staying else 0) + 1
        if staying:
            self._start_agent(run, place, staying, agents, endpoint, options)
        leaver = self._start_agent(run, place, [now for now, _ in moving], agents, endpoint, options)
        shape_when_warm(run, place, case)
        run.wait_for_step(case.warm + 4)  # some steps at the link's rate, to know the ordinary one
        began_s = time.monotonic()
        gate = run.log.with_name("join")
        gate.unlink(missing_ok=True)
        joiner = self._start_agent(run, place, [then for _, then in moving], agents, endpoint, options, gate)
        run.wait_for("the new agent", lambda: "@agent {}" in run.lines())
        run.wait_for("the checkpoint", lambda: len(run.noted("saved")) >= WORLD_SIZE)
        run.watched.remove(leaver)
        gate.touch()
        run.end(leaver)
        run.wait_for_end()
        assert joiner.poll() == 0
        return began_s

    def _open_store(self, run: Run, place: Any) -> str:
        """The rendezvous store, in a process of its own, so that any agent may leave."""
        node, port = place.nodes["m1"], free_port()
        keep = (
            "import sys, threading, torch.distributed as dist;"
            "store = dist.TCPStore(sys.argv[1], int(sys.argv[2]), is_master=True, wait_for_workers=False);"
            "print('@store {}', flush=True); threading.Event().wait()"
        )
        run.watched.remove(run.start(node, python("-c", keep, node.address, str(port)), environment(node)))
        run.wait_for("the store", lambda: "@store {}" in run.lines())
        return f"{node.address}:{port}"

    def _start_agent(
        self, run: Run, place: Any, ranks_on: Sequence[str], agents: int, endpoint: str, options: list[str],
        gate: Path | None = None,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        """With `gate`, it imports everything, says `@agent {}` and joins when that file appears."""
        node = place.nodes[ranks_on[0]]
        later = (
            "import os, sys, time, torch.distributed.run as run, torch.distributed.elastic.agent.server.local_elastic_agent;"
            "print('@agent {}', flush=True)\n"
            "while not os.path.exists(sys.argv[1]): time.sleep(0.005)\n"
            "run.main(sys.argv[2:])"
        )
        return run.start(
            node,
            python(
                *(("-c", later, str(gate)) if gate else ("-m", "torch.distributed.run")),
                f"--nnodes={agents}:{agents}", f"--nproc-per-node={len(ranks_on)}",
                "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=bench", f"--local-addr={node.address}",
                "--rdzv-conf=is_host=false,last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3",
                "--max-restarts=5", "--monitor-interval=0.02", str(self.script), *options,
            ),
            environment(node),
        )  # fmt: skip
