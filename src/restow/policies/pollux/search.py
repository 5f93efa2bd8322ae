"""Pollux's genetic search: a population of allocations that is crossed, changed and thinned out, generation after generation.

An allocation is a row for each job with its number of devices on each machine. Of two goals, the power mean of the jobs' speed-ups
and how well devices are used, those stay that no other beats in both, the less crowded ones first (NSGA-II: Deb et al., 2002);
from the last generation the one with the best mean is taken. Source: Qiao et al., OSDI 2021, section 4.2, and the scheduler of its
artifact for the changes and their probabilities. Chance comes from the generator that is given.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy

Numbers = numpy.ndarray[Any, Any]

RESET_PART = 0.1  # of the jobs of a child are put back to where they are now ...
THINNED_PART = 0.1  # ... and of others ...
THINNED_MACHINES = 0.1  # ... lose this part of their machines


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked. Arrays: J jobs, the first ones first where devices are short, N machines."""

    now: Numbers  # (J, N) devices that each has
    capacity: Numbers  # (N,) devices
    allowed: Numbers  # (J, most + 1) may a gang have so many devices?
    score: Callable[[Numbers], tuple[Numbers, Numbers]]  # (P, J, N) → (P,) power mean and (P,) use, both the more the better


class Search:
    """`population` allocations through `generations`."""

    def __init__(self, problem: Problem, random: numpy.random.Generator, *, population: int, generations: int):
        self._problem, self._random = problem, random
        self._size, self._generations = population, generations

    def run(self, seeds: Numbers) -> tuple[Numbers, Numbers]:
        """The best allocation (J, N), and the last population (P, J, N). `seeds`: (P, J, N) to begin with."""
        states = _distinct(self._repaired(seeds))
        goals = self._goals(states)
        for _ in range(self._generations):
            order = ranked(goals, self._size)
            states, goals = states[order], goals[order]
            children = self._repaired(self._mutated(self._crossed(states)))
            both = _distinct(numpy.concatenate([states, children]))
            goals = numpy.concatenate([goals, self._goals(both[len(states) :])])
            states = both
        order = ranked(goals, self._size)
        states, goals = states[order], goals[order]
        return states[int(goals[:, 0].argmax())], states

    def _goals(self, states: Numbers) -> Numbers:
        return numpy.column_stack(self._problem.score(states))

    def _crossed(self, ranked: Numbers) -> Numbers:
        """Children of two, each the better of a pair: the first jobs of one, the others of the other. `ranked`: the best first."""
        jobs = ranked.shape[1]
        parents = self._random.integers(len(ranked), size=(2, self._size, 2)).min(axis=2)
        cut = self._random.integers(jobs, size=(self._size, 1)) if jobs > 1 else numpy.zeros((self._size, 1), dtype=int)
        is_first = (numpy.arange(jobs)[None, :] < cut)[..., None]
        children: Numbers = numpy.where(is_first, ranked[parents[0]], ranked[parents[1]])
        return children

    def _mutated(self, states: Numbers) -> Numbers:
        problem, random = self._problem, self._random
        is_reset = random.random(states.shape[:2]) < RESET_PART
        states = numpy.where(is_reset[..., None], problem.now, states)
        thinned = numpy.where(random.random(states.shape[:2]) < THINNED_PART, THINNED_MACHINES, 0.0)
        states[random.random(states.shape) < thinned[..., None]] = 0
        is_free = numpy.broadcast_to((states.sum(axis=1) < problem.capacity)[:, None, :], states.shape)
        anywhere = is_free / numpy.maximum(is_free.sum(axis=1, keepdims=True), 1)
        is_there = is_free & (states > 0)
        there = is_there / numpy.maximum(is_there.sum(axis=1, keepdims=True), 1)
        more = random.random(states.shape) < anywhere + there - anywhere * there
        most = numpy.broadcast_to(problem.capacity, states.shape)
        states[more] = random.integers(states[more], numpy.maximum(most[more], states[more]) + 1)
        return states

    def _repaired(self, states: Numbers) -> Numbers:
        """On each machine at most one gang of several machines and no more than its devices; gangs of sizes that they may have."""
        problem = self._problem
        is_spread = (numpy.count_nonzero(states, axis=2) > 1)[..., None] & (states > 0)
        states = numpy.where(is_spread & (is_spread.cumsum(axis=1) > 1), 0, states)
        shuffled = self._random.random(states.shape).argsort(axis=2)
        most = problem.allowed.shape[1] - 1 - problem.allowed[:, ::-1].argmax(axis=1)
        in_turn = numpy.take_along_axis(states, shuffled, axis=2)
        in_turn = numpy.diff(numpy.minimum(in_turn.cumsum(axis=2), most[:, None]), axis=2, prepend=0)
        states = numpy.take_along_axis(in_turn, shuffled.argsort(axis=2), axis=2)
        states = numpy.diff(numpy.minimum(states.cumsum(axis=1), problem.capacity), axis=1, prepend=0)
        is_allowed = problem.allowed[numpy.arange(states.shape[1])[None, :], states.sum(axis=2)]
        return numpy.where(is_allowed[..., None], states, 0)


def _distinct(states: Numbers) -> Numbers:
    """Each once, in the order in which they were found."""
    first: dict[bytes, int] = {}
    for at, row in enumerate(numpy.ascontiguousarray(states.reshape(len(states), -1).astype(numpy.int16))):
        first.setdefault(row.tobytes(), at)
    return states[list(first.values())]


def ranked(goals: Numbers, size: int) -> Numbers:
    """The best `size`, front by front and the less crowded first. O(states log states), since there are two goals."""
    fronts: list[list[int]] = []
    tops: list[float] = []  # of each front, minus the best second goal so far
    before, at = None, 0
    for state in numpy.lexsort((-goals[:, 1], -goals[:, 0])).tolist():
        pair = goals[state, 0], goals[state, 1]
        if pair != before:  # whoever came before is no worse in the first goal: it is beaten where it is no better in the second
            before, at = pair, bisect_right(tops, -pair[1])
        if at == len(fronts):
            fronts.append([])
            tops.append(0.0)
        fronts[at].append(state)
        tops[at] = -pair[1]
    order: list[int] = []
    for front in map(numpy.array, fronts):
        if len(order) < size:
            order += front[numpy.argsort(-_distances(goals[front]), kind="stable")].tolist()
    return numpy.array(order[:size])


def _distances(goals: Numbers) -> Numbers:
    """Of each to its neighbours on a front; infinite at both ends."""
    found = numpy.zeros(len(goals))
    for goal in goals.T:
        order = goal.argsort(kind="stable")
        width = goal[order[-1]] - goal[order[0]]
        found[order[[0, -1]]] = numpy.inf
        if width > 0 and len(order) > 2:
            found[order[1:-1]] += (goal[order[2:]] - goal[order[:-2]]) / width
    return found
