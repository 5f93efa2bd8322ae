"""The examples of policies of one's own do what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from restow.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples" / "policies"


def average_jct_s(folder: Path, policy: str, cluster: str, *jobs: str) -> float:
    trace, figures = folder / "jobs.csv", folder / "out.json"
    trace.write_text("\n".join(("id,submitted_s,workers,duration_s,tenant", *jobs)) + "\n")
    path = str(EXAMPLES / f"{policy}.py") if policy not in ("fifo", "fifo-strict") else policy
    assert main.run(["simulate", str(trace), "--cluster", cluster, "--policy", path, "--json", str(figures)]) == 0
    return json.loads(figures.read_text())["rows"][0]["avg_jct_s"]


def test_a_gang_that_came_first_is_not_passed_by_jobs_that_would_keep_it_waiting(tmp_path):
    """The gang can start at 100 s. Long, which came later, would be there until 302 s; short is over in time."""
    jobs = ("first,0,1,100,", "gang,1,2,50,", "long,2,1,300,", "short,3,1,40,")
    assert average_jct_s(tmp_path, "no_waiting_gangs", "1x2", *jobs) == pytest.approx((100 + 149 + 448 + 40) / 4)
    assert average_jct_s(tmp_path, "fifo", "1x2", *jobs) == pytest.approx((100 + 351 + 300 + 137) / 4)


def test_who_has_none_goes_before_who_has_one(tmp_path):
    """At 100 s Ann's two are over one after the other; Bob's comes first although it came last."""
    jobs = ("a0,0,1,100,ann", "a1,0,1,200,ann", "a2,1,1,100,ann", "b0,2,1,50,bob")
    assert average_jct_s(tmp_path, "one_each", "1x2", *jobs) == pytest.approx((100 + 200 + 249 + 148) / 4)
    assert average_jct_s(tmp_path, "fifo", "1x2", *jobs) == pytest.approx((100 + 200 + 199 + 248) / 4)
