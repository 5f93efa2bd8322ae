"""The controller with everything real but the agents: what it journals, sends, and knows again after it was killed."""

from __future__ import annotations

import asyncio

import pytest

from restow.errors import NotFound, Refused, SpecError
from restow.messages import Forget, Launch
from tests.controller.world import World, play, spec, until


def test_a_job_is_placed_launched_and_ends(tmp_path):
    world = World(tmp_path, m1=2, m2=2)

    async def story():
        async with world.controller() as requests:
            job = (await requests.submit(spec(2)))["id"]
            assert job == "train-1"
            await world.reach(job, "running")
            assert (await requests.show(job))["placement"] == ["m1:0", "m1:1"]
            for rank in (0, 1):
                world.agents["m1"].exit((job, 1, rank), 0)
            assert (await requests.wait(job))["state"] == "done"
            await until(lambda: any(isinstance(told, Forget) for told in world.agents["m1"].told), world.now)

    play(story)


def test_what_happened_is_in_the_journal_before_anybody_is_told(tmp_path):
    world = World(tmp_path, m1=2)

    async def story():
        async with world.controller() as requests:
            await requests.submit(spec(1))
            await world.reach("train-1", "running")
        types = world_types(world)
        assert (
            types.index("JobSubmitted")
            < types.index("ScheduleAdopted")
            < types.index("StoreOpened")
            < types.index("RankStarted")
        )

    def world_types(world):
        from restow.controller.journal import Journal

        journal = Journal(tmp_path / "journal.db")
        try:
            return [type(event).__name__ for _, event in journal.events()]
        finally:
            journal.close()

    play(story)


def test_a_killed_controller_finds_its_running_jobs_again(tmp_path):
    world = World(tmp_path, m1=2, m2=2)

    async def story():
        async with world.controller() as requests:
            await requests.submit(spec(2))
            await world.reach("train-1", "running")
        pids = {key: process["pid"] for key, process in world.machines["m1"].processes.items()}
        async with world.controller() as requests:
            assert (await requests.show("train-1"))["state"] == "running"
            assert {key: p["pid"] for key, p in world.machines["m1"].processes.items()} == pids
            world.agents["m1"].exit(("train-1", 1, 0), 0)
            world.agents["m1"].exit(("train-1", 1, 1), 0)
            assert (await requests.wait("train-1"))["state"] == "done"

    play(story)


def test_a_job_that_ended_while_no_controller_ran_is_done(tmp_path):
    world = World(tmp_path, m1=1)

    async def story():
        async with world.controller() as requests:
            await requests.submit(spec(1))
            await world.reach("train-1", "running")
        world.agents["m1"].exit(("train-1", 1, 0), 0)
        async with world.controller() as requests:
            assert (await requests.wait("train-1"))["state"] == "done"

    play(story)


def test_a_rank_that_vanished_with_its_agent_ends_the_job_with_a_reason(tmp_path):
    world = World(tmp_path, m1=1)

    async def story():
        async with world.controller() as requests:
            await requests.submit(spec(1))
            await world.reach("train-1", "running")
            world.machines["m1"].processes.clear()
            await world.engine.replace("m1")
            ended = await requests.wait("train-1")
            assert ended["state"] == "failed"
            assert "its exit code is unknown" in ended["reason"]

    play(story)


def test_a_launch_that_a_killed_agent_took_with_it_is_asked_again(tmp_path):
    world = World(tmp_path, m1=1)

    async def story():
        async with world.controller() as requests:
            agent = world.agents["m1"]
            heard = asyncio.Event()
            tell = agent.tell

            async def die_at_launch(wire):
                if wire["type"] == "Launch":
                    heard.set()
                else:
                    await tell(wire)

            agent.tell = die_at_launch
            await requests.submit(spec(1))
            await heard.wait()
            await world.engine.replace("m1")
            await world.reach("train-1", "running")
            assert any(isinstance(told, Launch) for told in world.agents["m1"].told)

    play(story)


def test_a_silent_node_is_lost_after_the_stated_time_and_what_it_still_runs_is_ended_when_it_returns(tmp_path):
    world = World(tmp_path, m1=1, m2=1)

    async def story():
        async with world.controller() as requests:
            await requests.submit(spec(2))
            await world.reach("train-1", "running")
            world.engine.lose("m2")
            ended = await requests.wait("train-1")
            assert ended["state"] == "failed"
            assert "m2" in ended["reason"]
            assert world.machines["m2"].processes
            world.engine.heal("m2")
            await until(lambda: not world.machines["m2"].processes, world.now)
            await until(lambda: "m2" in world.now.agents.joined, world.now)

    play(story)


def test_a_node_that_is_gone_when_the_controller_returns_is_lost_too(tmp_path):
    world = World(tmp_path, m1=1, m2=1)

    async def story():
        async with world.controller() as requests:
            await requests.submit(spec(2))
            await world.reach("train-1", "running")
        del world.machines["m2"]
        world.engine.nodes.remove("m2")
        async with world.controller() as requests:
            assert (await requests.wait("train-1"))["state"] == "failed"

    play(story)


def test_the_last_progress_is_known_after_a_restart_without_a_journal_entry_each(tmp_path):
    world = World(tmp_path, m1=1)

    async def story():
        async with world.controller() as requests:
            await requests.submit(spec(1))
            await world.reach("train-1", "running")
            for step in range(1, 200):
                world.progress("train-1", 0, step, time_s=1000.0 + step)
            await until(lambda: any(word.step == 199 for word in world.now.journal.progress()), world.now)
            assert "Progressed" not in world.types()
        async with world.controller() as requests:
            shown = await requests.show("train-1")
            assert (shown["step"], shown["values"]) == (199, {"loss": 0.5})

    play(story)


@pytest.mark.parametrize(
    ("wish", "error", "line"),
    [
        ({"to": "m1:0"}, SpecError, "--to names 1 slot; job train-1 has 2 workers"),
        ({"to": "m1:0 m9:0"}, NotFound, "device m9:0 does not exist"),
        ({"to": "m1:0 m1:0"}, SpecError, "twice"),
        ({"to": "m1:0 m1:1"}, Refused, "at m1:0 m1:1 already"),
        ({"to": "m1:0 m2:0"}, Refused, "device m2:0 is held by other-1"),
        ({"to": "m1"}, SpecError, "write node:device"),
        ({"pack": True}, Refused, "job train-1 is on one machine already"),
    ],
)  # fmt: skip
def test_a_move_that_cannot_be_is_refused_with_the_way_out(tmp_path, wish, error, line):
    world = World(tmp_path, m1=2, m2=1)

    async def story():
        async with world.controller() as requests:
            await requests.submit(spec(2))
            await requests.submit(spec(1, name="other"))
            await world.reach("train-1", "running")
            await world.reach("other-1", "running")
            with pytest.raises(error, match=line):
                await requests.migrate("train-1", **wish)

    play(story)


def test_more_workers_than_devices_are_refused_unless_the_job_may_queue(tmp_path):
    world = World(tmp_path, m1=2, m2=2)

    async def story():
        async with world.controller() as requests:
            with pytest.raises(SpecError, match="workers is 9; the cluster has 4 devices"):
                await requests.submit(spec(9))
            assert (await requests.submit(spec(9), queue=True))["state"] == "pending"
            await until(lambda: "9" in world.now.state.jobs["train-1"].reason, world.now)
            assert (await requests.cancel("train-1"))["state"] == "cancelled"
            with pytest.raises(Refused, match="cancelled already"):
                await requests.cancel("train-1")

    play(story)


def test_a_job_is_found_by_the_beginning_of_its_id(tmp_path):
    world = World(tmp_path, m1=2)

    async def story():
        async with world.controller() as requests:
            await requests.submit(spec(1, name="digits"))
            await requests.submit(spec(1, name="digits"))
            assert (await requests.show("digits-2"))["id"] == "digits-2"
            with pytest.raises(NotFound, match="could be digits-1, digits-2"):
                await requests.show("dig")
            with pytest.raises(NotFound, match="does not exist"):
                await requests.show("gpt")

    play(story)
