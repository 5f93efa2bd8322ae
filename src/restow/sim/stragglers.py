"""Devices that are slower than their kind for a time; a gang is as slow as its slowest rank.

Each device becomes one by itself, after a time that is drawn from an exponential distribution: the same for a seed on any computer,
whatever the policy. Nobody is told; the core hears what ranks say of their steps, as in a live cluster, and names the slow ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from restow.cluster import Node
from restow.job import JobSpec
from restow.placement import Placement
from restow.sim.clock import Clock
from restow.sim.troubles import Trouble

DAY_S = 24 * 3600.0
ONLY_THE_FIRST = (0.0,)


@dataclass(frozen=True, slots=True, kw_only=True)
class StragglerConfig:
    """Seconds. There are none where `times` is 1."""

    times: float = 1.0  # as long as on others does a step take on one
    every_s: float = DAY_S  # mean time until a device becomes one, from when it was as fast as others
    lasts_s: float = 3600.0

    def borne(self, spec: JobSpec) -> JobSpec:
        """A rank that is found to be slow may go to another device."""
        return replace(spec, on_slow="move") if self.times > 1.0 else spec


class Stragglers:
    def __init__(self, config: StragglerConfig, seed: int, nodes: Mapping[str, Node], clock: Clock) -> None:
        self.spells: list[Trouble] = []  # so far, by their beginning
        self._config, self._clock = config, clock
        is_any = config.times > 1.0
        self._chances = {
            (node.name, device.index): random.Random(f"straggler {seed} {node.name} {device.index}")
            for node in nodes.values() for device in node.devices if is_any
        }  # fmt: skip
        self._slow: set[tuple[str, int]] = set()
        self._changed: Callable[[tuple[str, int]], None] = lambda device: None

    def begin(self, changed: Callable[[tuple[str, int]], None]) -> None:
        """`changed(device)`: it is slower from now on, or as fast as before."""
        self._changed = changed
        for device in self._chances:
            self._foresee(device)

    def _foresee(self, device: tuple[str, int]) -> None:
        after_s = self._chances[device].expovariate(1.0 / self._config.every_s)
        self._clock.at(self._clock.now_s + after_s, lambda: self.slow_down(device), is_beside=True)

    def slow_down(self, device: tuple[str, int]) -> None:
        """From now on, for as long as such a thing lasts."""
        if device in self._slow:
            return
        now_s = self._clock.now_s
        until_s = now_s + self._config.lasts_s
        self._slow.add(device)
        self.spells.append(Trouble(node=device[0], device=device[1], from_s=now_s, to_s=until_s))
        self._clock.at(until_s, lambda: self._recover(device), is_beside=True)
        self._changed(device)

    def _recover(self, device: tuple[str, int]) -> None:
        self._slow.remove(device)
        self._foresee(device)
        self._changed(device)

    def slowdown(self, placement: Placement) -> float:
        """How many times as long a step takes there."""
        return self._config.times if self._slow and any(slot[:2] in self._slow for slot in placement) else 1.0

    def waits(self, placement: Placement) -> Sequence[float]:
        """For each rank, which part of a step it waits for the slowest; of rank 0 alone where no device is ever slow."""
        if not self._chances:
            return ONLY_THE_FIRST
        part = 1.0 - 1.0 / self.slowdown(placement)
        return [0.0 if slot[:2] in self._slow else part for slot in placement]
