"""The phases, in order: each gang alone, both in turns, packed freely, through the gate; then one is protected.

Nothing here decides who shares with whom or when a job may compute: jobs are submitted with what their specs ask for, and
`restow share` is said where a phase begins. The first gang is one job from its first phase to its last; so what it printed covers
every mode. The second one is measured alone first, leaves, and comes again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from restow.bound import Demand, best_total
from restow.demo.alone import Comparison, compare_losses, left_alone
from restow.demo.audience import Audience
from restow.demo.multiplex.cast import Cast
from restow.demo.multiplex.measure import Mark, Window, demand_of, losses, period_s, read_marks
from restow.demo.multiplex.result import MultiplexResult, Protection, rows_of
from restow.demo.multiplex.scene import Multiplex
from restow.demo.multiplex.show import SharingLook, row_line
from restow.demo.scene import Part
from restow.demo.stage import Stage
from restow.perf import ring_bytes


class MultiplexStory:
    """One performance. `play` needs the stage, `judge` needs it gone: its cores are wanted."""

    def __init__(
        self, scene: Multiplex, stage: Stage, audience: Audience, look: SharingLook, folder: Path, *, origin_s: float
    ) -> None:
        self.scene, self.stage = scene, stage
        self._audience, self._look, self._folder = audience, look, folder
        self._cast = Cast(stage, audience, look, origin_s=origin_s)
        self._printed: dict[str, list[Mark]] = {}  # of the gangs that share, at the end

    def play(self) -> tuple[list[Demand], list[list[float]], Protection]:
        """What each gang needs alone, the speeds of both in each phase, and what protection was worth."""
        scene, cast = self.scene, self._cast
        cast.until_joined(scene.nodes)
        second_alone = self._alone(scene.second)
        cast.leave(scene.second)
        first_alone = self._alone(scene.first)
        demands = [first_alone, second_alone]
        self._look.bound = best_total(demands)
        self._audience.say(f"both alone: together they can make {self._look.bound:.2f} times one alone, no schedule more")
        self._look.phase = "both"
        cast.arrive(scene.second, scene.warm_steps)
        speeds = self._together(demands)
        return demands, speeds, self._protected()

    def judge(self) -> dict[str, Comparison]:
        """Both gangs once more, left alone, and whether they printed the same losses."""
        gangs = (self.scene.first, self.scene.second)
        shared = {part.name: losses(self._printed[part.name], part.workers) for part in gangs}
        logs = {part.name: self._folder / f"{part.name}.log" for part in gangs}
        self._audience.say("the same jobs once more, left alone: torchrun, one machine, no gate; are the losses the same?")
        with ExitStack() as stack:
            for part in gangs:
                steps = str(max(1, len(shared[part.name][0])))
                stack.enter_context(
                    left_alone(part, self.stage.examples, "--stop-after", steps, log=logs[part.name])
                )
        found = {}
        for part in gangs:
            alone = read_marks(logs[part.name].read_text(errors="replace").splitlines())
            found[part.name] = compare_losses(shared[part.name], losses(alone, part.workers))
        return found

    def result(
        self,
        demands: Sequence[Demand],
        speeds: Sequence[Sequence[float]],
        protection: Protection,
        comparisons: dict[str, Comparison],
        notes: tuple[str, ...],
    ) -> MultiplexResult:
        scene = self.scene
        return MultiplexResult(
            names=(scene.first.name, scene.second.name),
            demands=tuple(demands),
            rows=rows_of([(phase.name, phase.what) for phase in scene.phases], speeds, demands),
            protection=protection,
            comparisons=comparisons,
            notes=notes,
        )

    # ------------------------------------------------------------ phases

    def _alone(self, part: Part) -> Demand:
        """It comes, and what one of its steps needs is measured while nobody else is there."""
        cast, scene = self._cast, self.scene
        self._look.phase = f"{part.name} alone"
        cast.arrive(part, scene.warm_steps)
        window = cast.window(scene.alone_s)
        payload = cast.profile(part)["wire_bytes"]
        network_s = ring_bytes(part.workers, payload) * 8 / scene.rate_bits_per_s if self.stage.kind.has_link else 0.0
        demand = demand_of(cast.marks(part), window, device_share=self.stage.device_share(), network_s=network_s)
        self._look.alone_s[part.name] = demand.period_s
        return demand

    def _together(self, demands: Sequence[Demand]) -> list[list[float]]:
        """Both gangs through all modes."""
        scene, cast, gangs = self.scene, self._cast, (self.scene.first, self.scene.second)
        windows: list[Window] = []
        for phase in scene.phases:
            self._audience.say(f"both on the same two devices: {phase.what} (restow share --mode {phase.mode})")
            self._look.phase = phase.name
            for part in gangs:
                cast.share(part, mode=phase.mode, quantum_s=scene.quantum_s)
            cast.window(scene.settle_s)
            windows.append(cast.window(phase.length_s))
            speeds = self._speeds(demands, windows)
            self._look.rows[:] = rows_of([(p.name, p.what) for p in scene.phases[: len(windows)]], speeds, demands)
            self._audience.say(row_line(self._look.rows[-1]))
        cast.window(scene.settle_s)  # for the steps that the last window cut to end
        speeds = self._speeds(demands, windows)
        self._printed[scene.second.name] = cast.marks(scene.second)
        cast.leave(scene.second)
        return speeds

    def _speeds(self, demands: Sequence[Demand], windows: Sequence[Window]) -> list[list[float]]:
        """By window and gang, relative to alone."""
        marks = [self._cast.marks(part) for part in (self.scene.first, self.scene.second)]
        return [
            [demand.period_s / period_s(of_gang, window) for demand, of_gang in zip(demands, marks, strict=True)]
            for window in windows
        ]

    def _protected(self) -> Protection:
        """The first gang, now protected, alone and beside a background job; then that one alone."""
        scene, cast = self.scene, self._cast
        first, background = scene.first, scene.background
        self._look.phase = "protected"
        self._audience.say(f"{first.name} is alone again, and from now on protected (restow share --protect)")
        cast.share(first, mode="auto", protect=True)
        cast.window(scene.settle_s)
        alone = cast.window(scene.alone_s)
        cast.arrive(background, scene.warm_steps)
        self._audience.say(f"{background.name} runs in the idle time of {first.name}; restow finds how much that is")
        cast.window(scene.learn_s)
        self._audience.say(f"does {first.name} feel it?")
        both = cast.window(scene.protected_s)
        cast.window(0.5)
        self._printed[first.name] = marks = cast.marks(first)
        self._audience.say(f"{first.name} leaves; {background.name} alone, to compare with")
        cast.leave(first)
        cast.window(scene.settle_s)
        lent_alone = cast.window(scene.alone_s)
        cast.window(0.5)
        lent = cast.marks(background)
        return Protection(
            alone_s=period_s(marks, alone),
            shared_s=period_s(marks, both),
            background_alone_s=period_s(lent, lent_alone),
            background_shared_s=period_s(lent, both),
        )
