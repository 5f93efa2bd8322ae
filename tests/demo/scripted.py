"""A scripted controller's answers for tests of the demo: literal moments of a small play, in the shape of `ps` and `nodes`."""

from __future__ import annotations

from typing import Any

from restow.demo import watch
from restow.demo.timeline import Moment, Timeline


def job(name: str, placement: str, step: int, state: str = "running", **more: Any) -> dict[str, Any]:
    return {
        "id": f"{name}-1",
        "name": name,
        "state": state,
        "generation": 1,
        "placement": placement.split(),
        "switch": None,
        "step": step,
        "steps_total": 100,
        "values": {"loss": 0.5},
        "reason": "",
        "moves": [],
        **more,
    }


NODES = [{"name": name, "devices": [{"index": 0}, {"index": 1}]} for name in ("m1", "m2")]
NAMES = ("digits", "visitor", "neighbour", "gpt")


def moment(time_s: float, *jobs: dict[str, Any], link_bytes: int | None = None) -> Moment:
    return watch.moment(time_s, jobs, NODES, link_bytes)


def play() -> Timeline:
    """A gang, scattered for 10 s at 2 steps per second; the neighbour leaves; moved at 12 s; then 10 steps per second."""
    timeline = Timeline()
    for time_s in range(24):
        scattered = time_s <= 12
        gang_step = 2 * time_s if scattered else 24 + 10 * (time_s - 12)
        jobs = [
            job("digits", "m1:0", 50 * time_s, steps_total=None),
            job("neighbour", "m2:0", 40 * min(time_s, 10), "running" if time_s <= 10 else "done"),
            job(
                "gpt",
                "m1:1 m2:1" if scattered else "m2:0 m2:1",
                gang_step,
                generation=1 if scattered else 2,
                steps_total=500,
            ),
        ]
        timeline.moments.append(moment(float(time_s), *jobs, link_bytes=10_000_000 * min(time_s, 12)))
    timeline.move_s = 12.5
    return timeline


MOVE = {
    "step_before_s": 0.5,
    "step_predicted_s": 0.11,
    "step_after_s": 0.1,
    "downtime_s": 0.0712,
    "wire_bytes": 12_600,
    "lost_steps": 0,
    "now": ["m1:1", "m2:1"],
    "then": ["m2:0", "m2:1"],
    "step": 24,
    "reason": "gpt: one machine instead of two",
}
