"""What a step's time is made of."""

from __future__ import annotations

import time

from restow.page import create_page, open_page
from restow.sdk import group as group_module
from restow.sdk import times as times_module
from restow.sdk.times import StepTimes


class Group:
    """Whose collectives are launched by hand."""

    bytes_given = 0
    last_launch_s = waited_at_launch_s = 0.0

    def launch(self):
        self.last_launch_s, self.waited_at_launch_s = time.perf_counter(), group_module.waited_s


def exposed_s(tmp_path, monkeypatch, waits):
    """Of three steps alike: before the gradients' collective goes off, each has waited so long for others one by one."""
    group = Group()
    monkeypatch.setattr(times_module, "groups", [group])
    monkeypatch.setattr(group_module, "waited_s", 5.0)
    create_page(tmp_path / "page")
    page = open_page(tmp_path / "page")
    times = StepTimes(page)
    times.begin(0)
    for step in (1, 2, 3):
        for wait_s in waits:
            group.launch()
            group_module.waited_s += wait_s
        group.launch()
        times.before_update()
        group_module.waited_s += 7.0  # of the next step's
        times._slow_s = 0.0
        times.after_step(step, None, {})
    return page.get("exposed_s")


def test_waiting_for_others_before_the_gradients_counts_as_waiting(tmp_path, monkeypatch):
    assert 1.5 <= exposed_s(tmp_path, monkeypatch, (1.0, 0.5)) < 2.0


def test_without_it_there_is_what_the_gradients_wait(tmp_path, monkeypatch):
    assert exposed_s(tmp_path, monkeypatch, ()) < 0.5
