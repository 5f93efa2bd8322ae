"""What came of some runs as one page of HTML that needs nothing else: no network, no other file."""

from restow.sim.report.page import Ran, page

__all__ = ["Ran", "page"]
