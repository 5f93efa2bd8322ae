"""How long a step takes of jobs that share devices so that each uses what the others do not: storage and CPU, device, network.

A period has four parts. In each, one job computes, the next one communicates, and the two others read and prepare their next
batches (which takes two parts); then all change places. A part ends when whoever has to be done in it is done, so that the order
of the jobs counts: the best one is taken. Two jobs may also change places only twice. Every job makes one step in each period.

Source: Zhao et al., Muri (SIGCOMM 2022), section 4, and its simulator, which knows three stages of a step. What sharing costs on
top of that (`OVERHEADS`) is what its authors measured on their cluster. How much data waits in between it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations

Stages = tuple[float, float, float]
"""Seconds of a step, each alone: reading and preparing data (storage and CPU), computing, communicating."""

MOST = 4  # jobs in a group: as many as a period has parts
ALONE = 1.015  # a step of a job that has its devices to itself, under their system, by the same without it
OVERHEADS = {2: 1.33 / ALONE, 3: 1.5 / ALONE, 4: 1.37 / ALONE}  # by number of jobs: a period measured, by the same as it should be
RESOURCES = 4  # storage, CPU, device, network
IDLE: Stages = (0.0, 0.0, 0.0)


def period_s(group: Sequence[Stages]) -> float:
    """Of two to four jobs, overhead included."""
    return _period_s(tuple(sorted(group)))


def efficiency(group: Sequence[Stages]) -> float:
    """The part of the time that the four resources are in use, on average."""
    return sum(map(sum, group)) / (RESOURCES * period_s(group))


@lru_cache(maxsize=100_000)
def _period_s(group: tuple[Stages, ...]) -> float:
    best_s = min(rotation_s(order) for order in permutations((*group, *[IDLE] * (MOST - len(group)))))
    if len(group) == 2:
        (data_a, *rest_a), (data_b, *rest_b) = group
        best_s = min(best_s, max(data_a, sum(rest_b)) + max(data_b, sum(rest_a)))
    return best_s * OVERHEADS[len(group)]


def rotation_s(order: Sequence[Stages]) -> float:
    """Of four jobs that take turns in this order: the longest way once round the four parts, each of which lasts as long as the
    stages that fill it alone, or two of them as long as the data of one job."""
    one = [max(order[(part + 1) % MOST][2], order[(part + 2) % MOST][1]) for part in range(MOST)]
    two = [order[(part + 3) % MOST][0] for part in range(MOST)]  # this part and the one before
    longest = sum(one)
    for part in range(MOST):
        longest = max(longest, two[part] + one[(part + 1) % MOST] + one[(part + 2) % MOST], two[part] + two[(part + 2) % MOST])
    return longest
