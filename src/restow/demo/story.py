"""The acts, in order: three jobs and a visitor come, the gang is scattered, a neighbour leaves, restow moves the gang.

Nothing here decides where a job should be: that is the controller's policy. Without a shaped link there is nothing to
be gained, and the policy rightly stays; only then the story itself asks for the move, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from restow.client import Client
from restow.config import Home
from restow.demo import watch
from restow.demo.alone import compare, run_alone
from restow.demo.audience import Audience
from restow.demo.result import Result
from restow.demo.scene import Consolidation, Part
from restow.demo.stage import Stage
from restow.demo.timeline import JobSeen, Timeline
from restow.errors import Refused
from restow.placement import is_scattered

LOOK_EVERY_S = 0.25
START_S_MAX = 60.0  # until a job runs
ACT_S_MAX = 120.0  # until the neighbour has left, the move is done, the gang has finished


class Story:
    """One performance. `folder` is for what outlives the stage: the digests."""

    def __init__(
        self, scene: Consolidation, stage: Stage, audience: Audience, folder: Path, *, origin_s: float
    ) -> None:
        self.stage, self.scene = stage, scene
        self.timeline = Timeline()
        self._audience = audience
        self._digest = folder / "moved.json"
        self._alone = folder / "alone.json"
        self._client = Client(Home(path=stage.home))
        self._origin_s = origin_s  # wall clock; all times are told since then
        self._nodes = 0
        self._event = 0  # the number of the last one seen
        self._gang: dict[str, Any] = {}  # the gang's view, newest

    def play(self) -> dict[str, Any]:
        """All that needs the stage. Returns the controller's record of the gang's move."""
        scene = self.scene
        self._until(lambda: self._nodes == scene.nodes, f"{scene.nodes} machines to join", START_S_MAX)
        for part in (scene.resident, scene.early, scene.neighbour):
            self._arrive(
                part
            )  # each is placed before the next comes; none is waited for, so the visitor is still there
        self._audience.say(f"{scene.early.name} is a short job; when it leaves, one device is free on each machine")
        self._until(lambda: self._is_final(scene.early), f"{scene.early.name} to finish", ACT_S_MAX)

        self._arrive(scene.gang, "--digest", str(self._digest))
        self._until(lambda: self._step(scene.gang) > 0, f"{scene.gang.name} to make a step", START_S_MAX)
        gang = self._seen(scene.gang)
        if not gang or not is_scattered(gang.slots):
            where = " ".join(map(str, gang.slots)) if gang else "nowhere"
            raise Refused(f"{scene.gang.name} was placed on {where}, not on two machines; there is nothing to show")
        self._audience.say(
            f"{scene.gang.name} is scattered: every step now crosses the link, and both devices wait for it"
        )
        self._until(lambda: self._step(scene.gang) >= scene.scattered_steps, "scattered steps", ACT_S_MAX)

        self._audience.say(
            f"{scene.neighbour.name} will leave soon; then a whole machine is free for {scene.gang.name}"
        )
        self._until(lambda: self._is_final(scene.neighbour), f"{scene.neighbour.name} to finish", ACT_S_MAX)
        if self.stage.kind.has_link:
            self._audience.say("a device has become free: what will restow do?")
        else:
            self._audience.say(
                "no link, nothing to gain: the policy would stay, so the demo asks: restow migrate gpt --pack"
            )
            self._client.migrate(self._gang["id"], pack=True)
        self._until(lambda: bool(self._gang["moves"]), f"{scene.gang.name} to be moved", ACT_S_MAX)
        move: dict[str, Any] = self._gang["moves"][-1]
        moved_at = int(move["step"])
        self._until(lambda: self._step(scene.gang) >= moved_at + scene.after_steps, "steps after the move", ACT_S_MAX)
        self._audience.say(f"{scene.gang.name} sits on one machine and trains on, faster; now to its end")
        self._until(lambda: self._is_final(scene.gang), f"{scene.gang.name} to finish", ACT_S_MAX)
        if self._gang["state"] != "done":
            raise Refused(f"{scene.gang.name} ended {self._gang['state']}: {self._gang['reason']}")
        return move

    def judge(self, move: dict[str, Any], notes: tuple[str, ...]) -> Result:
        """When the stage is empty: the same gang left alone, and the comparison."""
        gang = self.scene.gang
        self._audience.say(f"the same {gang.name} once more, left alone: torchrun, one machine, nothing else running")
        run_alone(gang, self.stage.examples, self._alone)
        return Result(move=move, comparison=compare(self._digest, self._alone, gang.workers), notes=notes)

    # -------------------------------------------------------- watching

    def look(self) -> None:
        """Take in how things are now and show them."""
        jobs, nodes = self._client.ps(), self._client.nodes()
        self._nodes = len(nodes)
        self.timeline.moments.append(watch.moment(time.time() - self._origin_s, jobs, nodes, self.stage.link_bytes()))
        for event in self._client.events(after=self._event):
            self._event = event["number"]
            happening = watch.happening(event, self._origin_s)
            if happening and happening.text not in {told.text for told in self.timeline.happenings if not told.job}:
                self.timeline.happenings.append(happening)
            if event["type"] == "RankSwitched" and event["job"] == self._gang.get("id"):
                self.timeline.move_s = event["time_s"] - self._origin_s
        self._gang = next((job for job in jobs if job["name"] == self.scene.gang.name), {})
        self._audience.see(self.timeline)

    def _arrive(self, part: Part, *more: str) -> None:
        self._audience.say(f"{part.name} arrives: {part.what}")
        self._client.submit(part.spec(self.stage.examples, self.stage.folder, *more))
        self._until(lambda: self._is_placed(part), f"{part.name} to be placed", START_S_MAX)

    def _until(self, is_so: Callable[[], bool], what: str, limit_s: float) -> None:
        """Look again and again until it is so. Raises Refused when it takes too long or a job failed."""
        deadline_s = time.monotonic() + limit_s
        while True:
            self.look()
            if is_so():
                return
            for part in self.scene.parts:
                job = self._seen(part)
                if job and job.state in ("failed", "cancelled"):
                    raise Refused(f"waiting for {what}: {job.name} {job.state}: {job.reason}")
            gang = self._seen(self.scene.gang)
            if gang and gang.is_final and not self._gang["moves"]:
                raise Refused(f"waiting for {what}: {gang.name} finished before it was moved; {gang.reason}")
            if time.monotonic() > deadline_s:
                reasons = "; ".join(f"{job.name} {job.state}, {job.reason}" for job in self._jobs() if not job.is_final)
                raise Refused(f"waited {limit_s:.0f} s for {what}; {reasons or 'no job runs'}")
            time.sleep(LOOK_EVERY_S)

    def _jobs(self) -> tuple[JobSeen, ...]:
        return self.timeline.last.jobs if self.timeline.last else ()

    def _seen(self, part: Part) -> JobSeen | None:
        return next((job for job in self._jobs() if job.name == part.name), None)

    def _step(self, part: Part) -> int:
        job = self._seen(part)
        return job.step if job else 0

    def _is_placed(self, part: Part) -> bool:
        job = self._seen(part)
        return bool(job and (job.slots or job.is_final))

    def _is_final(self, part: Part) -> bool:
        job = self._seen(part)
        return bool(job and job.is_final)
