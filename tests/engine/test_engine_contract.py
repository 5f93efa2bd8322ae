"""What every engine promises, told once and run against each: in this process, and (live) on two real Ray nodes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from restow import config
from restow.engine import processes, ray_node
from restow.engine.local import LocalEngine
from restow.errors import NotFound, Unreachable
from restow.messages import OpenStore, Stop
from tests.engine.obedient import Machine, ObedientAgent

OPEN = OpenStore(job="digits-1", generation=1)


class Local:
    def __init__(self) -> None:
        self.machines = {name: Machine(name) for name in ("m1", "m2")}

    def engine(self):
        return LocalEngine(self.machines, lambda node: ObedientAgent(self.machines[node]))

    async def kill_agent(self, engine, node):
        await engine.replace(node)
        await engine.agents()


class OnRay:
    """Two Ray nodes on this machine, with names of their own; one pair for the whole module."""

    def __init__(self, home: config.Home):
        self.home = home
        address = config.find_address()
        config.make_token(home.token)
        port = ray_node.free_port(address)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        for name in ("m1", "m2"):
            node = config.NodeConfig(name=name, address=address)
            head_port = port if name == "m1" else None
            ray_node.start(home, node, head_port=head_port, gcs=f"{address}:{port}", token_file=home.token)
        self.gcs = f"{address}:{port}"
        self.cluster_id = config.cluster_id_of(config.read_token(home.token))

    def engine(self):
        from restow.engine.ray import RayEngine

        factory = "tests.engine.obedient:make_in_ray"
        return RayEngine(gcs=self.gcs, token_file=self.home.token, cluster_id=self.cluster_id, factory=factory)

    async def kill_agent(self, engine, node):
        status = await (await engine.agents())[node].ask("status")
        os.kill(status["pid"], signal.SIGKILL)


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.live)])
def world(request: pytest.FixtureRequest) -> Iterator[Local | OnRay]:
    if request.param == "local":
        yield Local()
        return
    home = config.Home(path=Path(tempfile.mkdtemp(prefix="restow-test-")))
    home.make()
    path = os.environ.get("PYTHONPATH")
    try:
        yield OnRay(home)
    finally:
        for node in reversed(ray_node.recorded(home)):
            assert ray_node.stop(home, node) == []
        cluster_id = config.cluster_id_of(config.read_token(home.token))
        assert processes.marked_with(cluster_id) == []
        shutil.rmtree(config.run_folder(cluster_id), ignore_errors=True)
        shutil.rmtree(home.path)
        os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)


def play(world, story):
    """Run one story with an engine that is started and let go of."""

    async def run():
        engine = world.engine()
        await engine.start()
        try:
            await story(engine)
        finally:
            await engine.stop()

    asyncio.run(asyncio.wait_for(run(), 60))


async def next_events(handle, after=0):
    batch = await handle.events(after, 10.0)
    return batch, [event["type"] for _, event in batch.events]


def test_there_is_one_agent_per_node_and_it_knows_where_it_is(world):
    async def story(engine):
        agents = await engine.agents()
        assert sorted(agents) == ["m1", "m2"]
        for name, handle in agents.items():
            assert (await handle.ask("status"))["node"] == name == handle.node

    play(world, story)


def test_an_event_is_given_again_until_it_is_acknowledged(world):
    async def story(engine):
        handle = (await engine.agents())["m1"]
        await handle.tell(OPEN)
        first, types = await next_events(handle)
        assert types == ["StoreOpened"]
        again, _ = await next_events(handle)
        assert again == first
        await handle.tell(OPEN)
        number = first.events[-1][0]
        later, types = await next_events(handle, after=number)
        assert types == ["StoreOpened"]
        assert later.events[0][0] > number
        assert later.epoch == first.epoch

    play(world, story)


def test_a_wait_without_news_ends_by_itself(world):
    async def story(engine):
        handle = (await engine.agents())["m2"]
        assert (await handle.events(10_000, 0.05)).events == ()

    play(world, story)


def test_a_mistake_in_a_question_keeps_its_line_and_its_kind(world):
    async def story(engine):
        handle = (await engine.agents())["m1"]
        with pytest.raises(NotFound, match="this agent knows status"):
            await handle.ask("weather")

    play(world, story)


def test_another_life_of_an_agent_shows_as_another_epoch(world):
    async def story(engine):
        handle = (await engine.agents())["m2"]
        epoch = (await handle.events(0, 0.0)).epoch
        await world.kill_agent(engine, "m2")
        while True:
            try:
                batch = await (await engine.agents())["m2"].events(0, 0.0)
            except Unreachable:
                await asyncio.sleep(0.1)
            else:
                break
        assert batch.epoch != epoch

    play(world, story)


def test_a_new_engine_finds_the_agents_of_the_old_one(world):
    if isinstance(world, Local):
        pytest.skip("agents in this process end with their engine")
    epochs = {}

    async def remember(engine):
        epochs.update({name: (await handle.events(0, 0.0)).epoch for name, handle in (await engine.agents()).items()})

    async def find(engine):
        assert epochs == {name: (await handle.events(0, 0.0)).epoch for name, handle in (await engine.agents()).items()}

    play(world, remember)
    play(world, find)


def test_a_silent_node_is_unreachable_and_comes_back():
    world = Local()

    async def story(engine):
        handle = (await engine.agents())["m1"]
        engine.lose("m1")
        with pytest.raises(Unreachable, match="m1"):
            await handle.tell(Stop(job="x", generation=1, grace_s=1.0))
        assert sorted(await engine.agents()) == ["m2"]
        engine.heal("m1")
        assert (await handle.ask("status"))["node"] == "m1"

    play(world, story)
