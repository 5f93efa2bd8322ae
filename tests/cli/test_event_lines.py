"""Events as sentences: every kind has one, and a job finds what it had a part in."""

from __future__ import annotations

import pytest

from restow.cli.event_lines import _SENTENCES, concerns, event_line
from restow.codec import TYPES, to_json
from restow.job import Sharing
from restow.messages import Event, ScheduleAdopted, SharingMeasured
from restow.placement import Slot

ADOPTED = to_json(ScheduleAdopted(
    time_s=0.0, placements=(("a-1", (Slot("m1", 0), Slot("m1", 1))), ("b-1", ())), reasons=(("a-1", "together again"),),
    sharing=(("c-1", Sharing(mode="interleave", partners=("d-1",))),),
))  # fmt: skip
MEASURED = to_json(SharingMeasured(
    time_s=0.0, jobs=("c-1", "d-1"), mode="interleave", speeds=(0.9, 0.8), total=1.7, predicted=1.8, kept=True, reason="it pays",
))  # fmt: skip


def test_every_kind_of_event_has_a_sentence():
    kinds = {name for name, kind in TYPES.items() if issubclass(kind, Event)}
    assert kinds - set(_SENTENCES) == {"ScheduleAdopted", "Progressed"}  # has its own; is not journalled


def test_a_schedule_names_each_job_and_for_one_job_only_its_part():
    assert event_line(ADOPTED)[10:] == (
        "ScheduleAdopted   a-1: m1:0 m1:1 (together again); b-1: no device; c-1: with d-1, interleave"
    )
    assert event_line(ADOPTED, "a-1")[10:] == "ScheduleAdopted   m1:0 m1:1 (together again)"


def test_what_was_measured_together_is_a_sentence():
    line = event_line(MEASURED)
    assert "interleave: c-1 0.90, d-1 0.80; together 1.70 of one alone (1.80 predicted); kept: it pays" in line


@pytest.mark.parametrize(
    ("event", "job", "expected"),
    [
        (ADOPTED, "a-1", True),
        (ADOPTED, "c-1", True),
        (ADOPTED, "e-1", False),
        (MEASURED, "d-1", True),
        ({"type": "MovePredicted", "move": {"job": "a-1"}}, "a-1", True),
        ({"type": "CancelAsked", "job": "a-1"}, "a-1", True),
        ({"type": "CancelAsked", "job": "a-1"}, "a-10", False),
    ],
)
def test_a_job_finds_the_events_that_it_has_a_part_in(event, job, expected):
    assert concerns(event, job) is expected
