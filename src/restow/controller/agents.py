"""Contact with every node: events come in, commands go out, silence is noticed.

For each node one task pumps events and one sends commands in order. An event is acknowledged to its agent only after
`take` has returned, and `take` journals before it returns: nothing is lost when the controller is killed in between, and
what comes twice is harmless.

A node whose pulse (pulses.py) is silent for longer than a lease is lost; one whose pulse and agent are both gone, too. An agent
that was killed is back in about 2 s, and is waited for as long as the pulse beats. Without a pulse, behind a firewall, a node is
lost after `silence_s` without any answer of its agent. It joins again by answering.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from restow.cluster import Device
from restow.codec import from_json
from restow.controller.pulses import Line, Pulses
from restow.engine.base import AgentHandle, Engine
from restow.errors import NotFound, RestowError, Unreachable
from restow.lease import LEASE_S
from restow.messages import Command, Event, LeaseRanOut, NodeJoined, NodeLost

log = logging.getLogger(__name__)

WAIT_S = 2.0  # one long poll, at most a quarter of the silence; an idle agent costs half a call per second
RETRY_S = 0.3
MISTAKES_MAX = 5  # in telling one command
MEMBERS_S = 1.0  # how often the engine is asked for new nodes, at most a quarter of the silence
COMPARE_S = 20.0  # how often what runs is compared with what is believed, although every change is reported

FEEL_S = 0.05  # how often each pulse is looked at
BROKEN_S = (
    0.5  # a pulse that was killed is back in a tenth of this; without agent and pulse for so long, a node is lost
)

Take = Callable[[Sequence[Event]], Awaitable[None]]
Compare = Callable[[dict[str, Any], bool, bool], Awaitable[None]]  # what runs there; another life of the agent? was it lost?


class Contact:
    """One node. `joined` is true between NodeJoined and NodeLost."""

    def __init__(
        self, handle: AgentHandle, *, take: Take, compare: Compare, silence_s: float, pulses: Pulses, was_lost: bool = False
    ):  # fmt: skip
        self.handle = handle
        self._pulses = pulses
        self._line: Line | None = None  # its pulse, once felt
        self._where: dict[str, Any] | None = None  # and where that is
        self.node = handle.node
        self.joined = False
        self.was_lost = was_lost  # since it was last joined
        self.epoch = ""  # of the agent's present life
        self.after = 0  # highest event number that is journalled
        self.answered = time.monotonic()
        self._take = take
        self._compare = compare
        self._silence_s = silence_s
        self._compared = 0.0
        self._commands: asyncio.Queue[Command] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        self._tasks = [asyncio.create_task(self._for_ever(each)) for each in (self._pump, self._deliver, self._feel)]

    async def _for_ever(self, work: Callable[[], Awaitable[None]]) -> None:
        """A mistake of ours, or of the engine, is told; it must not put the node out of reach until the controller is restarted."""
        while True:
            try:
                await work()
            except Exception:  # whatever a call into the engine raises that is none of our errors
                log.exception("%s: %s failed", self.node, work.__name__)
                await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._let_go()

    def send(self, command: Command) -> None:
        self._commands.put_nowait(command)

    async def _pump(self) -> None:
        while True:
            try:
                if not self.joined or time.monotonic() - self._compared > COMPARE_S:
                    await self._greet()
                await self._receive(min(WAIT_S, self._silence_s / 4))
            except Unreachable as error:
                silence_s = time.monotonic() - self.answered
                if self.joined and silence_s > self._silence_s:
                    log.warning("%s: %s", self.node, error)
                    await self._lose(f"silent for {silence_s:.0f} s")
                await asyncio.sleep(min(RETRY_S, self._silence_s / 4))
            except RestowError as error:  # the agent answers, but has a problem, or speaks another version
                self.answered = time.monotonic()
                log.error("%s: %s", self.node, error)
                await asyncio.sleep(1.0)

    async def _lose(self, reason: str) -> None:
        self.joined, self.was_lost = False, True
        self._let_go()
        self._forget_commands()
        await self._take([NodeLost(time_s=time.time(), node=self.node, reason=reason)])

    # ------------------------------------------------------------ its pulse

    async def _feel(self) -> None:
        """Look at the node's pulse all the time, whatever its agent does."""
        broken_s: float | None = None  # since when there was none
        looked_s = time.monotonic()
        while True:
            await asyncio.sleep(FEEL_S)
            stood_still, looked_s = time.monotonic() - looked_s > LEASE_S / 2, time.monotonic()
            if not self.joined or self._line is None:
                broken_s = None
                continue
            line = self._line
            if line.is_open and line.is_silent and stood_still:  # it is we who were silent: what is true now?
                self._pulses.close(line)
            if line.is_open:
                broken_s = None
                if line.is_silent:
                    await self._lose(f"silent for {time.monotonic() - line.heard_s:.1f} s")
                continue
            broken_s = broken_s or time.monotonic()
            is_there = await self._feel_again(line) or await self._find_again(line)
            if self.joined and not is_there and time.monotonic() - broken_s > BROKEN_S:
                await self._lose("nothing of restow answers there")

    async def _feel_again(self, before: Line) -> bool:
        """The line broke. Connect to where the pulse is believed to be."""
        if not self._where:
            return False
        try:
            line = await self._pulses.open(self._where)
        except RestowError:
            return False
        if not self.joined:  # lost meanwhile
            self._pulses.close(line)
            return True
        self._let_go()
        self._line = line
        if line.lapses > before.lapses:
            log.warning("%s: its lease ran out unheard of", self.node)
            await self._take([LeaseRanOut(time_s=time.time(), node=self.node)])
        return True

    async def _find_again(self, before: Line) -> bool:
        """Ask the agent where the pulse is now. True if it answers: then the node is there, with or without a pulse."""
        try:
            async with asyncio.timeout(BROKEN_S):
                status = await self.handle.ask("status")
        except (Unreachable, TimeoutError):
            return False
        except RestowError as error:
            log.error("%s: %s", self.node, error)
            return True
        if status.get("pulse") != self._where:
            self._where = status.get("pulse")
            await self._feel_again(before)
        return True

    def _let_go(self) -> None:
        if self._line:
            self._pulses.close(self._line)
            self._line = None

    # ------------------------------------------------------------ what it says

    async def _greet(self) -> None:
        """Learn what is there: status, then what is still unread, then status again and the comparison. So neither an exit nor a
        start in between is mistaken for a process that vanished."""
        status = await self.handle.ask("status")
        self.answered = self._compared = time.monotonic()
        is_new = not self.joined
        if is_new:
            await self._find_pulse(status)
            devices = tuple(Device(**device) for device in status["devices"])
            await self._take(
                [NodeJoined(time_s=time.time(), node=self.node, address=status["address"], devices=devices)]
            )
            self.epoch, self.after = "", 0  # numbers are only good within one life; what comes twice is harmless
            self.joined = True
        if await self._receive(0.0):
            later = await self.handle.ask("status")
            status["processes"] += later["processes"]  # alive before or after what was unread: not vanished
            await self._compare(status, is_new, self.was_lost)
            self.was_lost = False

    async def _find_pulse(self, status: dict[str, Any]) -> None:
        if self._line and self._line.is_open:
            return
        self._where = status.get("pulse")
        if not self._where:
            return
        try:
            self._line = await self._pulses.open(self._where)
        except RestowError as error:
            log.warning("%s: %s; it will be noticed lost after %.0f s only", self.node, error, self._silence_s)

    async def _receive(self, wait_s: float) -> bool:
        """Take what is unread; False when another agent answers than before, so that it has to be greeted."""
        batch = await self.handle.events(self.after, wait_s)
        self.answered = time.monotonic()
        if self.epoch and batch.epoch != self.epoch:
            log.warning("%s: another agent answers", self.node)
            self.joined = False
            return False
        self.epoch = batch.epoch
        if batch.events:
            await self._take([event for _, wire in batch.events if (event := self._read(wire))])
            self.after = batch.events[-1][0]
        return True

    def _read(self, wire: dict[str, Any]) -> Event | None:
        try:
            event = from_json(wire)
        except RestowError as error:
            log.error("%s: %s", self.node, error)
            return None
        return event if isinstance(event, Event) else None

    async def _deliver(self) -> None:
        """In order, one after the other; a command is tried until it is delivered or its node is lost."""
        while True:
            command, mistakes = await self._commands.get(), 0
            while True:
                try:
                    await self.handle.tell(command)
                    break
                except Unreachable:
                    await asyncio.sleep(RETRY_S)
                    if not self.joined:
                        log.warning("%s: undelivered: %s", self.node, command)
                        break
                except RestowError as error:
                    log.error("%s refuses %s: %s", self.node, command, error)
                    break
                except Exception:  # as in _for_ever, but the command must not get lost by it
                    log.exception("%s: telling %s failed", self.node, command)
                    mistakes += 1
                    if mistakes == MISTAKES_MAX:
                        break
                    await asyncio.sleep(RETRY_S)

    def _forget_commands(self) -> None:
        while not self._commands.empty():
            self._commands.get_nowait()


class Agents:
    """All contacts. `take(events)` returns when they are journalled; `compare(status, is_new)` after each (re)join."""

    def __init__(self, engine: Engine, *, take: Take, compare: Compare, silence_s: float = 15.0):
        self._engine = engine
        self._take = take
        self._compare = compare
        self._silence_s = silence_s
        self._pulses = Pulses()
        self._contacts: dict[str, Contact] = {}
        self._lost: set[str] = set()  # nodes that did not answer when the controller came back

    def send(self, node: str, command: Command) -> None:
        """Queue a command. To a node without contact it is dropped: its NodeLost is on the way and undoes it."""
        contact = self._contacts.get(node)
        if contact is None:
            log.warning("%s: no contact for %s", node, command)
            return
        contact.send(command)

    async def ask(self, node: str, what: str, **arguments: Any) -> Any:
        contact = self._contacts.get(node)
        if contact is None:
            raise NotFound(f"node {node} is not connected; see restow nodes")
        return await contact.handle.ask(what, **arguments)

    @property
    def joined(self) -> tuple[str, ...]:
        return tuple(sorted(node for node, contact in self._contacts.items() if contact.joined))

    async def run(self, expected: Sequence[str] = ()) -> None:
        """Make and keep contact until cancelled. `expected`: nodes that the journal believes alive."""
        begun = time.monotonic()
        missing = set(expected)
        try:
            while True:
                try:
                    handles = await self._engine.agents()
                except RestowError as error:
                    log.error("engine: %s", error)
                    handles = {}
                for node, handle in handles.items():
                    await self._meet(node, handle)
                missing -= self._contacts.keys()
                if missing and time.monotonic() - begun > self._silence_s:
                    now_s = time.time()
                    reason = f"did not answer within {self._silence_s:.0f} s after the controller came back"
                    await self._take([NodeLost(time_s=now_s, node=node, reason=reason) for node in sorted(missing)])
                    self._lost |= missing
                    missing.clear()
                await asyncio.sleep(min(MEMBERS_S, self._silence_s / 4))
        finally:
            await asyncio.gather(*(contact.close() for contact in self._contacts.values()))

    async def _meet(self, node: str, handle: AgentHandle) -> None:
        contact = self._contacts.get(node)
        if contact is None:
            contact = Contact(
                handle, take=self._take, compare=self._compare, silence_s=self._silence_s, pulses=self._pulses,
                was_lost=node in self._lost,
            )
            self._contacts[node] = contact
            contact.open()
        else:
            contact.handle = handle  # after a node came back the engine has another handle for it
