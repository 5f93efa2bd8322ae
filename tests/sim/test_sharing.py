"""Jobs that come, are measured as they would be live, and share devices: the default policy in virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from restow.job import JobSpec, Profile, ShareSpec, Sharing
from restow.messages import Event, ScheduleAdopted, SharingMeasured
from restow.own_policies import find_policy
from restow.placement import parse_placement
from restow.sim.delays import Delays
from restow.sim.machines import Machines, machines
from restow.sim.outcome import Ended
from restow.sim.past import Past
from restow.sim.profiled import Profiled
from restow.sim.recorder import Recorder
from restow.sim.rows import Row
from restow.sim.simulation import SimConfig, Simulation

LOADER = Profile(step_s=1.0, data_s=0.45)  # wants the device for 0.55 s of each
HERE = parse_placement("gpu-0:0")


def came(id: str, at_s: float, steps: int, profile: Profile = LOADER, workers: int = 1, **more: Any) -> Row:
    """A job of which something was measured before it came."""
    share = more.pop("share", ShareSpec())
    there = more.pop("measured_on", HERE)
    past = Past(
        spec=JobSpec(command=("x",), workers=workers, share=share), placement=(), measured_on=there, profile=profile, steps=0.0,
        says_total=True, started_s=None, service_s=0.0, is_movable=True, why_not="", sharing=None, reason="", **more,
    )  # fmt: skip
    return Row(id=id, submitted_s=at_s, workers=workers, steps=steps, past=past)


class Heard(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def observe(self, event: Event, state: Any) -> None:
        super().observe(event, state)
        self.events.append(event)

    def sharings(self, job: str) -> list[Sharing]:
        """How it was to share, in order, each once."""
        found: list[Sharing] = []
        for event in self.events:
            mine = dict(event.sharing).get(job) if isinstance(event, ScheduleAdopted) else None
            if mine and mine not in found:
                found.append(mine)
        return found


def run(rows: list[Row], there: Machines, **config: Any) -> tuple[dict[str, Ended], Heard]:
    heard = Heard()
    options = SimConfig(look_s=2.0, report_s=0.5, **config)
    jobs = Simulation(rows, there, Profiled(there), find_policy("restow"), options, heard).run().jobs
    return {job.id: job for job in jobs}, heard


def test_a_job_with_a_past_that_comes_later_is_submitted_when_it_comes():
    ended, _ = run([came("a", 0, 10), came("b", 30, 20)], machines("1x1"), delays=Delays(start_s=2.0, end_s=0.5))
    assert (ended["a"].ended_s, ended["b"].submitted_s, ended["b"].ended_s) == (12.5, 30, 52.5)


def test_a_newcomer_joins_once_the_other_is_measured_is_seen_alone_and_then_both_take_turns():
    """b may not come before a has made 20 steps, nor does it wait longer. While b is looked at, a stands still."""
    ended, heard = run([came("a", 0, 100), came("b", 10, 60)], machines("1x1"))
    assert ended["b"].started_s == pytest.approx(20, abs=2)
    parts = [sharing.part for sharing in heard.sharings("a")]
    assert parts == [1.0, 0.0, 1.0]
    assert heard.sharings("b")[-1].alone_step_s == pytest.approx(1.0)
    look_s = 18 + 2
    turns_s = 2 * 0.55  # together they want the device for longer than a step
    assert ended["b"].ended_s == pytest.approx(20 + look_s + (60 - look_s) * turns_s, abs=3)
    assert ended["a"].ended_s == pytest.approx(100 + look_s + (turns_s - 1) * 40, abs=4)
    totals = [event.total for event in heard.events if isinstance(event, SharingMeasured)]
    assert totals
    assert totals[0] == pytest.approx(2 / turns_s, abs=0.01)


def test_without_reports_nobody_stands_still_for_a_look_that_nobody_would_end():
    rows = [came("a", 0, 100), came("b", 10, 60)]
    there = machines("1x1")
    ended = Simulation(rows, there, Profiled(there), find_policy("restow"), SimConfig()).run().jobs
    assert max(job.ended_s for job in ended) <= 160


def test_turns_of_a_time_slice_take_from_each_the_time_of_the_other():
    slices = ShareSpec(mode="time-slice")
    ended, heard = run([came("a", 0, 60, share=slices), came("b", 30, 30, share=slices)], machines("1x1"))
    assert {sharing.mode for sharing in heard.sharings("a")} == {"time-slice"}
    assert ended["a"].ended_s == pytest.approx(90, abs=1)
    assert ended["b"].ended_s == pytest.approx(90, abs=1)


def test_who_computes_whenever_it_likes_is_as_slow_as_those_who_stay_in_step():
    freely = ShareSpec(mode="free")
    ended, heard = run([came("a", 0, 60, share=freely), came("b", 25, 100, share=freely)], machines("1x1"))
    assert {sharing.mode for sharing in heard.sharings("a")} == {"free"}
    assert ended["a"].ended_s == pytest.approx(25 + 35 * 1.55, abs=2)


def test_who_shares_leaves_for_devices_that_have_become_free_and_is_as_fast_as_alone_there():
    own = ShareSpec(allow=False)
    rows = [came("x", 0, 60, share=own), came("a", 1, 200), came("b", 30, 100)]
    ended, heard = run(rows, machines("1x2"))
    assert ended["b"].moves == 1
    stay = next(stay for stay in heard.stays if stay.job == "b" and stay.came.value == "moved")
    assert stay.from_s == pytest.approx(61, abs=2)
    assert "has devices of its own again" in stay.came_why


def test_a_scattered_gang_is_brought_together_after_its_twins_were_made_ready():
    """Where it was measured counts for each place: 0.3 s a step on two machines, 0.1 s on one."""
    own = ShareSpec(allow=False)
    apart = Profile(step_s=0.3, exposed_s=0.2, wire_bytes=12_500_000, state_bytes=1_000_000)
    together = Profile(step_s=0.1, exposed_s=0.01, wire_bytes=12_500_000, state_bytes=1_000_000)
    gang = came(
        "gang", 5, 1000, together, 2, share=own, measured_on=parse_placement("gpu-0:0 gpu-0:1"),
        elsewhere=((parse_placement("gpu-0:0 gpu-1:0"), apart),),
    )  # fmt: skip
    single = Profile(step_s=1.0)
    rows = [came(id, 0, steps, single, share=own) for id, steps in (("s", 3), ("t", 300), ("u", 60))] + [gang]
    for standby_s in (0.0, 8.0):
        ended, heard = run(rows, machines("2x2"), delays=Delays(standby_s=standby_s))
        first, second = [stay for stay in heard.stays if stay.job == "gang"]
        assert first.to_s == pytest.approx(60 + standby_s, abs=2.5)
        apart_steps = (first.to_s - 5) / 0.3
        assert ended["gang"].ended_s == pytest.approx(first.to_s + (1000 - apart_steps) * 0.1, abs=0.5)
        assert len({slot.node for slot in second.placement}) == 1
