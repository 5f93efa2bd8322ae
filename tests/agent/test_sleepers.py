"""Who sleeps stays until memory is short or nobody has wanted it for long: ranks by name, a clock and a meter of our own."""

from __future__ import annotations

import pytest

from restow.agent.sleepers import FREE_PART_MIN, SLEEP_S_MAX, Sleepers
from restow.agent.workers import Worker
from restow.free_memory import free_part


class Ranks:
    def __init__(self, *roles: str):
        self.workers = [
            Worker(pid=100 + rank, job="job", generation=1, rank=rank, role=role, born=1, secret="", page="", log="")
            for rank, role in enumerate(roles)
        ]
        self.ended: list[int] = []

    def end_sleeper(self, worker: Worker) -> None:
        self.ended.append(worker.rank)
        self.workers.remove(worker)


class Node:
    def __init__(self, *roles: str):
        self.ranks = Ranks(*roles)
        self.now_s, self.free = 0.0, 1.0
        self.sleepers = Sleepers(self.ranks, lambda: self.now_s, lambda: self.free)

    def look(self) -> list[int]:
        self.sleepers.look()
        return self.ranks.ended


def test_they_stay_while_there_is_memory():
    node = Node("sleeper", "rank", "sleeper")
    assert node.look() == []
    node.free = FREE_PART_MIN
    assert node.look() == []
    node.free = FREE_PART_MIN - 0.01
    assert node.look() == [0, 2]


def test_they_do_not_stay_for_ever():
    node = Node("sleeper", "rank")
    assert node.look() == []
    node.now_s = SLEEP_S_MAX
    assert node.look() == []
    node.now_s += 1
    assert node.look() == [0]


def test_who_was_woken_meanwhile_sleeps_anew():
    node = Node("sleeper")
    node.look()
    node.ranks.workers[0].role = "rank"
    node.now_s = SLEEP_S_MAX + 1
    assert node.look() == []
    node.ranks.workers[0].role = "sleeper"
    assert node.look() == []


@pytest.mark.parametrize(
    ("text", "part"),
    [("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: 25 kB\n", 0.25), ("MemTotal: 0 kB\n", 1.0), ("", 1.0)],
)
def test_free_memory_is_what_programs_could_get(tmp_path, text, part):
    path = tmp_path / "meminfo"
    path.write_text(text)
    assert free_part(path) == part
    assert free_part(tmp_path / "missing") == 1.0
