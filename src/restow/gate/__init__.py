"""The gate: who may compute on a device now. One page of shared memory per device, in the jobs' own data path.

    gate     a member's end: acquire, release, yield points, turns
    keeper   the agent's end: modes, classes, shares, a look, fencing
    order    who is next, and how the page is put right again; all of it under the page's mutex
    record   what stands where in the page
    file     the file: made whole, opened once, and the locks that say who lives
    native   the C library

Standard library only. The design and its reasons: docs/design/002-sharing.md.
"""

from __future__ import annotations

from restow.gate.file import LINK
from restow.gate.gate import Gate
from restow.gate.keeper import Keeper, Seat, View
from restow.gate.record import BEST_EFFORT, FREE, INTERLEAVE, ORDINARY, PROTECTED, SEATS, TIME_SLICE

__all__ = [
    "BEST_EFFORT",
    "FREE",
    "INTERLEAVE",
    "LINK",
    "ORDINARY",
    "PROTECTED",
    "SEATS",
    "TIME_SLICE",
    "Gate",
    "Keeper",
    "Seat",
    "View",
]
