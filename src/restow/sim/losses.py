"""Machines that fail and come back in virtual time, and what is said of it: NodeLost, NodeJoined, and what is found missing then.

Each machine fails by itself, after a time that is drawn from an exponential distribution: the same for a seed on any computer,
whatever the policy. Its disk outlives the failure, and with it what its vault keeps of suspended jobs; its processes do not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from restow.cluster import Node
from restow.core.comparison import compare
from restow.core.state import ClusterState
from restow.job import CheckpointSpec, JobSpec
from restow.messages import NodeJoined, NodeLost
from restow.sim.clock import Clock
from restow.sim.survivors import Survivors
from restow.sim.troubles import Trouble

TRIES_MAX = 1000  # of a job that is lost again and again: more would hardly bring it to its end
COMPARE_S = 10.0  # from one look at what runs on a machine that is back to the next, and at what is due by the clock
SETTLED_S = 300.0  # after a loss or a return: longer than anybody waits for an answer, see core/config.py


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Seconds. Nothing fails where `mtbf_s` is 0."""

    mtbf_s: float = 0.0  # mean time between failures of one machine
    repair_s: float = 1800.0  # from its failure until it is back
    notice_s: float = 1.0  # until it is known to be lost: the silence that a controller bears, see docs/architecture.md
    checkpoint_s: float = 0.0  # from one checkpoint of a job to the next, in a folder that every machine sees; 0: none

    def borne(self, spec: JobSpec) -> JobSpec:
        """The job outlives what fails, whatever its spec says of that."""
        if not self.mtbf_s:
            return spec
        checkpoint = CheckpointSpec(folder="/checkpoints", every_s=self.checkpoint_s, shared=True)
        return replace(spec, recover=True, retries=TRIES_MAX, checkpoint=checkpoint)


class Losses:
    """`look()`: a decision is wanted."""

    def __init__(
        self, config: LossConfig, seed: int, nodes: Mapping[str, Node], clock: Clock, agents: Survivors, state: ClusterState,
        look: Callable[[], None],
    ):  # fmt: skip
        self.outages: list[Trouble] = []  # so far, by their beginning
        self._config, self._nodes, self._clock, self._agents, self._state, self._look = config, nodes, clock, agents, state, look
        self._chances = {name: random.Random(f"failures {seed} {name}") for name in nodes} if config.mtbf_s else {}
        self._returned: dict[str, None] = {}  # machines that are back, until all that was on them is known to be gone
        self._watched_until_s = 0.0
        self._is_watching = False

    def begin(self) -> None:
        for node in self._chances:
            self._foresee(node)

    def _foresee(self, node: str) -> None:
        lives_s = self._chances[node].expovariate(1.0 / self._config.mtbf_s)
        self._clock.at(self._clock.now_s + lives_s, lambda: self.fail(node), is_beside=True)

    def fail(self, node: str) -> None:
        """Now, and until it is repaired."""
        away_s = max(self._config.repair_s, self._config.notice_s)
        self.outages.append(Trouble(node=node, from_s=self._clock.now_s, to_s=self._clock.now_s + away_s))
        self._returned.pop(node, None)
        self._agents.fail(node, list(self._state.active_ids))
        self._clock.later(self._config.notice_s, lambda: self._notice(node))
        self._clock.later(away_s, lambda: self._repair(node))

    def _notice(self, node: str) -> None:
        reason = f"no answer for {self._config.notice_s:g} s"
        self._agents.reports.append(NodeLost(time_s=self._clock.now_s, node=node, reason=reason))
        self._watch()

    def _repair(self, name: str) -> None:
        node = self._nodes[name]
        self._agents.repair(name)
        self._agents.reports.append(NodeJoined(
            time_s=self._clock.now_s, node=name, address=node.address, devices=node.devices, cores=node.cores,
            host_bytes=node.host_bytes,
        ))  # fmt: skip
        self._compare(name)
        self._returned[name] = None
        self._foresee(name)
        self._watch()

    def _compare(self, node: str) -> None:
        status = {"node": node, "processes": self._agents.processes(node, self._state.active_ids)}
        events, commands = compare(self._state.active_jobs, status, self._clock.now_s, was_lost=node not in self._returned)
        self._agents.reports += events
        for command in commands:
            self._agents.tell(node, command)

    def _watch(self) -> None:
        """For a while something may be due that nothing else reminds of: an answer that never comes, or a job's next attempt."""
        self._watched_until_s = self._clock.now_s + SETTLED_S
        if not self._is_watching:
            self._is_watching = True
            self._clock.later(COMPARE_S, self._go_on_watching)

    def _go_on_watching(self) -> None:
        for node in self._returned:
            self._compare(node)
        self._look()
        now_s = self._clock.now_s
        is_awaited = any(job.not_before_s > now_s for job in self._state.active_jobs.values())
        if self._state.active_ids and (now_s < self._watched_until_s or is_awaited):
            self._clock.later(COMPARE_S, self._go_on_watching)
        else:
            self._is_watching, self._returned = False, {}
