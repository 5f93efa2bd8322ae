"""One workload twice: live in the lab, and in the simulator with what was measured of each of its jobs alone. See fidelity.py."""
