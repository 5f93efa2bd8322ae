"""A small cluster on one Linux machine: nodes are network namespaces, links are shaped, devices are shares of a core.

The parts:

    lab.py      Lab and LabNode: what everybody uses
    holder.py   one process per lab that keeps its namespaces, serves changes, and cleans up when the maker is gone
    network.py  the switch, the cables, the shaping (pyroute2; only the holder imports it)
    shape.py    rates and delays: parsing, and the numbers of a shaped link
    devices.py  equal, bounded shares of the cores (cgroup v1 or v2)
    state.py    the folder of each lab, who owns it, whether that process still lives
    sweep.py    ends what is left inside a lab and removes it
    enter.py    the launcher that runs a program inside a node
"""

from __future__ import annotations

from restow.lab.lab import Lab, LabNode, availability

__all__ = ["Lab", "LabNode", "availability"]
