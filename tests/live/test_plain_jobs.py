"""Gangs run by real agents: an ordinary torch script that knows nothing of restow, and one that is moved between two nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from restow.job import JobSpec
from restow.messages import (
    Connect,
    Decide,
    Forget,
    Launch,
    Prepare,
    Propose,
    RankConnected,
    RankExited,
    RankReady,
    RankSwitched,
    StepAccepted,
    TwinParked,
)
from restow.placement import parse_placement
from tests.agent.node import SECRET, Node

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
DEVICES = '{"devices": [{"index": 0, "core": 0}, {"index": 1, "core": 0}, {"index": 2, "core": 0}]}'
PLAIN = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
torch.manual_seed(1)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
torch.manual_seed(dist.get_rank())
for step in range(20):
    optimizer.zero_grad()
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()
print(dist.get_rank(), dist.get_world_size(), model.module.weight.sum().item().hex())
dist.destroy_process_group()
"""

MOVABLE = """
import os, sys, time, torch, restow
from torch.utils.data import DataLoader, TensorDataset
job = restow.init(seed=3)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1))
model, optimizer = job.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
inputs = torch.randn(90, 8, generator=torch.Generator().manual_seed(1))
for x, in job.steps(DataLoader(TensorDataset(inputs), batch_size=5, shuffle=True), total=60):
    while job.step == 20 and not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    loss = model(x).square().mean() + torch.rand(())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(job.step, loss.item().hex())
"""

@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, Node]]:
    with Node("a", devices=DEVICES) as a, Node("b", devices=DEVICES) as b:
        yield {"a": a, "b": b}


def test_an_ordinary_gang_of_three_trains_through_the_agents_store(nodes: dict[str, Node]):
    a = nodes["a"]
    job = a.job()
    opened = a.open_store(job)
    a.launch("python", a.script(PLAIN), job=job, placement="a:0 a:1 a:2", store=(opened.host, opened.port))
    for rank in range(3):
        ended = a.await_event(RankExited, job=job, rank=rank)
        assert (ended.code, ended.reason) == (0, ""), a.log(job, rank)
    said = [a.log(job, rank).split() for rank in range(3)]
    assert [line[:2] for line in said] == [["0", "3"], ["1", "3"], ["2", "3"]]
    assert len({line[2] for line in said}) == 1
    a.tell(Forget(job=job, generation=1))


def test_one_rank_dead_is_told_with_its_reason_and_the_others_are_not_ended_here(nodes: dict[str, Node]):
    """What becomes of the gang is the controller's business."""
    a = nodes["a"]
    job = a.launch(
        "python", "-c",
        "import os, time\nif os.environ['RANK'] == '1':\n    raise MemoryError('no room')\ntime.sleep(1000)", placement="a:0 a:1",
    )  # fmt: skip
    ended = a.await_event(RankExited, job=job)
    assert (ended.rank, ended.code, ended.reason) == (1, 1, "MemoryError: no room (<string>:3)")
    assert [p["rank"] for p in a.ask("status")["processes"] if p["job"] == job] == [0]
    a.tell(Forget(job=job, generation=1))
    a.await_event(RankExited, job=job, rank=0)


def test_a_rank_is_moved_between_two_agents_and_nobody_can_tell(nodes: dict[str, Node]):
    """Three ranks; rank 0 moves from b to a at a step. Every line is printed once, the same as in a run that stays."""
    a, b = nodes["a"], nodes["b"]
    gate = a.folder / "gate"
    command = ("python", a.script(MOVABLE, "movable.py"), str(gate))
    now, then = parse_placement("b:0 a:0 a:1"), parse_placement("a:2 a:0 a:1")
    spec = JobSpec(command=command, workers=3)
    job = "mover"
    opened = a.open_store(job)
    for node in (a, b):
        node.tell(Launch(job=job, generation=1, spec=spec, placement=now, store=(opened.host, opened.port), secret=SECRET))
    ready = [nodes[slot.node].await_event(RankReady, job=job, rank=rank) for rank, slot in enumerate(now)]
    assert all(event.movable for event in ready), ready
    second = a.open_store(job, 2)
    store = (second.host, second.port)
    a.tell(Prepare(job=job, generation=2, spec=spec, placement=then, ranks=(0,), store=store, secret=SECRET))
    assert a.await_event(TwinParked, job=job).signature == ready[0].signature
    for node in (a, b):
        node.tell(Connect(job=job, generation=2, present=1, now=now, then=then, store=store, fill="replica"))
    assert b.await_event(RankConnected, job=job).rank == 0
    assert {a.await_event(RankConnected, job=job, rank=rank).role for rank in (0, 1, 2)} == {"twin", "rank"}
    step = 30
    for node in (a, b):
        node.tell(Propose(job=job, generation=2, step=step))
        assert node.await_event(StepAccepted, job=job).step == step
    a.tell(Decide(job=job, generation=2, step=step, go=True))
    gate.touch()
    for rank in range(3):
        assert a.await_event(RankSwitched, job=job, rank=rank).step == step
    left = b.await_event(RankExited, job=job)
    assert (left.role, left.code) == ("leaver", 0)
    for rank in range(3):
        ended = a.await_event(RankExited, job=job, rank=rank)
        assert (ended.code, ended.generation, ended.role) == (0, 2, "rank"), a.log(job, rank, 2 if rank == 0 else 1)
    moved = [b.log(job) + a.log(job, generation=2), a.log(job, 1), a.log(job, 2)]
    assert len(b.log(job).splitlines()) == step
    assert a.log(job, generation=2, rehearsal=True)
    for node in (a, b):
        node.tell(Forget(job=job, generation=2))
        assert {path.name for path in node.config.shm_dir.iterdir()} == {"gates", "lease"}

    opened = a.open_store("stayer")
    a.launch(*command, job="stayer", placement="a:0 a:1 a:2", store=(opened.host, opened.port))
    for rank in range(3):
        assert a.await_event(RankExited, job="stayer", rank=rank).code == 0
        assert a.log("stayer", rank) == moved[rank]
    a.tell(Forget(job="stayer", generation=1))
