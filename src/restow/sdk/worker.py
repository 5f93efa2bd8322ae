"""A training process under restow: who it is, its page and its line to the agent. Its part in switches is switches.py's.

The training thread calls `after_step` at every save point: one store, one load, a clock. Everything slow happens on other
threads or at a switch step. Knows nothing of the user's loop (session.py).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from restow.errors import ScriptError
from restow.page import Page, open_page
from restow.sdk import group as groups_module
from restow.sdk.attention import Attention
from restow.sdk.boxes import StateTable
from restow.sdk.channel import Channel
from restow.sdk.environment import Environment
from restow.sdk.footprint import MemoryWatch, limit_memory
from restow.sdk.group import NetInner, SoloInner, collective_libraries
from restow.sdk.memory import KEPT_BYTES, keep_touched_memory, touch_ahead
from restow.sdk.passage import Passage
from restow.sdk.process import leave, speak
from restow.sdk.replicas import Replicas
from restow.sdk.sentinel import Sentinel
from restow.sdk.shared_device import SharedDevice
from restow.sdk.sleep import Sleep
from restow.sdk.snapshots import Snapshots
from restow.sdk.switches import Switches
from restow.sdk.terms import read_terms
from restow.sdk.times import StepTimes
from restow.sdk.whereabouts import whereabouts

ASK_AGAIN_S = 0.2  # while no agent listens
SPARE_BYTES = 64 << 20  # beyond its gradients: temporaries of an optimizer, activations of small batches


class Worker:
    """One rank or twin. `table` is set by `register`, once the script has prepared what it trains."""

    def __init__(self, environment: Environment):
        self.environment = environment
        self.generation = environment.generation
        self.libraries = collective_libraries(environment.cuda_collectives)
        self.is_twin = environment.role == "twin"
        self.page: Page = open_page(Path(environment.page))
        self.table: StateTable | None = None
        self.values: dict[str, float] = {}
        self._replicas: Replicas | None = None  # as the sentinel
        self.snapshots: Snapshots | None = None  # from `register` on
        self.attention: Attention | None = None  # from `register` on
        self.sentinel: Sentinel | None = None  # from `register` on, where lost ranks are replaced
        self.optimizer_steps = 0
        self.signature = ""  # what this rank has built, once it is known
        self._left_generation = self.generation  # where a fallback goes to
        self._is_muted = False  # a twin that repeats a step whose lines are printed already
        self._step_word = self.page.words["step"]
        self.switch_word = self.page.words["switch_step"]
        keep_touched_memory()
        if environment.memory_bytes:
            limit_memory(environment.memory_bytes, "cuda" if torch.cuda.is_available() else "cpu")
        self.times = StepTimes(self.page)
        self.device = SharedDevice(environment, self.page)
        self._store_at = self._store_before = environment.store  # of the present generation, and of the one before
        self._nodes = self._nodes_before = environment.nodes  # as these
        self.page.set("pid", os.getpid())
        self.page.set("generation", self.generation)
        hello = {
            "job": environment.job,
            "generation": environment.generation,
            "rank": environment.rank,
            "role": environment.role,
            "pid": os.getpid(),
            "secret": environment.secret.hex(),
        }
        self.channel = Channel(environment.agent, hello, self._on_message)
        self.sleep = Sleep(self)
        self.switches = Switches(self)
        self.channel.start()
        self._hear_signal()

    def _hear_signal(self) -> None:
        """SIGUSR1 asks for a checkpoint of the job, unless the script wants the signal itself."""
        is_free = signal.getsignal(signal.SIGUSR1) in (signal.SIG_DFL, None)
        if is_free and threading.current_thread() is threading.main_thread():
            def ask() -> None:
                while not self.channel.say(type="checkpoint_asked"):  # once: a fact would be told to every later agent again
                    time.sleep(ASK_AGAIN_S)

            def asked(*_: object) -> None:  # the main thread may hold the channel's lock
                threading.Thread(target=ask, name="restow-asks", daemon=True).start()

            signal.signal(signal.SIGUSR1, asked)

    # ------------------------------------------------------------ before the loop

    def join_gang(self) -> None:
        """Make torch's default group: the real one for a rank, a solo one for a twin. One rank alone has none."""
        env = self.environment
        if env.world_size == 1:
            return
        if self.is_twin:
            store: dist.Store = dist.HashStore()
            groups_module.install(lambda name, rank, size: SoloInner())
        else:
            host, port = env.store
            store = dist.PrefixStore("gang", dist.TCPStore(host, port, is_master=False, wait_for_workers=False))

            def connect(name: str, rank: int, size: int) -> NetInner:
                return NetInner(dist.PrefixStore(f"inner/{name}", store), rank, size, self.libraries)

            groups_module.install(connect)
        dist.init_process_group(groups_module.BACKEND, store=store, rank=env.rank, world_size=env.world_size)

    def register(self, table: StateTable) -> None:
        """What travels. Hooks the optimizers: how long each step waited for others, and how many updates were made."""
        self.table = table
        self.times.memory = MemoryWatch(table.device())
        for optimizer in table.optimizers():
            optimizer.register_step_pre_hook(self._before_update)
            optimizer.register_step_post_hook(self._after_update)
        self.open_passage(table.device())
        env = self.environment
        self.snapshots = Snapshots(
            job=env.job, rank=env.rank, world_size=env.world_size, secret=env.secret, table=table, channel=self.channel,
            store=lambda: (self.generation, self._store_at), finished=lambda: int(self._step_word[0]),
        )  # fmt: skip
        if env.slots and self.libraries == {"cpu": "gloo"}:
            self._replicas = Replicas(env)
            self.sentinel = Sentinel(
                job=env.job, rank=env.rank, slots=env.slots, table=table, channel=self.channel, replicas=self._replicas,
                step_s=lambda: self.times.usual_step_s, leave=leave,
            )  # fmt: skip
            if not self.is_twin:
                self.sentinel.join(self.generation, self._nodes)
            groups_module.sentinel = self.sentinel
        self.attention = Attention(
            self.page, groups_module.groups, table.watch, is_replaceable=self.sentinel is not None, is_needed=self._must_see,
            gates=self.device.gate_words, step_s=lambda: self.times.usual_step_s, on_come=self.times.look,
        )  # fmt: skip

    @property
    def passage(self) -> Passage | None:
        return self.device.passage

    def open_passage(self, device: torch.device) -> Passage | None:
        """Become a member at the gate of our device. None where there is no gate."""
        return self.device.open(device, self.table, self.is_twin)

    def _must_see(self) -> bool:
        """Does anything depend on what happens inside the next step?"""
        assert self.snapshots
        is_expected = self.switches.is_busy or self.snapshots.is_busy or self.switch_word[0] >= self._step_word[0]
        return is_expected or not self.device.is_alone() or not self.times.is_settled

    def save_point(self, step: int) -> None:
        self.device.save_point(step, self.times.last_step_s, self.table)

    def begin_turns(self, generation: int, step: int) -> None:
        self.device.begin_turns(generation, step, self._store_at)

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        switches = self.switches
        switches.is_updating = True  # before the look: who makes a leader looks at this afterwards
        if switches.is_busy:
            switches.before_update(optimizer)
        is_seen = not (self.attention and self.attention.is_away)
        if self.snapshots and is_seen:
            self.snapshots.before_update()
        if self.sentinel and not self.is_twin:
            self.sentinel.before_update()
        if is_seen:
            self.times.before_update()

    def _after_update(self, *_: Any) -> None:
        self.optimizer_steps += 1
        switches = self.switches
        if switches.is_busy:
            switches.after_update()
        switches.is_updating = False

    def say_ready(self, signature: str, why_not: str) -> None:
        assert self.table
        self.signature = signature
        self.channel.tell(
            type="ready",
            signature=signature,
            state_bytes=self.table.state_bytes(),
            private_bytes=self.table.private_bytes(),
            movable=not why_not,
            why_not=why_not,
        )

    def stay(self, signature: str, why_not: str) -> None:
        """The script has begun a second loop: from here on its position is not ours, so it cannot move any more."""
        self.say_ready(signature, why_not)
        self.switches.refuse(why_not)

    def park(self) -> None:
        """A twin has rehearsed: whatever its first step allocates shall be memory that was touched before."""
        assert self.table
        if self.libraries == {"cpu": "gloo"}:
            ahead_bytes = self.table.parameter_bytes() + SPARE_BYTES
            if keep_touched_memory(kept_bytes=max(KEPT_BYTES, 2 * ahead_bytes)):
                touch_ahead(ahead_bytes)

    # ------------------------------------------------------------ every step

    def begin(self, step: int, total: int | None) -> None:
        """The loop starts (or goes on after a move) with `step` steps finished."""
        self.page.set("steps_total", -1 if total is None else total)
        self._step_word[0] = step
        self.times.begin(step)
        self.join_replicas()

    def after_step(self, step: int) -> bool:
        """A save point that is seen to, after `step` finished steps, of which the page knows (`attention.passes`). True if a switch
        is near: then call `switches.at_switch`."""
        self.times.after_step(step, self.device.passage, self.values)
        self._unmute()
        return self.switches.guard is not None or self.switch_word[0] >= step

    def turn(self) -> None:
        """The end of a save point that was seen to: what must be seen of the next step?"""
        assert self.attention
        self.attention.turn()
        if self.passage:
            self.passage.watch_forward(not self.passage.is_open)

    def call(self) -> None:
        """Something is to be done at the next save point."""
        if self.attention:
            self.attention.call()

    def end_loop(self) -> None:
        """No save point comes any more: a switch that was just made is final for us, one that is near will not be made."""
        if self.attention:
            self.attention.stay()
        if self.passage:
            self.passage.lend()
        if self.sentinel:
            self.sentinel.end_loop()
        self.switches.end_loop()
        self._unmute()

    def _unmute(self) -> None:
        if self._is_muted:
            self._is_muted = False
            speak(self.environment.log)

    # ------------------------------------------------------------ after a switch

    def enter(self, generation: int, step: int, store: tuple[str, int], nodes: tuple[str, ...]) -> None:
        """A rank of this generation, from the save point `step` on. `nodes`: of each of its ranks."""
        self._store_before, self._store_at = self._store_at, store
        self._nodes_before, self._nodes = self._nodes, nodes
        self._left_generation, self.generation = self.generation, generation
        self._go_on(generation, step)

    def go_back(self, generation: int, step: int) -> None:
        """A rank of the generation before this one, from the save point `step` on."""
        self.generation, self._store_at, self._nodes = self._left_generation, self._store_before, self._nodes_before
        self._go_on(generation, step)

    def _go_on(self, turns: int, step: int) -> None:
        """`turns`: the generation whose turns begin; those of one that is gone back to had begun before."""
        self.begin_turns(turns, step)
        if self.sentinel:
            self.sentinel.join(self.generation, self._nodes)
        self.page.set("generation", self.generation)
        self.channel.change_hello(generation=self.generation)

    def join_replicas(self) -> None:
        """Of the present generation."""
        if self._replicas:
            self._replicas.join(self.generation, self._store_at)

    def become_rank(self, step: int, optimizer_steps: int, is_muted: bool) -> None:
        """This twin is the rank from here on; `is_muted`: what its next step prints was printed already."""
        self.optimizer_steps = optimizer_steps
        self._step_word[0] = step
        self.is_twin = False
        self.channel.change_hello(role="rank")
        self.device.open_link()
        self._is_muted = is_muted
        if not is_muted:
            speak(self.environment.log)

    # ------------------------------------------------------------ the agent's words, on the channel's thread

    def _on_message(self, message: dict[str, Any]) -> None:
        if message["type"] in ("guard", "connect"):
            begin = self.switches.prepare if message["type"] == "guard" else self.switches.connect
            threading.Thread(target=begin, args=(read_terms(message),), name="restow-connect", daemon=True).start()
        elif message["type"] == "where":
            self.channel.say(type="where", **whereabouts())
        elif message["type"] == "snapshot":
            if self.snapshots and not self.is_twin and message["generation"] == self.generation:
                self.snapshots.ask(int(message["step"]), Path(message["folder"]), self.call)
        elif message["type"] in ("halt", "keep", "let_go"):
            self._on_loss(message)
        elif message["type"] == "wake":
            self.switches.wake(int(message["generation"]))
        elif message["type"] == "abandon":
            self.switches.abandon(int(message["generation"]))

    def _on_loss(self, message: dict[str, Any]) -> None:
        """Another rank of the gang was lost, or (let_go) nobody comes back for us."""
        sentinel = self.sentinel
        if sentinel is None or self.is_twin:
            return
        does = {"halt": sentinel.halt, "let_go": sentinel.let_go, "keep": lambda: sentinel.keep(message)}[message["type"]]
        threading.Thread(target=does, name="restow-loss", daemon=True).start()


def no_table() -> ScriptError:
    return ScriptError(
        "job.steps was called before job.prepare; call model, optimizer = job.prepare(model, optimizer) first"
    )
