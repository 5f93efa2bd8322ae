"""Random histories with faults: whatever happens, the invariants hold and every job comes to an end.

Hypothesis prints the history that fails, shrunk; the same history always gives the same trace.
"""

from __future__ import annotations

import copy
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restow.core import invariants
from restow.job import JobState, sizes_of
from restow.messages import Event, Progressed, ScaleAsked
from restow.placement import Slot
from restow.policies.base import Policy
from restow.policies.restow import Restow
from tests.core.obedient import Cluster, Program

JOBS = ("a", "b", "c")
NODES = {"m1": 2, "m2": 2, "m3": 1}

number = st.integers(0, 7)
action = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 4), st.booleans()),
    st.tuples(st.sampled_from(["kill", "kill twin", "kill leaver", "refuse", "migrate", "cancel"]), number, number),
    st.tuples(st.sampled_from(["lose", "hide", "join"]), st.integers(0, 2), number),
    st.tuples(st.sampled_from(["turn", "hear some", "send", "decide"]), number, number),
    st.tuples(st.sampled_from(["clock", "train", "repeat", "restart", "deaf"]), number, number),
)


class History(Cluster):
    """A cluster to which anything may happen; after each event nobody may train twice."""

    def __init__(self, policy: Policy | None = None) -> None:
        super().__init__(" ".join(f"{name}:{devices}" for name, devices in NODES.items()), 25e6, policy)
        self.trace: list[object] = []

    def observe(self, event: Event) -> None:
        super().observe(event)
        for job in self.state.jobs:
            for rank, processes in self.agents.training(job).items():
                assert len(processes) == 1, f"rank {rank} of {job} trains twice: {processes}"

    def apply(self, what: str, first: int, second: int) -> None:
        ids = list(self.state.jobs)
        id = ids[first % len(ids)] if ids else ""
        names = list(NODES)
        match what:
            case "submit" if len(ids) < len(JOBS):
                program = Program(
                    steps_total=200, step_s=0.3, exposed_s=0.25, wire_bytes=6_250_000, uses_sdk=bool(second)
                )
                self.submit(JOBS[len(ids)], first, program)
            case "submit a range" if len(ids) < len(JOBS):
                program = Program(steps_total=200, step_s=0.3, exposed_s=0.1, wire_bytes=6_250_000)
                self.submit(JOBS[len(ids)], 4, program, workers_min=first)
            case "scale" if ids and self.job(id).is_resizable:
                sizes = sizes_of(self.job(id).spec)
                asked = (0, *sizes)[second % (len(sizes) + 1)]
                self.observe(ScaleAsked(time_s=self.now_s, job=id, devices=0, workers=asked))
            case "kill" | "kill twin" | "kill leaver" if self.agents.workers:
                key = sorted(self.agents.workers)[first % len(self.agents.workers)]
                if what == "kill" or self.agents.workers[key].role == what.split()[1]:
                    self.agents.exit(key, -9)
            case "refuse" if ids:
                self.agents.programs[id].step += 5  # further than anybody knows
            case "migrate" if ids and not self.job(id).state.is_final:
                every = [Slot(name, device) for name, devices in NODES.items() for device in range(devices)]
                turned = (every[second % len(every) :] + every)[: self.job(id).workers]
                self.migrate(id, " ".join(map(str, turned)))
            case "cancel" if ids:
                self.cancel(id)
            case "lose" | "hide" if names[first] in self.state.nodes and self.state.nodes[names[first]].is_alive:
                self.lose(names[first], is_dead=what == "lose")
            case "join":
                self.join(names[first], NODES[names[first]])
            case "turn":
                self.decide(), self.send(), self.hear(), self.tick()
            case "hear some":
                late, self.agents.reports = self.agents.reports[second:], self.agents.reports[:second]
                self.hear()
                self.agents.reports = late + self.agents.reports
            case "send":
                self.send()
            case "decide":
                self.decide()
            case "clock":
                self.clock(10.0 * second)
            case "train" if ids:
                self.train(id, 10 * second)
            case "repeat" if self.journal:
                again = self.journal[-1 - second % len(self.journal)]
                records = copy.deepcopy(self.state.records)
                if type(again).__name__ not in (
                    "ScheduleAdopted",
                    "MigrateAsked",
                    "ScaleAsked",
                    "NodeJoined",
                    "NodeLost",
                ):  # wishes change
                    self.state.observe(again)
                    assert self.state.records == records, f"a repeated {again} changed something"
            case "restart":
                self.restart()
        self.trace.append(
            (what, [(id, job.state, job.placement, job.generation) for id, job in self.state.jobs.items()])
        )

    def come_to_rest(self) -> None:
        """No more faults: all nodes are back, the clock goes on, and the jobs train to their end."""
        for name, devices in NODES.items():
            self.join(name, devices)
        for _ in range(60):
            self.run()
            for id, job in list(self.state.jobs.items()):
                if not job.state.is_final:
                    self.train(id, 40)
            self.clock(40.0)
            self.run()
            for name in NODES:
                self.compare(name)
            if all(job.state.is_final for job in self.state.jobs.values()) and not self.agents.workers:
                return
        raise AssertionError({id: (job.state, job.reason, job.switch) for id, job in self.state.jobs.items()})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(action, max_size=40))
def test_whatever_happens_no_rank_lives_twice_and_every_job_ends(actions):
    history = History()
    for what, first, second in actions:
        history.apply(what, first, int(second))
    history.come_to_rest()
    too_big = [job for job in history.state.jobs.values() if job.workers > 5]
    assert not too_big
    assert not any(record.processes for record in history.state.records.values())


@settings(max_examples=40, deadline=None)
@given(st.lists(action, max_size=30))
def test_with_nothing_new_nothing_moves_and_the_same_history_gives_the_same_trace(actions):
    traces = []
    for _ in range(2):
        history = History()
        for what, first, second in actions:
            history.apply(what, first, int(second))
        history.run()
        before = {id: job.intended for id, job in history.state.jobs.items() if not job.away}
        assert history.decide().placements == {id: there for id, there in before.items() if there}
        assert history.state.commands() == []
        invariants.check(history.state)
        traces.append((history.trace, [event for event in history.journal if not isinstance(event, Progressed)]))
    assert traces[0] == traces[1]


OFTEN = [
    "turn",
    "turn",
    "turn",
    "hear some",
    "hear some",
    "send",
    "migrate",
    "migrate",
    "train",
    "train",
    "decide",
    "clock",
]
SELDOM = ["kill", "kill twin", "kill leaver", "refuse", "cancel", "lose", "hide", "join", "repeat", "restart"]


def random_actions(seed: int) -> list[tuple[str, int, int]]:
    """Two running jobs, then up to sixty actions; unlike the ones above, most of these histories have switches."""
    rng = random.Random(seed)
    actions = [("submit", rng.randint(1, 3), 1), ("submit", rng.randint(1, 3), 1), *[("turn", 0, 0)] * 3]
    for _ in range(rng.randint(0, 60)):
        what = rng.choice(OFTEN if rng.random() < 0.75 else SELDOM)
        actions.append((what, rng.randint(0, 2 if what in ("lose", "hide", "join") else 7), rng.randint(0, 7)))
    return actions


def play(history: History, seed: int) -> None:
    """All of a seed's actions and then rest; what fails names the seed."""
    try:
        for action in random_actions(seed):
            history.apply(*action)
        history.come_to_rest()
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise


def test_faults_in_the_middle_of_switches_end_well():
    seen: set[str] = set()
    for seed in range(300):
        history = History()
        play(history, seed)
        seen |= {type(event).__name__ for event in history.journal}
    assert {"RankSwitched", "RankRolledBack", "StepRefused", "NodeLost"} <= seen


def test_jobs_that_change_their_size_in_the_middle_of_faults_end_well():
    sizes: set[int] = set()
    for seed in range(150):
        history, rng = History(Restow()), random.Random(seed)
        actions = [(f"{word} a range" if word == "submit" else word, *numbers) for word, *numbers in random_actions(seed)]
        for at in range(5, len(actions), 6):
            actions.insert(at, ("scale", rng.randint(0, 1), rng.randint(0, 7)))
        try:
            for action in actions:
                history.apply(*action)  # type: ignore[arg-type]
                sizes |= {len(job.placement) for job in history.state.jobs.values()}
            history.come_to_rest()
        except BaseException:
            print(f"seed {seed}")
            raise
    assert sizes == {0, 1, 2, 4}


def test_every_state_of_a_job_can_be_reached_in_a_history():
    history = History()
    seen = set()
    for what, first, second in [("submit", 2, 1), ("submit", 2, 1), ("turn", 0, 0), ("turn", 0, 0), ("turn", 0, 0),
                                ("cancel", 0, 0), ("turn", 0, 0), ("turn", 0, 0), ("kill", 0, 0), ("turn", 0, 0)]:  # fmt: skip
        history.apply(what, first, second)
        seen |= {job.state for job in history.state.jobs.values()}
    history.come_to_rest()
    seen |= {job.state for job in history.state.jobs.values()}
    assert {JobState.PENDING, JobState.STARTING, JobState.RUNNING, JobState.STOPPING, JobState.CANCELLED} <= seen
