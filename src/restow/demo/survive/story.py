"""The acts, in order: a gang trains on two machines, one is pulled out, the gang goes on without it, and has it again.

Nothing here helps the gang: that its rank is missing, restow has to notice itself. Where there is no lab no machine can be pulled
out; then the worker there is killed, and the story says so.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from restow.client import Client
from restow.config import Home
from restow.demo import watch
from restow.demo.alone import Comparison, compare, run_alone
from restow.demo.audience import Audience
from restow.demo.stage import Stage
from restow.demo.survive.result import Row
from restow.demo.survive.rival import pull_from_torchrun
from restow.demo.survive.scene import Survive
from restow.demo.timeline import Timeline
from restow.errors import Refused

LOOK_EVERY_S = 0.1
ACT_S_MAX = 120.0
BACK_S_MAX = 60.0  # until the gang has its machine again; it need not


class SurviveStory:
    """One performance. `folder` is for what outlives the stage: the digests."""

    def __init__(self, scene: Survive, stage: Stage, audience: Audience, folder: Path, *, origin_s: float) -> None:
        self.stage, self.scene, self.timeline = stage, scene, Timeline()
        self._audience, self._folder, self._origin_s = audience, folder, origin_s
        self._client = Client(Home(path=stage.home))
        self._events: list[dict[str, Any]] = []
        self._nodes: dict[str, bool] = {}  # node → alive
        self._gang: dict[str, Any] = {}
        self.devices: tuple[int, int, int] = (0, 0, 0)

    def play(self) -> Row:
        """What restow did when the machine was gone."""
        scene, say = self.scene, self._audience.say
        gone = self.stage.node_names[-1]
        self._until(lambda: sum(self._nodes.values()) == scene.nodes, f"{scene.nodes} machines to join")
        say(f"{scene.gang.name} arrives: {scene.gang.what}")
        digest = str(self._folder / "survived.json")
        self._client.submit(scene.gang.spec(self.stage.examples, self.stage.folder, "--digest", digest))
        self._until(lambda: self._gang.get("movable", False) and self._step >= scene.before_steps, "the first steps")
        before, step = self._device_count, self._step
        if not any(slot.startswith(f"{gone}:") for slot in self._gang["placement"]):
            raise Refused(f"{scene.gang.name} was placed on {' '.join(self._gang['placement'])}, not on {gone}")
        pulled_s = self._pull(gone)
        self._until(lambda: self._came_back(pulled_s) is not None, "the gang to train again")
        again_s = self._came_back(pulled_s) or pulled_s
        noticed_s = self._noticed(pulled_s)
        say(f"{scene.gang.name} trains again, {again_s - pulled_s:.2f} s after that, with the same numbers and what is left")
        self._until(lambda: self._step >= step + scene.without_steps, "steps without it")
        without = self._device_count
        after = self._return(gone, without, before)
        say(f"{scene.gang.name} trains on, to its end")
        self._until(lambda: self._gang["ended_s"] is not None, "the gang to finish")
        if self._gang["state"] != "done":
            raise Refused(f"{scene.gang.name} ended {self._gang['state']}: {self._gang['reason']}")
        self.devices = (before, without, after)
        return Row(
            system="restow", detect_s=noticed_s - pulled_s, resume_s=again_s - pulled_s, lost_steps=self._lost_steps(),
            note=f"{scene.gang.workers} ranks, on what is left",
        )  # fmt: skip

    def rival(self) -> tuple[Row, ...]:
        """The same under torchrun, on the same machines; needs the stage."""
        if not self.stage.lab:
            return ()
        self._audience.say("the same script under elastic torchrun, and the same cable is pulled")
        return (pull_from_torchrun(self.scene, self.stage, self._folder),)

    def judge(self) -> Comparison:
        """When the stage is empty: the same gang left alone."""
        gang = self.scene.gang
        self._audience.say(f"the same {gang.name} once more, left alone: torchrun, one machine, nothing else running")
        run_alone(gang, self.stage.examples, self._folder / "alone.json")
        return compare(self._folder / "survived.json", self._folder / "alone.json", gang.workers)

    # ------------------------------------------------------------ what is done to it

    def _pull(self, node: str) -> float:
        """Wall clock of the deed."""
        if self.stage.lab:
            self._audience.say(f"the cable of {node} is pulled: from now on nothing there answers anybody")
            pulled_s = time.time()
            self.stage.lab.cut(node)
            return pulled_s
        rank = len(self._gang["placement"]) - 1
        self._audience.say(f"no lab, no cable to pull: rank {rank} is killed instead (kill -9)")
        started = [e for e in self._events if e["type"] == "RankStarted" and e["rank"] == rank]
        pulled_s = time.time()
        os.kill(started[-1]["pid"], signal.SIGKILL)
        return pulled_s

    def _return(self, node: str, without: int, before: int) -> int:
        """The machine is there again; returns how many devices the gang has then."""
        if not self.stage.lab:
            return self._device_count
        self._audience.say(f"the cable of {node} is in again")
        self.stage.lab.heal(node)
        self._until(lambda: self._nodes.get(node, False), f"{node} to be back")
        deadline_s = time.monotonic() + BACK_S_MAX
        self._until(
            lambda: self._device_count == before or self._gang["ended_s"] is not None or time.monotonic() > deadline_s,
            "the gang to have its machine again",
        )
        if self._device_count > without:
            self._audience.say(f"{self.scene.gang.name} has {self._device_count} devices again")
            step = self._step + self.scene.after_steps
            self._until(lambda: self._step >= step or self._gang["ended_s"] is not None, "steps on all of them")
        return before if self._device_count == before else max(without, self._device_count)

    # ------------------------------------------------------------ what is seen

    def look(self) -> None:
        jobs, nodes = self._client.ps(), self._client.nodes()
        self._nodes = {node["name"]: node["alive"] for node in nodes}
        self.timeline.moments.append(watch.moment(time.time() - self._origin_s, jobs, nodes, self.stage.link_bytes()))
        after = self._events[-1]["number"] if self._events else 0
        for event in self._client.events(after=after):
            self._events.append(event)
            happening = watch.happening(event, self._origin_s)
            if happening:
                self.timeline.happenings.append(happening)
        self._gang = next((job for job in jobs if job["name"] == self.scene.gang.name), {})
        self._audience.see(self.timeline)

    def _until(self, is_so: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + ACT_S_MAX
        while True:
            self.look()
            if is_so():
                return
            if self._gang.get("state") in ("failed", "cancelled"):
                raise Refused(f"waiting for {what}: {self._gang['name']} {self._gang['state']}: {self._gang['reason']}")
            if time.monotonic() > deadline_s:
                raise Refused(f"waited {ACT_S_MAX:.0f} s for {what}; {self._gang.get('reason') or 'no job runs'}")
            time.sleep(LOOK_EVERY_S)

    @property
    def _step(self) -> int:
        return int(self._gang.get("step", 0))

    @property
    def _device_count(self) -> int:
        return len(set(self._gang.get("placement", [])))

    def _came_back(self, since_s: float) -> float | None:
        """When every rank trained again; None: not yet."""
        back = [e for e in self._events if e["type"] == "RankSwitched" and e["time_s"] > since_s]
        if len({event["rank"] for event in back}) < self.scene.gang.workers:
            return None
        return float(max(event["time_s"] for event in back))

    def _noticed(self, since_s: float) -> float:
        kinds = ("NodeLost", "RankExited")
        return float(min(e["time_s"] for e in self._events if e["type"] in kinds and e["time_s"] >= since_s))

    def _lost_steps(self) -> int:
        """Steps that were made again: the survivors had finished them, and all went back behind them."""
        kept = [event["step"] for event in self._events if event["type"] == "RankKept"]
        halted = [e["step"] for e in self._events if e["type"] == "RankHalted" and e["holds"]]
        return max(0, max(halted, default=0) - min(kept)) if kept else 0
