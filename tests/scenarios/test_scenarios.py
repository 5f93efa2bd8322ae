"""Stories as transcripts: each `*.txt` here is a list of commands, each with its answer below a line `----`.

REWRITE=1 (or `make rewrite`) writes the answers anew; whoever reviews reads the difference. The commands:

    nodes m1:2 m2:2 link=200Mbit      machines with so many devices, joined by such links
    submit JOB [workers=2] [step=0.3 exposed=0.25 wire=6MB state=100MB total=1000] [sdk=no] [migrate=no] [fill=copy]
    place JOB SLOT...                 start it exactly there
    run | decide                      until nothing happens | only decide, and show what changed
    train JOB STEPS | end JOB | kill JOB RANK [WORDS...] | lose NODE | join NODE:DEVICES | cancel JOB | migrate JOB SLOT...
    clock SECONDS | restart | deaf [COMMAND...] | twins wrong|right | jobs | plan | told
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from restow import codec, messages
from restow.placement import nodes_of, parse_placement
from tests.core.obedient import Cluster, Program

FILES = sorted(Path(__file__).parent.glob("*.txt"))
UNITS = {"MB": 10**6, "GB": 10**9, "Mbit": 125_000, "Gbit": 125_000_000}


def amount(text: str) -> float:
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)


class Story:
    """Runs the commands of one transcript; each answer is a list of lines."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.shown = 0  # commands told before the last `told`

    def answer(self, line: str) -> list[str]:
        verb, *words = line.split()
        options = dict(word.split("=", 1) for word in words if "=" in word)
        return getattr(self, f"do_{verb}")([word for word in words if "=" not in word], options) or []

    def do_nodes(self, words: list[str], options: dict[str, str]) -> None:
        self.cluster = Cluster(" ".join(words), amount(options["link"]) if "link" in options else None)

    def do_submit(self, words: list[str], options: dict[str, str]) -> None:
        program = Program(
            step_s=amount(options.get("step", "0")), exposed_s=amount(options.get("exposed", "0")),
            wire_bytes=int(amount(options.get("wire", "0"))), state_bytes=int(amount(options.get("state", "100MB"))),
            steps_total=int(options.get("total", 10_000)), uses_sdk=options.get("sdk") != "no",
        )  # fmt: skip
        spec = {"migrate": options.get("migrate") != "no", "fill": options.get("fill", "auto")}
        self.cluster.submit(words[0], int(options.get("workers", 1)), program, **spec)

    def do_place(self, words: list[str], _: dict[str, str]) -> None:
        self.cluster.place(**{words[0]: " ".join(words[1:])})

    def do_run(self, *_: object) -> list[str]:
        before = dict(self.cluster.state.jobs)
        self.cluster.run()
        return [self._line(id) for id, job in self.cluster.state.jobs.items() if before.get(id) != job]

    def do_decide(self, *_: object) -> list[str]:
        before = {id: job.intended for id, job in self.cluster.state.jobs.items()}
        schedule = self.cluster.decide()
        changes = [id for id in before if schedule.placement(id) != (before[id] or None) or id in schedule.reasons]
        return [f"{id}: {schedule.reasons.get(id, 'no slots')}" for id in changes]

    def do_train(self, words: list[str], _: dict[str, str]) -> None:
        self.cluster.train(words[0], int(words[1]))

    def do_end(self, words: list[str], _: dict[str, str]) -> None:
        self.cluster.end(words[0])

    def do_kill(self, words: list[str], _: dict[str, str]) -> None:
        reason = " ".join(words[2:])
        self.cluster.kill(words[0], int(words[1]), code=1 if reason else -9, reason=reason)

    def do_lose(self, words: list[str], _: dict[str, str]) -> None:
        self.cluster.lose(words[0])

    def do_join(self, words: list[str], _: dict[str, str]) -> None:
        name, _, devices = words[0].partition(":")
        self.cluster.join(name, int(devices))

    def do_cancel(self, words: list[str], _: dict[str, str]) -> None:
        self.cluster.cancel(words[0])

    def do_migrate(self, words: list[str], _: dict[str, str]) -> None:
        self.cluster.migrate(words[0], " ".join(words[1:]))

    def do_clock(self, words: list[str], _: dict[str, str]) -> None:
        self.cluster.clock(float(words[0]))

    def do_restart(self, *_: object) -> None:
        self.cluster.restart()

    def do_deaf(self, words: list[str], _: dict[str, str]) -> None:
        self.cluster.agents.deaf = {codec.TYPES[word] for word in words}

    def do_twins(self, words: list[str], _: dict[str, str]) -> None:
        self.cluster.agents.wrong_twins = words == ["wrong"]

    def do_jobs(self, *_: object) -> list[str]:
        return [self._line(id) for id in self.cluster.state.jobs]

    def do_plan(self, *_: object) -> list[str]:
        schedule = self.cluster.policy.plan(self.cluster.state.snapshot(self.cluster.now_s))
        lines = [f"{id}: {reason}" for id, reason in sorted(schedule.reasons.items()) if reason]
        return lines + [
            f"move {move.job}: {' '.join(map(str, move.now))} -> {' '.join(map(str, move.then))}, saves {move.saves_s:.0f} s,"
            f" sends {move.wire_bytes} bytes" for move in schedule.moves.values()
        ]  # fmt: skip

    def do_told(self, *_: object) -> list[str]:
        told, self.shown = self.cluster.told[self.shown :], len(self.cluster.told)
        return [self._told(node, command) for node, command in told]

    @staticmethod
    def _told(node: str, command: messages.Command) -> str:
        rest = [f"step {command.step}"] if isinstance(command, (messages.Propose, messages.Decide)) else []
        rest += ["go" if command.go else "abort"] if isinstance(command, messages.Decide) else []
        rest += [command.fill] if isinstance(command, messages.Connect) else []
        rest += [f"ranks {' '.join(map(str, command.ranks))}"] if isinstance(command, messages.Prepare) else []
        return f"{node} <- {type(command).__name__} {command.job}.g{command.generation} {' '.join(rest)}".rstrip()

    def _line(self, id: str) -> str:
        job = self.cluster.job(id)
        where = " ".join(map(str, job.placement)) or "-"
        switch = f", to {' '.join(nodes_of(job.switch.placement))}: {job.switch.phase.value}" if job.switch else ""
        return f"{id} g{job.generation} {job.state.value} {where}{switch} | {job.reason}"


def test_every_slot_in_the_commands_above_can_be_read():
    assert [str(slot) for slot in parse_placement("m1:0 m2:1@0.5")] == ["m1:0", "m2:1@0.5"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_story_goes_as_it_is_written(file):
    story, told = Story(), []
    for block in file.read_text().strip().split("\n\n"):
        command, _, _ = block.partition("\n----")
        lines = command.splitlines()
        answers = [story.answer(line) for line in lines if not line.startswith("#")]
        answer = [line for lines_ in answers for line in lines_]
        told.append("\n".join([command, *(["----", *answer] if answer else [])]))
    text = "\n\n".join(told) + "\n"
    if os.environ.get("REWRITE"):
        file.write_text(text)
    assert file.read_text() == text
