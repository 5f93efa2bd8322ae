"""How a training process shares its device: its way through the gate, rank 0's through the link's, and its turns of a time slice.

Puts passage.py, link.py and turns.py together for one process. Knows nothing of switches but that turns begin anew after one.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from restow.gate import LINK, TIME_SLICE, Gate
from restow.page import Page
from restow.sdk import group as groups_module
from restow.sdk.boxes import StateTable
from restow.sdk.device import Device
from restow.sdk.environment import Environment
from restow.sdk.link import Link
from restow.sdk.passage import Passage
from restow.sdk.priority import Priority
from restow.sdk.turns import Turns, make_swap


class SharedDevice:
    """`passage` is None until `open`, and where there is no gate."""

    def __init__(self, environment: Environment, page: Page):
        self._environment, self._page = environment, page
        self.passage: Passage | None = None
        self._turns: Turns | None = None
        self._turns_prefix = f"turns/{environment.generation}"  # of their keys since the last switch that was begun
        self._store_at = environment.store  # of the generation whose keys these are
        self.turns_are_void = False  # a switch is under way

    def open(self, device: torch.device, table: StateTable | None, is_twin: bool) -> Passage | None:
        """Become a member at the gate of our device; the present passage if we are one."""
        folder, index = self._environment.gate
        if self.passage is None and folder:
            env = self._environment
            gate = Gate.join(Path(folder), index, job=env.job, rank=env.rank)
            is_tight = self._page.words["is_tight"]
            self.passage = groups_module.passage = Passage(
                gate, Device(device), table.modules() if table else (),
                is_tight=lambda: bool(is_tight[0]), priority=Priority(is_fixed=env.keeps_priority),
            )  # fmt: skip
            if env.world_size > 1 and not is_twin:
                self.open_link()
        return self.passage

    def close(self) -> None:
        """Leave the gates: we do not compute until `open`."""
        if groups_module.link is not None:
            groups_module.link.close()
            groups_module.link = None
        if self._turns:
            self._turns.void()
        if self.passage is not None:
            self.passage.close()
            self.passage = groups_module.passage = self._turns = None

    def open_link(self) -> None:
        """Rank 0 only, and once it is no twin: become a member at the gate of this node's link."""
        env, passage = self._environment, self.passage
        if env.rank == 0 and passage is not None:
            gate = Gate.join(Path(env.gate[0]) / LINK, 0, job=env.job, rank=env.rank)
            groups_module.link = Link(gate, lambda: passage.gate.mode == TIME_SLICE)

    def is_alone(self) -> bool:
        """Does nobody else use the device, nor wait for the link?"""
        passage, link = self.passage, groups_module.link
        if passage is None:
            return True
        return passage.is_open and (link is None or link.is_idle) and (self._turns is None or self._turns.is_idle)

    def gate_words(self) -> tuple[memoryview, ...]:
        """Of the device and of the link, each 0 while its gate is free. Who is alone stays so until one of them is not."""
        gates = [each.gate for each in (self.passage, groups_module.link) if each is not None]
        return tuple(gate.mode_word for gate in gates)

    def save_point(self, step: int, step_s: float, table: StateTable | None) -> None:
        """At the gate: a yield point, and perhaps the end of a time slice. Returns when the device may be used again."""
        passage = self.passage
        if passage is None or (passage.is_open and (self._turns is None or self._turns.is_idle)):
            return
        passage.save_point()
        if self._turns is None and table is not None:
            page = self._page
            self._turns = Turns(
                passage, world_size=self._environment.world_size, open_store=self._open_store,
                quantum=lambda: float(page.get("quantum_s")), swap=make_swap(table),
                swap_bytes=lambda: int(page.get("swap_bytes")),
                on_swapped=lambda nbytes: page.set("swapped_bytes", nbytes),
            )  # fmt: skip
        if self._turns:
            self._turns.save_point(step, step_s)

    def _open_store(self) -> dist.Store:
        """The generation's store, as time slices see it."""
        host, port = self._store_at
        return dist.PrefixStore(self._turns_prefix, dist.TCPStore(host, port, is_master=False, wait_for_workers=False))

    def void_turns(self) -> None:
        """We take part in a switch: what was proposed before is forgotten."""
        self.turns_are_void = True
        if self._turns:
            self._turns.void()

    def begin_turns(self, generation: int, step: int, store: tuple[str, int]) -> None:
        """After a switch to `generation` at `step`, whichever generation goes on: `store` is its. Every rank of it comes here, so
        all use the same keys."""
        self._turns_prefix, self._store_at = f"turns/{generation}/{step}", store
        self.turns_are_void = False
        if self._turns:
            self._turns.begin(self._open_store)
