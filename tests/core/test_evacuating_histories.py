"""Random histories of drained machines and suspended jobs: whatever happens, the state of a job is where it is believed to be."""

from __future__ import annotations

import copy
import random

from restow.job import JobState
from restow.messages import Discard, Event, NodeDrained, OfferVault, OpenVault, TakeVault
from restow.policies.base import Policy
from tests.core.test_histories import NODES, History

COMMANDS = (OfferVault, TakeVault, Discard, OpenVault)
OFTEN = ["turn", "turn", "turn", "send", "hear some", "decide", "train", "clock", "drain", "undrain", "pause", "resume"]
SELDOM = ["kill", "lose", "join", "join", "restart", "repeat", "full", "deaf"]


class Emptied(History):
    """After each event the state of every suspended job must lie where the core believes that it does."""

    def __init__(self, policy: Policy | None = None) -> None:
        super().__init__(policy)
        for name, devices in NODES.items():
            self.join(name, devices)

    def observe(self, event: Event) -> None:
        super().observe(event)
        for job in self.state.jobs.values():
            if job.is_suspended and job.kept:
                for node in {*(slot.node for slot in job.kept.placement), *job.kept.replicas}:
                    assert (node, job.id, job.kept.generation) in self.agents.vaults, f"{job.id}: nothing on {node} after {event}"

    def apply(self, what: str, first: int, second: int) -> None:
        ids, name = sorted(self.state.jobs), list(NODES)[first % len(NODES)]
        match what:
            case "drain" | "undrain":
                self.observe(NodeDrained(time_s=self.now_s, node=name, is_draining=what == "drain"))
            case "pause" | "resume":
                job = ids[first % len(ids)]
                self.pause(job) if what == "pause" else self.resume(job)
            case "full":
                self.agents.full_nodes ^= {name}
            case "deaf":
                self.agents.deaf = {COMMANDS[second % len(COMMANDS)]} if first % 2 else set()
            case "repeat":
                told = [event for event in self.journal if type(event).__name__.startswith("Vault")]
                if told:
                    again, records = told[-1 - second % len(told)], copy.deepcopy(self.state.records)
                    self.state.observe(again)
                    assert self.state.records == records, f"a repeated {again} changed something"
            case _:
                super().apply(what, first, second)

    def come_to_rest(self) -> None:
        self.agents.deaf, self.agents.full_nodes = set(), set()
        self.restart()  # what a deaf agent was told is said again
        for name in NODES:
            self.apply("undrain", list(NODES).index(name), 0)
        for job in list(self.state.jobs):
            self.resume(job)
        super().come_to_rest()


def test_no_state_is_lost_and_every_job_ends():
    seen: set[str] = set()
    for seed in range(200):
        history, rng = Emptied(), random.Random(seed)
        actions = [("submit", rng.randint(1, 2), 1), ("submit", rng.randint(1, 3), 1), *[("turn", 0, 0)] * 4, ("train", 0, 1)]
        for _ in range(rng.randint(10, 80)):
            what = rng.choice(OFTEN if rng.random() < 0.85 else SELDOM)
            actions.append((what, rng.randint(0, 2 if what in ("lose", "join") else 7), rng.randint(0, 7)))
        try:
            for action in actions:
                history.apply(*action)
            history.come_to_rest()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        seen |= {type(event).__name__ for event in history.journal}
        assert {job.state for job in history.state.jobs.values()} <= {JobState.DONE, JobState.FAILED}
    assert {"VaultMoved", "VaultMoveFailed", "RankSwitched"} <= seen
