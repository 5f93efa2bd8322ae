"""Where a gang finds room: on the tightest machine, else on as few as possible; and what is taken is not given twice."""

from __future__ import annotations

import random

from restow.placement import nodes_of, parse_placement
from restow.policies.room import Room
from restow.sim.machines import machines


def room(cluster: str, taken: str = "") -> Room:
    return Room(machines(cluster).nodes, parse_placement(taken))


def test_the_tightest_machine_that_has_room_is_taken():
    free = room("3x4", "gpu-0:0 gpu-1:0 gpu-1:1")
    assert free.find(2, "gpu") == parse_placement("gpu-1:2 gpu-1:3")
    assert free.find(3, "gpu") == parse_placement("gpu-0:1 gpu-0:2 gpu-0:3")
    assert free.find(4, "gpu") == parse_placement("gpu-2:0 gpu-2:1 gpu-2:2 gpu-2:3")


def test_a_gang_that_no_machine_holds_lies_on_as_few_as_possible():
    free = room("3x4", "gpu-0:0 gpu-1:0 gpu-1:1")
    assert nodes_of(free.find(5, "gpu") or ()) == ("gpu-2", "gpu-1")  # four, and the tightest place for one more
    assert nodes_of(free.find(7, "gpu") or ()) == ("gpu-2", "gpu-0")
    assert free.find(9, "gpu") is not None
    assert free.find(10, "gpu") is None


def test_kinds_are_kept_apart():
    free = room("1x2:A,1x4:B")
    assert free.kinds == ["A", "B"]
    assert (free.free(), free.free("A"), free.free("B"), free.free("C")) == (6, 2, 4, 0)
    assert free.find(3, "A") is None
    assert free.find(3, "B") == parse_placement("b-0:0 b-0:1 b-0:2")
    assert free.find(1, "C") is None


def test_whatever_is_taken_and_given_back_no_device_is_found_twice():
    rng = random.Random(1)
    for _ in range(50):
        free, held = room("3x4,2x2:B"), []
        total = free.free()
        for _ in range(60):
            kind = rng.choice(("gpu", "B"))
            if held and rng.random() < 0.4:
                free.give(held.pop(rng.randrange(len(held))))
            elif found := free.find(rng.randint(1, 6), kind):
                assert len(set(found)) == len(found)
                assert not {slot for other in held for slot in other} & set(found)
                held.append(found)
                free.take(found)
            assert free.free() == total - sum(map(len, held))


def test_a_machine_that_is_cordoned_or_lost_has_no_room():
    from dataclasses import replace

    nodes = machines("3x1").nodes
    free = Room([replace(nodes[0], is_cordoned=True), replace(nodes[1], is_alive=False), nodes[2]])
    assert free.find(1, "gpu") == parse_placement("gpu-2:0")
    assert free.find(2, "gpu") is None
    free.give(parse_placement("gpu-0:0"))  # whoever leaves a cordoned machine leaves no room there
    assert free.free() == 1
