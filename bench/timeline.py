"""What a move cost, computed from the ranks' own step times: one set of definitions for every system. Pure.

    mark      one rank finished one step: when it began and ended, and the loss (all on one clock)
    attempt   one step as the whole gang made it; a step that was made twice has two attempts
    boundary  two attempts that follow each other and were made by different processes

    downtime  summed over the boundaries of a move: end of the first attempt after it, less end of the last one before
              it (each the slowest rank's), less one ordinary step: the median after the move for the last boundary;
              where a member joins before another leaves, the median before the move for the boundary of its joining
    pause     the same, but to the *start* of the first attempt (each rank's latest): no ordinary step needs to be taken off
    lost step-seconds   the wall time from the last step boundary before anything was done for the move until `after`
              steps have been made on the other side, less what an undisturbed job would have taken for the useful
              steps in it: the old median for those before the boundary, the new median for the others
    lost steps          attempts that had to be made again

Most systems have one boundary per move; one in which a member joins before another leaves has two.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    rank: int
    pid: int
    step: int
    start_s: float
    end_s: float
    loss: str  # float.hex


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    step: int
    start_s: float  # of the rank that began last
    end_s: float  # of the rank that ended last
    pids: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one move cost; see the module's docstring."""

    downtime_s: float
    pause_s: float
    lost_step_s: float
    lost_steps: int
    step_before_s: float  # median of ordinary steps
    step_after_s: float
    gaps_s: tuple[tuple[float, float], ...]  # for each boundary: end of the last attempt before it, of the first after it


class TooFewSteps(ValueError):
    """The run has not enough steps around the move to say what it cost."""


def said(lines: Iterable[str], kind: str) -> Iterator[dict[str, Any]]:
    """The fields of every line `@kind {...}`, whatever stands before the mark (a rank's prefix, for example).

    A line that was cut off when its process was killed is left out.
    """
    for line in lines:
        _, found, rest = line.partition(f"@{kind} ")
        if found:
            try:
                yield json.loads(rest)
            except json.JSONDecodeError:
                continue


def read_marks(lines: Iterable[str]) -> list[Mark]:
    """The marks among the lines of a run."""
    return [Mark(**fields) for fields in said(lines, "step")]


def attempts(marks: Iterable[Mark], world_size: int) -> list[Attempt]:
    """The steps as whole gangs made them, by time. An attempt that not every rank finished is left out."""
    return [attempt for attempt, whole in _gather(marks, world_size) if whole]


def _gather(marks: Iterable[Mark], world_size: int) -> list[tuple[Attempt, bool]]:
    """Every attempt and whether at least `world_size` ranks finished it."""
    by_step: dict[int, list[Mark]] = defaultdict(list)
    for mark in marks:
        by_step[mark.step].append(mark)
    gathered = []
    for step, of_step in by_step.items():
        for group in _same_attempt(sorted(of_step, key=lambda mark: mark.end_s)):
            attempt = Attempt(
                step=step,
                start_s=max(mark.start_s for mark in group),
                end_s=max(mark.end_s for mark in group),
                pids=frozenset(mark.pid for mark in group),
            )
            gathered.append((attempt, len(group) >= world_size))
    return sorted(gathered, key=lambda pair: pair[0].end_s)


def _same_attempt(of_step: Sequence[Mark]) -> Iterator[list[Mark]]:
    """Marks of one step, parted where a process repeats itself or a mark begins when all others had ended."""
    group: list[Mark] = []
    for mark in of_step:
        again = any(mark.pid == other.pid or mark.rank == other.rank for other in group)
        if group and (again or mark.start_s > max(other.end_s for other in group)):
            yield group
            group = []
        group.append(mark)
    if group:
        yield group


def cost(
    marks: Sequence[Mark],
    world_size: int,
    began_s: float,
    since_s: float = float("-inf"),
    until_s: float = float("inf"),
    after: int = 10,
) -> Cost:
    """What the move cost that began at `began_s`, when the first thing was done for it.

    Ordinary steps before it are those since `since_s`, when the link got its rate; nothing from `until_s` on counts.
    """
    everything = [pair for pair in _gather(marks, world_size) if pair[0].end_s < until_s]
    line = [attempt for attempt, whole in everything if whole]
    ends = [attempt.end_s for attempt in line]
    boundaries = [
        index
        for index in range(1, len(line))
        if line[index].pids != line[index - 1].pids and line[index].end_s > began_s
    ]
    if not boundaries:
        raise TooFewSteps(f"no step was made by other processes after {began_s:.3f}; the job did not move or did not go on")
    first, last = boundaries[0], boundaries[-1]
    origin = max((index for index in range(first) if ends[index] <= began_s), default=0)
    end = min(last + after, len(line) - 1)
    calm = [end_s for end_s in ends[: origin + 1] if end_s >= since_s][-11:]
    if end - last < 2 or len(calm) < 3:
        raise TooFewSteps(f"{len(calm)} calm steps before the move and {end - last} after its first; 3 and 2 are needed")
    before_s = median(_periods(calm))
    after_s = median(_periods(ends[last : end + 1]))
    final = {attempt.step: index for index, attempt in enumerate(line)}  # the last attempt of a step is the useful one
    useful = [index for index in range(origin + 1, end + 1) if final[line[index].step] == index]
    undisturbed_s = sum(before_s if index < last else after_s for index in useful)
    return Cost(
        downtime_s=sum(
            ends[index] - ends[index - 1] - (after_s if index == last else before_s) for index in boundaries
        ),
        pause_s=sum(line[index].start_s - ends[index - 1] for index in boundaries),
        lost_step_s=ends[end] - ends[origin] - undisturbed_s,
        lost_steps=sum(final.get(attempt.step, -1) >= 0 and line[final[attempt.step]] != attempt for attempt, _ in everything),
        step_before_s=before_s,
        step_after_s=after_s,
        gaps_s=tuple((ends[index - 1], ends[index]) for index in boundaries),
    )


def _periods(ends: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


def losses(marks: Iterable[Mark]) -> dict[tuple[int, int], str]:
    """(rank, step) → the loss that was printed last for it."""
    return {(mark.rank, mark.step): mark.loss for mark in sorted(marks, key=lambda mark: mark.end_s)}


def same_run(marks: Sequence[Mark], digests: dict[int, str], other: Sequence[Mark], other_digests: dict[int, str]) -> bool:
    """Are all losses and the final digests of two runs equal, bit by bit?"""
    return bool(digests) and losses(marks) == losses(other) and digests == other_digests


def first_difference(marks: Sequence[Mark], other: Sequence[Mark]) -> int | None:
    """The first step whose loss differs on any rank; None where all that both have are equal."""
    mine, theirs = losses(marks), losses(other)
    different = [step for rank, step in mine.keys() & theirs.keys() if mine[rank, step] != theirs[rank, step]]
    return min(different, default=None)
