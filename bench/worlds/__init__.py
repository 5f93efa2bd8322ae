"""What was published of schedulers, by name: a file for each project whose workloads and measurements are in shared/data."""

from __future__ import annotations

from collections.abc import Mapping

from bench.worlds import gavel, morphling, muri, pollux, shockwave
from bench.worlds.setting import Setting

WORLDS: Mapping[str, Setting] = {**gavel.WORLDS, **pollux.WORLDS, **muri.WORLDS, **shockwave.WORLDS, **morphling.WORLDS}
