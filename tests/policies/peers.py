"""What the tests of the policies of other schedulers share: jobs that wait, and a look at whether a policy is steady."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from restow.cluster import Snapshot
from restow.job import Job, JobSpec
from restow.placement import Schedule
from restow.sim.simulation import Simulation


def waiting(id: str, workers: int = 1, *, due_s: float = 0.0, tenant: str = "", submitted_s: float = 0.0) -> Job:
    spec = JobSpec(command=("x",), workers=workers, deadline_s=due_s, tenant=tenant)
    return Job(id=id, spec=spec, submitted_s=submitted_s)


class Twice:
    """Asks a policy again at once, and holds that it says the same."""

    def __init__(self, policy: object):
        self.policy = policy
        self.times = 0

    def decide(self, snapshot: Snapshot) -> Schedule:
        first = self.policy.decide(snapshot)  # type: ignore[attr-defined]
        again = self.policy.decide(snapshot)  # type: ignore[attr-defined]
        assert again.placements == first.placements
        assert again.reasons == first.reasons
        self.times += 1
        return first

    plan = decide


@contextmanager
def is_steady(simulation: Simulation) -> Iterator[None]:
    """At every decision of a run: with nothing new it says the same."""
    simulation.policy = twice = Twice(simulation.policy)
    yield
    assert twice.times
