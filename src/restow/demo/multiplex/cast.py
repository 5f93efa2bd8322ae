"""The jobs on the stage: they come, are looked at a few times a second, are asked to share in another way, and leave.

A part may come more than once; each time it is another job with an id of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from restow.client import Client
from restow.config import Home
from restow.demo import watch
from restow.demo.audience import Audience
from restow.demo.multiplex import gates
from restow.demo.multiplex.measure import Mark, Window, read_marks
from restow.demo.multiplex.show import SharingLook
from restow.demo.scene import Part
from restow.demo.stage import Stage
from restow.demo.timeline import Timeline
from restow.errors import Refused

LOOK_EVERY_S = 0.4  # the cores that we look from are those that the jobs compute on
START_S_MAX = 60.0  # until a job makes steps
LEAVE_S_MAX = 30.0


class Cast:
    """Everybody who plays, as the controller tells it."""

    def __init__(self, stage: Stage, audience: Audience, look: SharingLook, *, origin_s: float) -> None:
        self.timeline = Timeline(speed_window_s=4.0)  # two rounds of turns
        self._stage, self._audience, self._look, self._origin_s = stage, audience, look, origin_s
        self._client = Client(Home(path=stage.home))
        self._ids: dict[str, str] = {}  # part → the job that it is now
        self._event = 0  # the number of the last one seen
        self._nodes = 0

    # ------------------------------------------------------------ wishes

    def arrive(self, part: Part, steps: int) -> None:
        """Submit it and wait until it has made so many steps."""
        self._audience.say(f"{part.name} arrives: {part.what}")
        self._ids[part.name] = self._client.submit(part.spec(self._stage.examples, self._stage.folder))["id"]
        self.until(lambda: self.steps(part) >= steps, f"{part.name} to make {steps} steps", START_S_MAX)

    def leave(self, part: Part) -> None:
        """Cancel it and wait until its processes are gone."""
        job = self._ids.pop(part.name)
        self._client.cancel(job)
        self.until(lambda: not any(seen.id == job for seen in self._seen()), f"{part.name} to leave", LEAVE_S_MAX)

    def share(self, part: Part, **share: Any) -> None:
        """As `restow share` does it."""
        self._client.share(self._ids[part.name], **share)

    # ------------------------------------------------------------ questions

    def steps(self, part: Part) -> int:
        job = self._ids.get(part.name)
        return next((seen.step for seen in self._seen() if seen.id == job), 0)

    def profile(self, part: Part) -> dict[str, Any]:
        """What the controller has measured of it."""
        profile: dict[str, Any] = self._client.explain(self._ids[part.name])["profile"]
        return profile

    def marks(self, part: Part) -> list[Mark]:
        """What its ranks printed so far."""
        by_rank: dict[int, list[str]] = {}
        for piece in self._client.logs(self._ids[part.name]):
            by_rank.setdefault(piece["rank"], []).append(piece["text"])
        return [mark for pieces in by_rank.values() for mark in read_marks("".join(pieces).splitlines())]

    # ------------------------------------------------------------ watching

    def window(self, length_s: float) -> Window:
        """Look on for so long."""
        begin_s = time.monotonic()
        while (left_s := begin_s + length_s - time.monotonic()) > 0:
            self.look()
            time.sleep(min(LOOK_EVERY_S, left_s))
        return Window(begin_s, time.monotonic())

    def until(self, is_so: Callable[[], bool], what: str, limit_s: float) -> None:
        """Look again and again until it is so. Raises Refused when it takes too long or a job has ended."""
        deadline_s = time.monotonic() + limit_s
        self.look()
        while not is_so():
            if time.monotonic() > deadline_s:
                reasons = "; ".join(f"{job.name} {job.state}, {job.reason}" for job in self._seen())
                raise Refused(f"waited {limit_s:.0f} s for {what}; {reasons or 'no job runs'}")
            time.sleep(LOOK_EVERY_S)
            self.look()

    def until_joined(self, nodes: int) -> None:
        self.until(lambda: self._nodes == nodes, f"{nodes} machines to join", START_S_MAX)

    def look(self) -> None:
        """Take in how things are now and show them. Raises Refused when a job ended that should be here."""
        jobs, nodes = self._client.ps(every=False), self._client.nodes()
        self._nodes = len(nodes)
        moment = watch.moment(time.time() - self._origin_s, jobs, nodes, self._stage.link_bytes())
        self.timeline.moments.append(moment)
        for device in moment.devices:
            seen = gates.look(self._stage.gates_folder(device.node), device)
            if seen:
                self._look.gates.append(seen)
        told = {happening.text for happening in self.timeline.happenings if not happening.job}
        for event in self._client.events(after=self._event):
            self._event = event["number"]
            happening = watch.happening(event, self._origin_s)
            if happening and (happening.job or happening.text not in told):
                self.timeline.happenings.append(happening)
        self._audience.see(self.timeline)
        here = {job["id"] for job in jobs}
        for name, id in self._ids.items():
            if id not in here:
                view = self._client.show(id)
                if view["state"] in ("done", "failed", "cancelled"):  # it may have come after `ps` answered
                    raise Refused(f"{name} {view['state']} in the middle of the scene: {view['reason']}")

    def _seen(self) -> tuple[Any, ...]:
        return self.timeline.last.jobs if self.timeline.last else ()
