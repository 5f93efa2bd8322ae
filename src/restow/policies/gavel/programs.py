"""What part of the time each job is to have on each kind of device: Gavel's linear programs, one for each goal.

All of them have the same limits, for x_jk, the part of the time of job j on kind k:

    sum over kinds of x_jk <= 1,   sum over jobs of devices_j x_jk <= devices of kind k,   x >= 0

and a job's rate is the sum over kinds of speed_jk x_jk. Source: Narayanan et al., OSDI 2020, section 4, and its repository
(`scheduler/policies`), from which `equal_rates` and `own_rates` are. What is left once the worst job has as much as it can have is
not said there; here it goes where it is used best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
from scipy import sparse
from scipy.optimize import linprog

SLACK = 1e-6  # that the second program may take from the worst job, so that rounding does not make it impossible
NEXT_PART = 1e-3  # at most; of who comes after those that have a part
RATIO_STEP = 1.01  # the ratio of finish-time fairness is found to this factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Arrays over jobs, `speeds` over jobs and kinds."""

    speeds: numpy.ndarray  # steps per second
    sizes: numpy.ndarray  # devices
    capacities: numpy.ndarray  # devices of each kind
    left: numpy.ndarray  # steps; not known: as many as it has made
    since_s: numpy.ndarray  # that it is there
    owned_s: numpy.ndarray  # that what it has done would have taken on devices of its own

    @property
    def equal_rates(self) -> numpy.ndarray:
        """If every job had the same part of every kind, whatever its size; all parts so large that they add up to one."""
        rates: numpy.ndarray = self.speeds @ (self.capacities / self.capacities.sum())
        return rates

    @property
    def own_rates(self) -> numpy.ndarray:
        """If every job had its even number of the devices of every kind to itself, for as large a part of the time as its size
        allows."""
        parts = self.capacities[None, :] / len(self.sizes) / self.sizes[:, None]
        parts /= numpy.maximum(1.0, parts.sum(axis=1))[:, None]
        rates: numpy.ndarray = (self.speeds * parts).sum(axis=1)
        return rates


Program = Callable[[Question], numpy.ndarray]
"""(jobs, kinds): parts of the time."""


def max_min(question: Question) -> numpy.ndarray:
    """The worst job is to have as large a rate as it can, against its equal one, by its devices (section 4.1)."""
    return _most_even(question, question.equal_rates / question.sizes)


def least_makespan(question: Question) -> numpy.ndarray:
    """All of what is there is to end as soon as it can (section 4.2)."""
    return _most_even(question, question.left)


def max_sum(question: Question) -> numpy.ndarray:
    """As many steps per second as can be, of whatever job (section 4.2, without costs). Who has no part comes next by what it
    would bring, which is how far from nothing the interior-point solver of the authors leaves it."""
    found = _solve(question, question.speeds, numpy.zeros(len(question.sizes)))
    assert found is not None
    brings = question.speeds / question.sizes[:, None]
    parts: numpy.ndarray = numpy.maximum(found, NEXT_PART * brings / brings.max())
    return parts


def finish_time_fairness(question: Question) -> numpy.ndarray:
    """The job whose time from its coming to its end is longest against what it would be on devices of its own is to be as near to
    that as can be (section 4.2; Mahajan et al., Themis, NSDI 2020). Found by halving: whether a ratio can be held is linear."""
    to_do_s = question.left / _positive(question.own_rates)
    owned_s = question.owned_s + to_do_s
    high = 2.0 * float(numpy.max((question.since_s + to_do_s) / owned_s))
    low = float(numpy.max(question.since_s / owned_s))
    best = None
    while best is None or high > low * RATIO_STEP:
        ratio = high if best is None else (low + high) / 2.0
        time_s = ratio * owned_s - question.since_s
        found = _used_best(question, question.left / _positive(time_s)) if numpy.all(time_s > 0) else None
        if found is None and best is None:
            high *= 2.0
        elif found is None:
            low = ratio
        else:
            best, high = found, ratio
    return best


def _most_even(question: Question, needs: numpy.ndarray) -> numpy.ndarray:
    """The least, over jobs, of its rate by its need is as large as can be; a need of 0 counts as a very small one."""
    jobs, kinds = question.speeds.shape
    needs = _positive(needs)
    worth = question.speeds / needs[:, None]
    scale = worth.max() or 1.0  # numbers of very different sizes are bad for the solver
    goal = numpy.zeros(jobs * kinds + 1)
    goal[-1] = -1.0
    limits, bounds = _limits(question)
    rates = _rows(worth / scale)
    together = sparse.vstack([
        sparse.hstack([limits, sparse.csr_matrix((len(bounds), 1))]),
        sparse.hstack([-rates, numpy.ones((jobs, 1))]),
    ]).tocsr()  # fmt: skip
    first = linprog(goal, A_ub=together, b_ub=numpy.concatenate([bounds, numpy.zeros(jobs)]), method="highs")
    found = _used_best(question, float(first.x[-1]) * scale * needs * (1.0 - SLACK))
    return found if found is not None else _parts(first.x[:-1], question)


def _used_best(question: Question, least: numpy.ndarray) -> numpy.ndarray | None:
    """Each job has at least this rate, and the sum of rates against the equal ones is as large as can be; None if that cannot
    be."""
    return _solve(question, question.speeds / _positive(question.equal_rates)[:, None], least)


def _solve(question: Question, worth: numpy.ndarray, least: numpy.ndarray) -> numpy.ndarray | None:
    """The largest sum of what each job is worth on each kind, with at least these rates."""
    limits, bounds = _limits(question)
    best = _positive(question.speeds.max(axis=1))
    rates = _rows(question.speeds / best[:, None])
    matrix = sparse.vstack([limits, -rates]).tocsr()
    most = numpy.concatenate([bounds, -least / best])
    found = linprog(-worth.ravel(), A_ub=matrix, b_ub=most, bounds=(0.0, 1.0), method="highs")
    return _parts(found.x, question) if found.status == 0 else None


def _limits(question: Question) -> tuple[Any, numpy.ndarray]:
    """A job has at most all of the time, and a kind no more than its devices."""
    jobs, kinds = question.speeds.shape
    whole = _rows(numpy.ones((jobs, kinds)))
    used = sparse.kron(question.sizes[None, :], sparse.identity(kinds))
    return sparse.vstack([whole, used]), numpy.concatenate([numpy.ones(jobs), question.capacities])


def _rows(values: numpy.ndarray) -> Any:
    """A row for each job, with its values where its variables are."""
    jobs, kinds = values.shape
    places = (numpy.repeat(numpy.arange(jobs), kinds), numpy.arange(jobs * kinds))
    return sparse.csr_matrix((values.ravel(), places), shape=(jobs, jobs * kinds))


def _parts(found: numpy.ndarray, question: Question) -> numpy.ndarray:
    parts: numpy.ndarray = numpy.clip(found.reshape(question.speeds.shape), 0.0, 1.0)
    return parts


def _positive(values: numpy.ndarray) -> numpy.ndarray:
    found: numpy.ndarray = numpy.maximum(values, 1e-12)
    return found
