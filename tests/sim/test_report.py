"""The page: whole, escaped, and of nothing from elsewhere; what is drawn is what happened, and what is cut is said."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from restow.placement import parse_placement
from restow.policies.srtf import Srtf
from restow.sim import history as bounds
from restow.sim.history import history
from restow.sim.machines import machines
from restow.sim.outcome import Outcome
from restow.sim.recorder import Recorder
from restow.sim.report import Ran, page
from restow.sim.report.axes import log_time_ticks, time_ticks
from restow.sim.report.words import moment, place
from restow.sim.rows import Row
from restow.sim.simulation import Simulation
from restow.sim.world import Recorded

EVIL = "<script>alert('x')</script>&\"job"
VOID = {"meta", "rect", "path", "circle"}


class Balanced(HTMLParser):
    """Every tag is closed in its turn; notes what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.links: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "data") or name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        elif tag not in VOID:
            raise AssertionError(f"</{tag}> closes {self.open[-1:]}")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def ran(policy: str = "srtf", seed: int = 0, rows: list[Row] | None = None) -> Ran:
    found = rows or [
        Row(id=EVIL, submitted_s=0, workers=2, duration_s=100), Row(id="short", submitted_s=10, workers=2, duration_s=20),
    ]  # fmt: skip
    recorder = Recorder()
    outcome: Outcome = Simulation(found, machines("1x2"), Recorded(), Srtf(), recorder=recorder).run()
    return Ran(policy=policy, seed=seed, outcome=outcome, history=history(recorder.stays, machines("1x2"), 0.0))


def read(html: str) -> Balanced:
    found = Balanced()
    found.feed(html)
    found.close()
    assert found.open == []
    return found


def test_the_page_is_whole_needs_nothing_else_and_escapes_what_others_have_written():
    html = page(f"of {EVIL}", [EVIL], [ran(policy=EVIL), ran(policy="other")])
    found = read(html)
    assert found.tags.count("script") == 1
    assert found.links == []
    assert not re.search(r"https?:|url\(|@import|<link", html)
    assert EVIL in found.texts
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ET.fromstring(svg)


def test_figures_reasons_and_marks_are_those_of_the_run():
    html = page("t", [], [ran()])
    rows = ET.fromstring(re.findall(r"<table>.*?</table>", html, re.DOTALL)[1]).findall("tbody/tr")
    assert [["".join(cell.itertext()) for cell in row] for row in rows] == [
        ["00:00:13", EVIL, "suspended", "gpu-0:0-1", "–", "waits for 2 devices, 0 are left by those before it"],
        ["00:00:33", EVIL, "resumed", "–", "gpu-0:0-1", "starts, since it is its turn"],
    ]
    assert html.count('<path class="gone" d="M') == 2  # one in the key
    assert html.count('<path class="back" d="M') == 2
    assert '<td data-value="71.5">71.5 s</td>' in html  # (120 + 23) / 2


def test_the_steps_of_the_completion_line_are_where_jobs_end():
    """Two jobs of 1 s and 100 s: half of them at the left edge, all at the right one."""
    rows = [Row(id="a", submitted_s=0, workers=1, duration_s=1), Row(id="b", submitted_s=0, workers=1, duration_s=100)]
    svg = re.search(r'<svg[^>]*aria-label="part of the jobs.*?</svg>', page("t", [], [ran(rows=rows)]), re.DOTALL)
    assert svg
    line = ET.fromstring(svg[0]).find("path[@class='curve']")
    assert line is not None
    assert line.get("d") == "M52.0 254.0H52.0V132.0H948.0V10.0H948.0"


def test_what_was_cut_is_said(monkeypatch):
    monkeypatch.setattr(bounds, "BARS_MAX", 1)
    monkeypatch.setattr(bounds, "CHANGES_MAX", 1)
    monkeypatch.setattr(bounds, "DEVICES_MAX", 1)
    html = page("t", [], [ran()])
    assert "Cut: drawn are the first 1 of 2 devices and until 00:00:13 of 00:02:00." in html
    assert "Cut: the first 1 of 2." in html
    monkeypatch.undo()
    assert "Cut" not in page("t", [], [ran()])


def test_of_many_runs_the_first_of_each_policy_is_drawn_and_the_figures_are_of_all():
    one = ran()
    html = page("t", [], [replace(one, policy=name, seed=seed) for name in "ab" for seed in range(7)])
    assert html.count("<details") == 2
    assert "Drawn are 2 of 14 runs, the first of each policy." in html
    assert html.count("<td>a seed ") == 7


def test_a_run_of_no_time_is_a_page_all_the_same():
    read(page("t", [], [ran(rows=[Row(id="a", submitted_s=0, workers=1, steps=1e-9)])]))


def test_places_and_moments_are_written_short():
    assert place(parse_placement("m:0 m:1 m:2 n:5 n:7")) == "m:0-2 n:5 n:7"
    assert place(parse_placement("m:1@0.5 m:0@0.5")) == "m:0-1@0.5"
    assert moment(2 * 86400 + 3661.9) == "2 d 01:01:01"


@pytest.mark.parametrize(("span_s", "words"), [(10, "0 s"), (7300, "0 h"), (1e6, "0 d")])
def test_ticks_are_round_and_not_too_many(span_s, words):
    ticks = time_ticks(0, span_s)
    assert 2 <= len(ticks) <= 11
    assert ticks[0][1] == words
    assert [name for _, name in log_time_ticks(5, 5000)] == ["10 s", "1 min", "10 min", "1 h"]
