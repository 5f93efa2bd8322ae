"""How much memory of this machine is free."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def free_part(meminfo: Path = _MEMINFO) -> float:
    """Of all of it, what programs could get without swapping; 1.0 where that is not known."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) / int(lines["MemTotal"].split()[0])
    except (OSError, KeyError, ValueError, IndexError, ZeroDivisionError):
        return 1.0
