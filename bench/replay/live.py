"""The workload in a live cluster: jobs are handed in when they come, the default policy does the rest."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.place import ROOT
from bench.replay.deeds import Deeds, deeds_of
from bench.replay.workload import Arrival, Kind
from bench.run import RunFailed
from bench.systems.restow import Cluster
from restow.codec import from_json, to_json
from restow.frozen import FrozenCluster, from_wire
from restow.sim.beginning import joining
from restow.sim.standing import machines_of

SCRIPT = ROOT / "bench" / "multiplex_job.py"
POLL_S = 2.0
END_S_MAX = 300.0  # from the last arrival until all are done
FAILURES = ("LaunchFailed", "RankRolledBack", "SwitchFailed")


def command(kind: Kind, number: int, steps: int, folder: Path) -> tuple[str, ...]:
    """`number`: its seat on the devices, which nobody else has."""
    return (sys.executable, str(SCRIPT), f"--number={number}", f"--page={folder}", f"--steps={steps}", *kind.options)


def spec_of(kind: Kind, name: str, command: tuple[str, ...]) -> dict[str, Any]:
    """As the client hands it in."""
    source = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    return {**to_json(kind.spec(command, name)), "cwd": str(ROOT), "env": (("PYTHONPATH", source),)}


def known_of(cluster: Cluster) -> FrozenCluster:
    """What the cluster knows of itself now."""
    return from_wire(cluster.client.snapshot())


def run(cluster: Cluster, workload: Sequence[Arrival], kinds: Mapping[str, Kind], folder: Path) -> dict[str, Any]:
    """{"ids": {id: name in the workload}, "events": what the controller has journalled of these jobs}, as JSON. Raises RunFailed
    for a job that did not end well."""
    ids, begin_number = dict[str, str](), _last_number(cluster)
    begin_s = time.monotonic()
    for seat, arrival in enumerate(workload, start=1):
        time.sleep(max(0.0, begin_s + arrival.at_s - time.monotonic()))
        kind = kinds[arrival.kind]
        submitted = cluster.client.submit(spec_of(kind, arrival.name, command(kind, seat, arrival.steps, folder)))
        ids[str(submitted["id"])] = arrival.name
    deadline_s = time.monotonic() + END_S_MAX
    while left := [view for view in cluster.client.ps() if view["id"] in ids and view["state"] != "done"]:
        failed = [view for view in left if view["state"] in ("failed", "cancelled")]
        if failed or time.monotonic() > deadline_s:
            view = (failed or left)[0]
            raise RunFailed(f"job {view['id']} is {view['state']} at step {view['step']}: {view['reason']}")
        time.sleep(POLL_S)
    return {"ids": ids, "events": list(cluster.client.events(after=begin_number))}


def _last_number(cluster: Cluster) -> int:
    return max((wire["number"] for wire in cluster.client.events()), default=0)


def deeds(known: FrozenCluster, ids: Mapping[str, str], events: Sequence[Mapping[str, Any]]) -> dict[str, Deeds]:
    """Job → what became of it, from what `run` returned. `known`: the cluster on which the jobs came."""
    joined = joining(machines_of(known))
    heard = (from_json({key: value for key, value in wire.items() if key != "number"}) for wire in events)
    return {ids[id]: found.renamed(ids) for id, found in deeds_of([*joined, *heard], ids).items()}


def failures(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """What went wrong and was made good again: a simulation knows of none of these."""
    return [f"{wire['job']}: {wire['reason']}" for wire in events if wire["type"] in FAILURES]
