"""Who plays when devices are shared, and how long each phase lasts. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from restow.demo.scene import Part, Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Both gangs on the same devices, in one mode."""

    name: str
    mode: str  # of `restow share`
    what: str  # for the audience
    length_s: float  # that is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiplex(Scene):
    """Two machines with one device each. `first` and `second` are gangs of two, so each needs both devices."""

    devices: int = 1
    first: Part
    second: Part
    background: Part  # takes whatever the first leaves once that is protected
    phases: tuple[Phase, ...]
    warm_steps: int = 4  # of a job that has just started, before it is looked at
    alone_s: float = 6.0
    quantum_s: float = 1.0  # of a turn where gangs take turns
    settle_s: float = 1.5  # after a change of mode, before it is measured
    learn_s: float = 8.0  # for restow to find how much the background job may take
    protected_s: float = 8.0

    @property
    def title(self) -> str:
        return "restow: two gangs on the same two devices; one computes while the other waits for the network"

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.first, self.second, self.background)


def multiplex(*, fast: bool = False) -> Multiplex:
    """Two GPTs of 0.8 million parameters and a small one in the background.

    The gradients of the first two are 3.3 MB: 0.13 s on the link, about as long as a step computes. So alone each leaves its
    devices idle for half of its time. The background job is 0.03 million parameters, all computing.
    """
    return Multiplex(
        first=Part(
            name="gpt-a",
            what="a GPT learns to write Python, two workers",
            workers=2,
            script="timed_gpt.py",
            arguments=("--seed", "1"),
            share={"mode": "interleave"},
        ),
        second=Part(
            name="gpt-b",
            what="another one of the same size",
            workers=2,
            script="timed_gpt.py",
            arguments=("--seed", "2"),
            share={"mode": "interleave"},
        ),
        background=Part(
            name="background",
            what="a small GPT with much to compute, which may only use what is left over",
            workers=2,
            script="timed_gpt.py",
            arguments=tuple("--seed 3 --layers 8 --width 16 --batch 24".split()),
            share={"mode": "best-effort"},
        ),
        phases=(
            Phase(name="turns", mode="time-slice", what="they take turns, a second each", length_s=6.0 if fast else 8.0),
            Phase(name="free", mode="free", what="packed freely, as without restow", length_s=4.0 if fast else 6.0),
            Phase(name="gate", mode="interleave", what="through the gate", length_s=6.0 if fast else 10.0),
        ),
        alone_s=4.0 if fast else 6.0,
        learn_s=4.0 if fast else 8.0,
        protected_s=4.0 if fast else 8.0,
    )
