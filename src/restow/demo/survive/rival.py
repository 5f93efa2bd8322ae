"""The same script, unchanged, under elastic torchrun on the same two machines, one of which is pulled out as well."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from restow.demo.stage import Stage, end
from restow.demo.survive.result import Row
from restow.demo.survive.scene import Survive

START_S_MAX = 90.0
AGAIN_S_MAX = 60.0
PORT = 29511
_STEP = re.compile(rb"^(?:\[\w+\]:)?step (\d+) ", re.MULTILINE)


def pull_from_torchrun(scene: Survive, stage: Stage, folder: Path) -> Row:
    """One node or two, with a quick rendezvous; the job has no checkpoints of its own, so it begins anew."""
    assert stage.lab
    gang, system = scene.gang, "torchrun elastic"
    first, second = stage.node_names
    logs = {name: folder / f"torchrun-{name}.log" for name in (first, second)}
    children = []
    try:
        for name, ranks in ((first, gang.workers - 1), (second, 1)):
            node = stage.lab.nodes[name]
            _, script, *arguments = gang.command(stage.examples)
            conf = f"is_host={str(name == first).lower()},last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"
            argv = [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", f"--nproc-per-node={ranks}",
                "--rdzv-backend=c10d", f"--rdzv-endpoint={stage.lab.nodes[first].address}:{PORT}", "--rdzv-id=demo",
                f"--rdzv-conf={conf}", f"--local-addr={node.address}", "--max-restarts=3", "--monitor-interval=0.1",
                script, *arguments,
            ]  # fmt: skip
            env = {key: value for key, value in os.environ.items() if not key.startswith("RESTOW_") or key == "RESTOW_TEST"}
            env |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": node.interface, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
            children.append(stage.popen(name, argv, stdout=logs[name].open("wb"), env=env))
        made = _await(logs[first], lambda steps: max(steps, default=0) >= scene.before_steps, START_S_MAX)
        if made is None:
            return Row(system=system, detect_s=None, resume_s=None, lost_steps=None, note="did not start here")
        stage.lab.cut(second)
        pulled_s, before = time.monotonic(), len(made)
        again = _await(logs[first], lambda steps: steps[before:] and min(steps[before:]) < max(steps[:before]), AGAIN_S_MAX)
        if again is None:
            return Row(
                system=system, detect_s=None, resume_s=None, lost_steps=None, note=f"not within {AGAIN_S_MAX:.0f} s",
            )  # fmt: skip
        after_s = time.monotonic() - pulled_s
        return Row(
            system=system, detect_s=None, resume_s=after_s, lost_steps=max(made),
            note="the script unchanged: no checkpoints of its own, two ranks instead of three",
        )  # fmt: skip
    finally:
        stage.lab.heal(second)
        for child in children:
            end(child)


def _await(log: Path, is_so: Callable[[list[int]], object], limit_s: float) -> list[int] | None:
    """The steps that were printed, in order, once it is so of them; None when it takes too long."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        steps = [int(number) for number in _STEP.findall(log.read_bytes())]
        if is_so(steps):
            return steps
        time.sleep(0.05)
    return None
