"""The figures of each run, and what was done to which job, as tables of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from restow.sim.history import History
from restow.sim.outcome import Outcome
from restow.sim.report import words

LOSSES = ("failures", "stragglers", "lost steps", "lost device time")

Cell = tuple[str, float | None]
"""Text, and what it is sorted by; None: by its text."""


def figures(runs: Sequence[tuple[str, Outcome]]) -> str:
    head = (
        "policy", "average JCT", "median", "99th percentile", "makespan", "queueing", "held", "worst finish-time fairness", "moves",
        "suspensions", "decision p99",
    )  # fmt: skip
    fails = any(outcome.failures or outcome.stragglers for _, outcome in runs)
    rows = []
    for name, outcome in runs:
        found = outcome.figures()
        times = [found[key] for key in ("avg_jct_s", "p50_jct_s", "p99_jct_s", "makespan_s", "avg_queueing_s")]
        rows.append([
            (name, None), *((words.duration(seconds), seconds) for seconds in times),
            (words.percent(found["utilization"]), found["utilization"]), (f"{found['worst_ftf']:.2f}", found["worst_ftf"]),
            (str(found["moves"]), found["moves"]), (str(found["suspensions"]), found["suspensions"]),
            (f"{1e3 * found['decide_p99_s']:.1f} ms", found["decide_p99_s"]),
            *_losses(outcome if fails else None),
        ])  # fmt: skip
    return _table((*head, *LOSSES) if fails else head, rows, wordy=())


def _losses(outcome: Outcome | None) -> list[Cell]:
    if outcome is None:
        return []
    counts = (outcome.failures, outcome.stragglers, outcome.lost_steps)
    return [*((str(count), float(count)) for count in counts), (words.duration(outcome.lost_device_s), outcome.lost_device_s)]


def changes(history: History) -> str:
    rows: list[list[Cell]] = [
        [(words.moment(change.time_s), change.time_s), (change.job, None), (change.what, None), (words.place(change.now), None),
         (words.place(change.then), None), (change.why or "the policy gave no reason", None)]
        for change in history.changes
    ]  # fmt: skip
    return _table(("when", "job", "what", "from", "to", "why"), rows, wordy=(1, 2, 3, 4, 5))


def cut(history: History) -> str:
    left = history.changes_all - len(history.changes)
    return f"Cut: the first {len(history.changes)} of {history.changes_all}." if left else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[Cell]], wordy: Sequence[int]) -> str:
    classes = [' class="words"' if at in wordy else "" for at in range(len(head))]
    top = "".join(f"<th{kind}>{escape(words_)}</th>" for kind, words_ in zip(classes, head, strict=True))
    body = []
    for row in rows:
        cells = []
        for kind, (text, value) in zip(classes, row, strict=True):
            by = "" if value is None else f' data-value="{value:.9g}"'
            cells.append(f"<td{kind}{by}>{escape(text)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
