"""What `restow snapshot` prints of a controller with obedient agents, and that a simulation can go on from it."""

from __future__ import annotations

import json

from restow.frozen import from_wire
from restow.sim.standing import standing
from tests.controller.world import World, play, spec, until


def test_a_snapshot_has_machines_and_jobs_with_progress_and_no_secret(tmp_path):
    world = World(tmp_path, m1=2, m2=1)

    async def story():
        async with world.controller() as requests:
            job = (await requests.submit(spec(2, steps=1000, env=[["API_KEY", "hunter2"]])))["id"]
            await world.reach(job, "running")
            waits = (await requests.submit(spec(3)))["id"]
            for rank in (0, 1):
                world.progress(job, rank, step=40, time_s=world.now.now(), step_s=0.25)
            await until(lambda: world.now.state.jobs[job].steps_done, world.now)
            wire = json.dumps(await requests.snapshot())
            assert "hunter2" not in wire
            assert "API_KEY" not in wire
            found = from_wire(json.loads(wire))
            first, second = found.jobs
            assert [(node.name, len(node.devices)) for node in found.nodes] == [("m1", 2), ("m2", 1)]
            assert (first.id, first.state, [str(slot) for slot in first.placement]) == (job, "running", ["m1:0", "m1:1"])
            assert (first.steps_total, first.profile.step_s) == (1000, 0.25)
            assert first.steps_done >= 40
            assert (second.id, second.state, second.placement) == (waits, "pending", ())
            assert [row.id for row in standing("now.json", found).trace.rows] == [job, waits]

    play(story)
