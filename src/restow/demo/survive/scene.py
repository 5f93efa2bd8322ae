"""Who plays: one gang of three workers on two machines, one of which will be pulled out. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from restow.demo.scene import OWN_DEVICES, Part, Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Survive(Scene):
    gang: Part
    before_steps: int  # that are watched before the machine is pulled out
    without_steps: int  # and while it is out
    after_steps: int  # and when the gang has its machine again

    @property
    def title(self) -> str:
        return "restow: a machine is pulled out while a job trains on it"

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.gang,)


def survive(*, fast: bool = False) -> Survive:
    """A GPT of half a million parameters on three workers, two of them on the first machine. `fast`: fewer steps."""
    steps = 90 if fast else 150
    return Survive(
        gang=Part(
            name="gpt",
            what="a GPT learns to write Python, on three workers",
            workers=3,
            share=OWN_DEVICES,
            script="chars_gpt.py",
            arguments=tuple(
                f"--steps {steps} --layers 2 --width 128 --heads 4 --context 32 --batch 2 --characters 400000 "
                "--log-every 1 --seed 1".split()
            ),
        ),
        before_steps=15 if fast else 30,
        without_steps=15 if fast else 30,
        after_steps=10 if fast else 20,
    )
