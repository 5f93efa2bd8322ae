"""What is agreed on in a store: how a process waits for a word."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from restow.sdk import agreement
from restow.sdk.agreement import POLL_S_MAX, Agreement
from restow.sdk.terms import Role


@dataclass
class Clock:
    """Nothing takes time but what says so."""

    now_s: float = 0.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


@pytest.mark.parametrize("late_s", [0.0001, 0.5, 8.0])
def test_one_answer_that_is_late_does_not_put_off_the_next_question(monkeypatch, late_s):
    clock, asked = Clock(), []

    def check(keys: list[str]) -> bool:
        asked.append(keys)
        clock.now_s += late_s if len(asked) == 1 else 0.0001
        return keys == ["private/0"] and len(asked) > 4

    monkeypatch.setattr(agreement, "time", SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep))
    twin = Agreement(SimpleNamespace(check=check), Role.ARRIVING, 0, 3, None)  # type: ignore[arg-type]
    assert twin.await_key("private/0", 60.0)
    assert max(clock.slept) <= POLL_S_MAX
