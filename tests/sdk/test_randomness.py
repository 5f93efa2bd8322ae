"""Random generators: which of them are seeded."""

from __future__ import annotations

import random

import numpy
import torch

from restow.sdk import randomness


def test_a_rank_seeds_every_generator_that_travels(monkeypatch):
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    before = randomness.capture()
    try:
        drawn = []
        for _ in range(2):
            randomness.seed_rank(7)
            drawn.append((random.random(), numpy.random.rand(), torch.rand(1).item()))
    finally:
        randomness.restore(before)
    assert drawn[0] == drawn[1]
    assert seeds == [7, 7]
