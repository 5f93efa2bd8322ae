"""Which jobs share devices: groups of jobs of the same size that use the resources best, found by matching.

The first jobs that would fit if each group held as many as it may are taken. Then, as long as they need more devices than there
are, every two groups of the same size are joined that a matching of maximum weight pairs (Edmonds' blossom algorithm; weight:
efficiency), at most four times over. A group whose period is longer than its jobs' steps one after the other is parted again. What
comes first by its first job and fits runs. Source: Zhao et al., Muri (SIGCOMM 2022), section 5, Algorithm 1, and its simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from restow.errors import SetupError
from restow.policies.muri.interleaving import MOST, Stages, efficiency, period_s

SCALE = 1_000_000  # weights as whole numbers: a matching of these is exact
ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Member:
    """One job."""

    id: str
    workers: int
    stages: Stages | None  # None: not known, so that it has its devices to itself
    alone_s: float  # a step


Group = tuple[Member, ...]
IsPossible = Callable[[Group], bool]


def grouped(ordered: Sequence[Member], devices: int, is_possible: IsPossible, most: int = MOST) -> list[Group]:
    """The groups that run, first things first. `ordered`: by rank; `is_possible(group)`: can they run together at all?"""
    rank = {member.id: number for number, member in enumerate(ordered)}
    by_size: dict[int, list[Group]] = {}
    for member in _covered(ordered, devices, most):
        by_size.setdefault(member.workers, []).append((member,))
    needed = sum(size * len(groups) for size, groups in by_size.items())
    for _ in range(ROUNDS):
        if needed <= devices:
            break
        pairs = [(size, pair) for size, groups in by_size.items() for pair in _matching(groups, is_possible, most)]
        for size, (a, b) in pairs:
            if needed > devices:
                by_size[size] = [group for group in by_size[size] if group not in (a, b)] + [a + b]
                needed -= size
    found = [part for groups in by_size.values() for group in groups for part in _worthwhile(group)]
    found.sort(key=lambda group: min(rank[member.id] for member in group))
    return _fitting(found, devices)


def _covered(ordered: Sequence[Member], devices: int, most: int) -> list[Member]:
    """Those that would have a place if every group of their size were full, in their order."""
    waiting: dict[int, list[Member]] = {}
    for member in ordered:
        waiting.setdefault(member.workers, []).append(member)
    covered: set[str] = set()
    for member in ordered:
        if member.id not in covered and member.workers <= devices:
            devices -= member.workers
            covered.update(other.id for other in waiting[member.workers][:most])
            del waiting[member.workers][:most]
    return [member for member in ordered if member.id in covered]


def _matching(groups: Sequence[Group], is_possible: IsPossible, most: int) -> list[tuple[Group, Group]]:
    weights: dict[tuple[int, int], int] = {}
    for at, a in enumerate(groups):
        for number, b in enumerate(groups[:at]):
            if len(a) + len(b) <= most and (stages := _stages(a + b)) and is_possible(a + b):
                weights[number, at] = round(SCALE * efficiency(stages))
    return [(groups[a], groups[b]) for a, b in heaviest(weights)]


def heaviest(weights: Mapping[tuple[int, int], int]) -> list[tuple[int, int]]:
    """The pairs of a matching whose weights add up to most, ascending. O(numbers^3)."""
    try:
        import networkx
    except ImportError:
        raise SetupError("networkx is missing; pip install networkx") from None
    graph = networkx.Graph()
    graph.add_weighted_edges_from((a, b, weight) for (a, b), weight in weights.items())
    return sorted((min(pair), max(pair)) for pair in networkx.max_weight_matching(graph))


def _stages(group: Group) -> list[Stages] | None:
    """None if those of one are not known."""
    found = [member.stages for member in group if member.stages]
    return found if len(found) == len(group) else None


def _worthwhile(group: Group) -> list[Group]:
    """The group, or each job for itself where they would be done sooner one after the other."""
    stages = _stages(group)
    if len(group) == 1 or stages is None or period_s(stages) <= sum(member.alone_s for member in group):
        return [group]
    return [(member,) for member in group]


def _fitting(groups: Sequence[Group], devices: int) -> list[Group]:
    found = []
    for group in groups:
        if group[0].workers <= devices:
            devices -= group[0].workers
            found.append(group)
    return found
