"""What the gate's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gate.crowd import Crowd


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    """Nobody yet; everybody who came is killed at the end, also when the test failed."""
    crowd = Crowd()
    try:
        yield crowd
    finally:
        crowd.close()
