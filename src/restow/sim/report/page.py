"""The page: what ran, the figures, the lines, the timelines, and what was done to jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from restow.sim.history import History
from restow.sim.outcome import Outcome
from restow.sim.report import curves, style, tables, timeline

DRAWN_MAX = 12  # runs of which more than figures is shown

_MARKS = (
    '<div class="key faint"><span><svg viewBox="0 0 40 12"><path class="gone" d="M20 0v12"/></svg> suspended</span>'
    '<span><svg viewBox="0 0 40 12"><path class="back" d="M20 0v12"/></svg> resumed</span>'
    '<span><svg viewBox="0 0 40 12"><path class="move" d="M4 6H36"/><circle class="tip" cx="36" cy="6" r="2.6"/></svg> moved,'
    " the point is where it came to</span><span>bars of part of the height: a shared device</span></div>"
)

_TROUBLES = (
    '<div class="key faint"><span><svg viewBox="0 0 40 12"><path class="lost" d="M20 0v12"/></svg> lost with a machine</span>'
    '<span><svg viewBox="0 0 40 12"><rect class="away" width="40" height="12"/></svg> machine away</span>'
    '<span><svg viewBox="0 0 40 12"><rect class="slow" width="40" height="12"/></svg> slow device</span></div>'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One run."""

    policy: str
    seed: int
    outcome: Outcome
    history: History


def page(title: str, about: Sequence[str], runs: Sequence[Ran]) -> str:
    """HTML, whole. `about`: what was simulated, a line each. Of more than 12 runs only the first of each policy is drawn, or of
    the first 12 policies; figures and completion times are of all."""
    policies = list(dict.fromkeys(run.policy for run in runs))
    several = len({run.seed for run in runs}) > 1
    drawn = runs if len(runs) <= DRAWN_MAX else _firsts(runs)[:DRAWN_MAX]
    times = {policy: [job.jct_s for run in runs if run.policy == policy for job in run.outcome.jobs] for policy in policies}
    numbered = [(policies.index(run.policy), run.history) for run in drawn]
    key = curves.key(policies, escape)
    left_out = f"Drawn are {len(drawn)} of {len(runs)} runs, the first of each policy." if len(drawn) < len(runs) else ""
    parts = [
        f"<h1>{escape(title)}</h1>", *(_faint(line) for line in about),
        tables.figures([(_name(run, several), run.outcome) for run in runs]),
        _faint("JCT: from submission to end. Held: device seconds held, of all there were. Press a heading to sort."),
        "<h2>Jobs done within a time</h2>", key, _wide(curves.completions(times)),
        _faint("Part of all jobs whose completion time is at most so long; of all seeds together."),
        "<h2>Devices held</h2>", key, _faint(left_out) if left_out else "",
        _wide(curves.fullness(numbered, lambda part: part.held, "share of devices held over time")),
        "<h2>Free devices that are together</h2>", key,
        _wide(curves.fullness(numbered, lambda part: part.together, "share of free devices on free machines over time")),
        _faint("Of the devices that nobody holds, the part on machines that are wholly free. The lower, the more scattered a gang"
               " that comes now would be. No line: all were held."),
        "<h2>Who was where</h2>", _MARKS, _TROUBLES if any(run.history.bands for run in drawn) else "",
        *(_run(run, _name(run, several), run is drawn[0]) for run in drawn),
    ]  # fmt: skip
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<title>{escape(title)}</title><style>{style.STYLE}</style></head>\n'
        f"<body>{chr(10).join(parts)}\n<script>{style.SCRIPT}</script></body></html>\n"
    )


def _firsts(runs: Sequence[Ran]) -> list[Ran]:
    return list({run.policy: run for run in reversed(runs)}.values())[::-1]


def _name(run: Ran, several: bool) -> str:
    return f"{run.policy} seed {run.seed}" if several else run.policy


def _run(run: Ran, name: str, is_open: bool) -> str:
    history = run.history
    done = f"{history.changes_all} changes" if history.changes_all else "nobody was moved or suspended"
    parts = [f"<summary>{escape(name)}: {done}</summary>", _wide(timeline.timeline(history)), _faint(timeline.cut(history))]
    if history.changes:
        parts += [tables.changes(history), _faint(tables.cut(history))]
    return f"<details{' open' if is_open else ''}>{''.join(parts)}</details>"


def _faint(line: str) -> str:
    return f'<p class="faint">{escape(line)}</p>' if line else ""


def _wide(svg: str) -> str:
    return f'<div class="wide">{svg}</div>'
