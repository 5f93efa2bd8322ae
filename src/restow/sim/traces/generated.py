"""Traces that nobody recorded: random arrivals, lengths and sizes, the same for the same seed on any machine.

`random:jobs=1000,gap=60,seed=3` is 1000 jobs that come a minute apart on average. Lengths and sizes are distributed as in Gavel's
generator (Narayanan et al., OSDI 2020), which follows Microsoft's Philly cluster: four jobs of five take 32 min to 17 h, the others
17 h to a week, evenly on a scale of orders of magnitude; 70 of 100 have one worker, 10 two, 15 four and 5 eight.
"""

from __future__ import annotations

import math
import random

from restow.errors import TraceError
from restow.sim.rows import Row

PREFIX = "random:"
MINUTE_S = 60.0
JOBS_MAX = 10_000_000
SIZES = ((0.70, 1), (0.80, 2), (0.95, 4), (1.0, 8))  # up to this part of all jobs: so many workers
_KEYS = {"jobs": 1000.0, "gap": 60.0, "seed": 0.0, "longest": math.inf}


def generated(text: str) -> tuple[Row, ...]:
    """The rows that `random:...` stands for. `gap`: seconds between two arrivals, on average; `longest`: seconds that no job
    exceeds. Raises TraceError."""
    settings = dict(_KEYS)
    for word in filter(None, text.removeprefix(PREFIX).split(",")):
        key, _, value = word.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if key not in _KEYS or math.isnan(number) or number < 0:
            raise TraceError(f"trace {text!r}: {word!r} is none of {', '.join(f'{key}=NUMBER' for key in _KEYS)}")
        settings[key] = number
    jobs = int(settings["jobs"]) if math.isfinite(settings["jobs"]) else JOBS_MAX + 1
    if not (1 <= jobs <= JOBS_MAX and math.isfinite(settings["gap"]) and math.isfinite(settings["seed"])):
        raise TraceError(f"trace {text!r}: jobs must be from 1 to {JOBS_MAX}, gap and seed finite")
    rng = random.Random(int(settings["seed"]))
    rows, now_s = [], 0.0
    for number in range(jobs):
        chance = rng.random()
        workers = next(size for part, size in SIZES if chance <= part)
        magnitude = rng.uniform(3, 4) if rng.random() >= 0.8 else rng.uniform(1.5, 3)
        duration_s = min(settings["longest"], MINUTE_S * 10**magnitude)
        rows.append(Row(id=f"job-{number}", submitted_s=now_s, workers=workers, duration_s=max(1.0, duration_s)))
        now_s += rng.expovariate(1 / settings["gap"]) if settings["gap"] else 0.0
    return tuple(rows)
