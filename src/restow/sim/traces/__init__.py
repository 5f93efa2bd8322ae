"""Traces of real clusters, read as rows: what each file is shows by its columns."""

from restow.sim.traces.reading import Trace, find_trace, read

__all__ = ["Trace", "find_trace", "read"]
