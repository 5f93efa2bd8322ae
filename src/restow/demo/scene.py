"""Who plays: the machines and the jobs of a scene. Values only; the scene with jobs that share is in multiplex/scene.py."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restow.errors import SetupError

MBIT = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One job of the scene."""

    name: str
    what: str  # for the audience, in a few words
    workers: int
    script: str  # a file of examples/
    arguments: tuple[str, ...]
    share: Mapping[str, Any] = field(default_factory=dict)  # of its spec

    def command(self, examples: Path, *more: str) -> tuple[str, ...]:
        return (sys.executable, str(examples / self.script), *self.arguments, *more)

    def spec(self, examples: Path, folder: Path, *more: str) -> dict[str, Any]:
        """What is submitted; it runs in `folder`."""
        return {
            "command": list(self.command(examples, *more)),
            "name": self.name,
            "workers": self.workers,
            "cwd": str(folder),
            "share": dict(self.share),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Machines and a link between them, and who plays there."""

    nodes: int = 2
    devices: int = 2  # of each node
    rate_bits_per_s: float = 200 * MBIT

    @property
    def title(self) -> str:
        """Of the display."""
        raise NotImplementedError

    @property
    def parts(self) -> tuple[Part, ...]:
        raise NotImplementedError


OWN_DEVICES = {"allow": False}  # nobody joins these jobs on their devices: who comes waits for free ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Consolidation(Scene):
    """Two machines, and jobs that arrive so that `gang` ends up with one worker on each of them.

    `early` leaves soon after it came and so opens the second hole; `neighbour` leaves later: room for the gang.
    """

    resident: Part
    early: Part
    neighbour: Part
    gang: Part
    scattered_steps: int  # so many steps of the scattered gang are watched before the neighbour's time is up
    after_steps: int  # and so many after the move

    @property
    def title(self) -> str:
        return "restow: a scattered job moves onto one machine while it trains"

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.resident, self.early, self.neighbour, self.gang)


def consolidate(*, fast: bool = False) -> Consolidation:
    """A digit reader, a visitor, another digit reader, and a GPT of 1.8 million parameters on two workers.

    Its gradients are 7 MB: about 0.3 s per step on a 200 Mbit/s link, which is 3 to 5 times its computing time. `fast`
    takes fewer steps: for tests and the impatient.
    """
    reader = ("--batch", "32", "--log-every", "50")
    gang_steps = 100 if fast else 160
    return Consolidation(
        resident=Part(
            name="digits",
            what="a convolutional net learns to read digits",
            workers=1,
            share=OWN_DEVICES,
            script="digits_cnn.py",
            arguments=("--steps", "1000000", "--seed", "2", *reader),
        ),
        early=Part(
            name="visitor",
            what="a short job that knows nothing of restow",
            workers=1,
            share=OWN_DEVICES,
            script="plain_ddp.py",
            arguments=("--steps", "200", "--seed", "3"),
        ),
        neighbour=Part(
            name="neighbour",
            what="another digit reader",
            workers=1,
            share=OWN_DEVICES,
            script="digits_cnn.py",
            arguments=("--steps", "1000000", "--seconds", "14" if fast else "22", "--seed", "4", *reader),
        ),
        gang=Part(
            name="gpt",
            what="a GPT learns to write Python, on two workers",
            workers=2,
            share=OWN_DEVICES,
            script="chars_gpt.py",
            arguments=tuple(
                f"--steps {gang_steps} --layers 4 --width 192 --heads 4 --context 32 --batch 2 "
                "--characters 400000 --log-every 20 --seed 1".split()
            ),
        ),
        scattered_steps=15 if fast else 25,
        after_steps=20 if fast else 40,
    )


def find_examples() -> Path:
    """The folder of the example scripts. Raises SetupError where restow was installed without them."""
    for folder in (Path(__file__).resolve().parents[3] / "examples", Path.cwd() / "examples"):
        if (folder / "chars_gpt.py").exists():
            return folder
    raise SetupError(
        "the demo plays with the scripts in examples/, which are not here; run it in the sources (make demo)"
    )
