"""Skips, loudly, what needs network namespaces where there are none, and looks that every test leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from restow.lab import availability
from restow.lab.state import states
from restow.lab.sweep import remove


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("lab") and "lab" in item.path.parts]
    if needing and availability()[0] == "none":
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=f"NOT TESTED: no lab here: {availability()[1]}"))


@pytest.fixture
def ends_clean() -> Iterator[None]:
    """No lab more than before, whatever happens in the test."""
    before = {state.id for state in states()}
    yield
    left = [state for state in states() if state.id not in before and state.name.startswith("test-")]
    for state in left:
        remove(state)
    assert not left, f"the test left {', '.join(state.name for state in left)}"
