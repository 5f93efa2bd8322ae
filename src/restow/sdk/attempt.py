"""One attempt to reach the next generation, as one process takes part in it: the same script for every role.

A process is *staying* (its rank keeps its slot), *leaving* (its rank goes elsewhere), *arriving* (the twin) or *suspending* (all
ranks leave, their state goes into the vault, vault.py). What runs in the
background is `connect`; what runs at the switch step, on the training thread, is `begin`. `finish` follows at once, or, for a
rank that stays and gives nothing, beside its training. Who decides: the store, never a process (agreement.py);
see docs/design/001-processes.md. Knows nothing of agents or of the user's loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from restow import vault
from restow.placement import is_scattered
from restow.sdk.agreement import Agreement
from restow.sdk.boxes import StateTable
from restow.sdk.group import Inner, NetInner, SwitchGroup
from restow.sdk.private import PrivateStore
from restow.sdk.sources import CONNECT_TIMEOUT, Sources
from restow.sdk.takeover import Takeover
from restow.sdk.terms import AttemptFailed, Outcome, Report, Role, Terms, Trouble
from restow.sdk.transport import FillClient, FillServer
from restow.sdk.vault import room_for, write_tensors

FILL_BYTES_PER_S_MIN = 5e6  # a transfer slower than this (40 Mbit/s) is given up
FILL_TIMEOUT_S_MIN = 30.0
WARM_UP_BYTES_MAX = 64 << 20
WARM_UP_LINK_BYTES_MAX = 64 << 10
VERDICT_TIMEOUT_S = 20.0  # beyond the transfer: proof and three store round trips


class Attempt:
    """See the module. `connect` once, then `take_part` (or `begin` and `finish`) once; `close` always."""

    def __init__(
        self,
        terms: Terms,
        *,
        role: Role,
        job: str,
        rank: int,
        address: str,
        secret: bytes,
        table: StateTable,
        libraries: Mapping[str, str],
    ):
        self.terms, self.role, self.rank, self._job = terms, role, rank, job
        self._address, self._secret, self._table = address, secret, table
        self._private = self._private_of(rank)
        self._libraries = dict(libraries)
        self._server: FillServer | None = None
        self.sources = Sources(terms, rank, table, secret)
        self._gives = False  # staying: does a twin read our state at the switch step?
        self._has_gathered = False
        self._inners: dict[str, Inner] = {}
        self._replaced: dict[str, Inner] = {}
        self._room: vault.Room | None = None  # suspending: where the state will be written
        self._agreement: Agreement | None = None
        self._across: FillClient | None = None  # leaving: to our twin; arriving: to our leaver. Only to see it end
        self.busy = threading.Lock()  # held while we take part: `close` from another thread waits for the outcome
        self.shadow: Any = None  # see shadow.py; a twin's, set by the worker when terms.fill is "shadow"
        self.leader: Any = None  # a leading rank's, likewise: to unmap its log takes milliseconds, which the switch step has not
        self._connected = threading.Event()
        self.is_begun = False  # somebody is connecting
        self.is_filled = False  # arriving: do our tensors hold the state already?

    def _private_of(self, rank: int) -> PrivateStore:
        return PrivateStore(self._secret, self.terms.generation, rank)

    @property
    def members(self) -> int:
        """Whose votes count."""
        return len(self.terms.then or self.terms.now)

    @property
    def agreement(self) -> Agreement:
        """What can be agreed on once we are connected."""
        assert self._agreement
        return self._agreement

    @property
    def is_guarded(self) -> bool:
        """Can a step be repeated on another inner? See guard.py."""
        return self._libraries == {"cpu": "gloo"}

    # ------------------------------------------------------------ in the background

    def open(self) -> None:
        """Open the fill port and say where it is: from now on the others see us end. Raises AttemptFailed."""
        try:
            self._server = FillServer(self._address, self._secret)
            kind = "twin" if self.role is Role.ARRIVING else "rank"
            self.open_store().set(f"source/{kind}/{self.rank}", f"{self._address}:{self._server.port}")
        except Exception as error:  # as in connect
            raise AttemptFailed(f"rank {self.rank} could not open its fill port: {_one_line(error)}") from error

    def connect(self, groups: Sequence[SwitchGroup]) -> None:
        """Find the others through the store, build the communicators of the next generation. `open` comes before.

        Blocks until every member of the new generation has come. Raises AttemptFailed.
        """
        try:
            store = self.open_store()
            if self.role is Role.ARRIVING:
                self.sources.connect(store)
                self._across = None if self.terms.kept else self.sources.of_own()
            if self.role is Role.STAYING:
                self._gives = self.sources.gives()
            if self.role is Role.LEAVING:
                self._across = self.sources.client(store, ("twin", self.rank))
            elif self.role is Role.SUSPENDING and self._keeps_replica:
                self._room = room_for(Path(self.terms.vault), vault.REPLICA, self._table.tensors())
            elif self.role is not Role.SUSPENDING:
                for group in groups:
                    prefixed = dist.PrefixStore(f"inner/{group.key}", store)
                    self._inners[group.key] = NetInner(prefixed, group.rank(), group.size(), self._libraries)
                self._warm_up(groups)
            self._agreement = Agreement(self.open_store(), self.role, self.rank, self.members, self._across)
        except Exception as error:  # whatever torch, sockets or shared memory raise here ends only this attempt
            raise AttemptFailed(f"rank {self.rank} could not connect: {_one_line(error)}") from error
        self._connected.set()

    @property
    def is_connected(self) -> bool:
        return self._connected.is_set()

    def await_connected(self, patience_s: float) -> bool:
        return self._connected.wait(patience_s)

    def _warm_up(self, groups: Sequence[SwitchGroup]) -> None:
        """New members: one sum as large as the largest of a step, so that the communicator's own threads have touched their
        memory when it counts. A small one where the ring crosses a link that trains, whose time it must not take, and where a job
        comes back that has been nowhere: its first step can do that as well."""
        is_small = is_scattered(self.terms.then) or bool(self.terms.kept)
        bytes_max = WARM_UP_LINK_BYTES_MAX if is_small else WARM_UP_BYTES_MAX
        options = dist.AllreduceOptions()
        options.timeout = CONNECT_TIMEOUT
        for group in groups:
            elements = max((elements for name, elements, _ in group.rehearsed if name == "allreduce"), default=1)
            for device_type in self._libraries:
                number = torch.zeros(min(elements, bytes_max // 4), device=device_type)
                self._inners[group.key].backend(device_type).allreduce([number], options).wait()

    def open_store(self) -> dist.TCPStore:
        host, port = self.terms.store
        return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=CONNECT_TIMEOUT)

    def announce(self, step: int) -> None:
        """Let the twins know of a proposed switch step ahead of it, so that they can fetch their first batch."""
        threading.Thread(
            target=lambda: self.open_store().set("upcoming", str(step)), name="restow-announce", daemon=True
        ).start()

    # ------------------------------------------------------------ at the switch step, on the training thread

    def take_part(self, step: int, groups: Sequence[SwitchGroup], capture: Callable[[], bytes]) -> Report:
        """Hand over, install, swap, prove, and obey the verdict. `capture` gives a leaver's private state.

        The old inners stay in place or are put back unless the outcome is DONE.
        """
        report = self.begin(step, groups, capture)
        return report if report.outcome else self.finish(groups, report)

    def begin(self, step: int, groups: Sequence[SwitchGroup], capture: Callable[[], bytes]) -> Report:
        """What must be done before this rank's state changes again: the decision, what it gives, what it gets.

        The report has no outcome yet if there is more to do: `finish`. An old rank that stays may train meanwhile, as far as its
        next collective and its next update: they are the same in both generations.
        """
        clock = _Clock()
        if self.role is not Role.ARRIVING:
            word = self.agreement.decision(step)
            clock.mark("decide")
            if word != "go":
                return Report(Outcome.ABORTED, reason="not decided in time", phases=clock.phases)
        report = Report(phases=clock.phases)
        with self._obeying(groups, report):
            if self.role is Role.ARRIVING:
                self._install(report, clock)
            elif self.role is Role.SUSPENDING:
                report.kept_bytes = self._keep(step, capture())
                clock.mark("vault")
            else:
                assert self._server
                private = self._private.hand_over(self.agreement.store, capture()) if self.role is Role.LEAVING else b""
                clock.mark("capture")
                self._server.publish(self._table.tensors(), private)
                clock.mark("publish")
            if self.role is not Role.STAYING or self._gives:
                self.agreement.gather("gate", self._patience_s())  # who waits at the gate has read what we give
                clock.mark("gather")
                self._has_gathered = True
        return report

    def finish(self, groups: Sequence[SwitchGroup], report: Report) -> Report:
        """The rest: everybody is there, the new ring is proved, the verdict is obeyed."""
        clock = _Clock(report.phases)
        with self._obeying(groups, report):
            if not self._has_gathered:
                self.agreement.gather("gate", self._patience_s())
                clock.mark("gather")
            self._swap_and_prove(groups)
            clock.mark("prove")
            verdict = self.agreement.verdict(self._patience_s())
            clock.mark("verdict")
            self._obey(verdict, report, groups)
        return report

    @contextmanager
    def _obeying(self, groups: Sequence[SwitchGroup], report: Report) -> Iterator[None]:
        """Whatever goes wrong inside becomes the report's outcome."""
        try:
            yield
        except Trouble:
            report.outcome = Outcome.TROUBLE
        except Exception as error:  # a lost peer, a timeout, a full device: everybody must learn of it, then go back
            self._obey(self.agreement.roll_back(f"rank {self.rank}: {_one_line(error)}"), report, groups)

    def _swap_and_prove(self, groups: Sequence[SwitchGroup]) -> None:
        """New members only: swap, prove the ring, and vote. Who is suspended has no ring to prove."""
        if self.role is Role.SUSPENDING:
            self.agreement.vote()
        elif self.role is not Role.LEAVING:
            self._replaced = {group.key: group.swap(self._inners[group.key]) for group in groups}
            self._prove(groups)
            self.agreement.vote()

    def _obey(self, verdict: str, report: Report, groups: Sequence[SwitchGroup]) -> None:
        if verdict == "done":
            report.outcome = Outcome.DONE
            return
        self.swap_back(groups)
        report.outcome = Outcome.ROLLED_BACK
        report.reason = verdict.removeprefix("rollback ")

    def swap_back(self, groups: Sequence[SwitchGroup]) -> None:
        for group in groups:
            if group.key in self._replaced:
                group.swap(self._replaced.pop(group.key))

    # ------------------------------------------------------------ when a leaver is lost; who calls: guard.py and the twin

    def keep_private(self, store: dist.Store, step: int, private: bytes) -> None:
        """Leaving: keep the private state of this save point, and of the one before, where it outlives us."""
        self._private.keep(store, step, private)

    def kept_private(self, store: dist.Store) -> dict[int, tuple[int, ...]]:
        """Moved rank → steps whose private state is in the store."""
        return {rank: self._private_of(rank).kept_steps(store) for rank in self.terms.moved}

    def join_takeover(
        self, takeover: Takeover, groups: Sequence[SwitchGroup], tensors: Mapping[str, torch.Tensor] | None
    ) -> Report:
        """An old rank's part: serve `tensors` (the state as of the takeover's step) if it is a source, then as at a switch step."""
        report = Report(is_takeover=True)
        assert self._server
        with self._obeying(groups, report):
            if tensors is not None:
                self._server.publish(tensors, b"")
            self.agreement.gather("second gate", self._patience_s())
            self._swap_and_prove(groups)
            verdict = self.agreement.verdict(self._patience_s())
            self._obey(verdict, report, groups)
        return report

    def take_over(self, groups: Sequence[SwitchGroup]) -> Report:
        """Arriving: become the rank at the step that the survivors agree on, without the leaver."""
        report, clock = Report(is_takeover=True), _Clock()
        report.phases = clock.phases
        with self._obeying(groups, report):
            takeover = self.agreement.await_takeover()
            clock.mark("agree")
            if takeover.why_not:
                raise AttemptFailed(takeover.why_not)
            if self.shadow:
                self.shadow.stop()
            private = self._private.kept(self.agreement.store, takeover.step)
            report.extra = self._table.install_private(private)
            if report.extra["step"] != takeover.step:
                raise AttemptFailed(f"the private state of rank {self.rank} is of step {report.extra['step']}")
            report.is_muted = self.rank in takeover.muted
            source = ("rank", takeover.sources[self.rank])
            crossed = self.sources.fill_from(source, self.agreement.store, self._table.tensors(), self._patience_s())
            report.wire_bytes = crossed + len(private)
            clock.mark("fill")
            self.agreement.gather("second gate", self._patience_s())
            self._swap_and_prove(groups)
            clock.mark("prove")
            verdict = self.agreement.verdict(self._patience_s())
            self._obey(verdict, report, groups)
        return report

    # ------------------------------------------------------------ the vault

    def _keep(self, step: int, private: bytes) -> int:
        """Suspending: write what this rank alone holds and, on the lowest rank of a node, what all hold alike; returns the bytes.
        Raises OSError when there is no room."""
        terms, folder = self.terms, Path(self.terms.vault)
        about: dict[str, Any] = {"job": self._job, "generation": terms.generation, "step": step}
        written = vault.write_blob(folder, vault.of_rank(self.rank), private, **about)
        if self._keeps_replica:
            written += write_tensors(folder, vault.REPLICA, self._table.tensors(), room=self._room, **about)
        return written

    @property
    def _keeps_replica(self) -> bool:
        """Suspending: the lowest rank of a node writes what all hold alike."""
        now = self.terms.now
        return self.rank == min(rank for rank, slot in enumerate(now) if slot.node == now[self.rank].node)

    # ------------------------------------------------------------ private state

    def _receive_private(self, patience_s: float) -> bytes:
        """Arriving: the leaver's private state, from the store or from the leaver itself. Raises Trouble if it is lost."""
        if not self.agreement.await_key(self._private.key, patience_s):
            raise AttemptFailed(f"rank {self.rank} did not come to the switch step")
        private = self._private.received(self.agreement.store)
        return self.sources.of_own().fetch_private(patience_s) if private is None else private

    def _install(self, report: Report, clock: _Clock) -> None:
        """Arriving: private state from the leaver, boxes by plan, shadow's last steps."""
        patience_s = self._patience_s()
        private = self.sources.private_from_vault(patience_s) if self.terms.kept else self._receive_private(patience_s)
        if self.sources.is_resized and self._table.has_gradients(private):
            raise AttemptFailed("it adds up gradients over several steps, which cannot be shared out anew among other workers")
        report.is_muted = self.rank in self.terms.kept_muted
        clock.restart()  # before this it only waited for the gang to come to the switch step
        if self.sources.is_elsewhere(self.sources.own):
            report.wire_bytes += len(private)
        if self.shadow:  # first: it still writes gradients and learning rates of the steps that it repeats
            self.shadow.finish(self._table.read_extra(private)["optimizer_steps"], patience_s)
            clock.mark("shadow")
        report.extra = self._table.install_private(private)
        clock.mark("private")
        tensors = self._table.tensors()
        assert self._server
        if not self.is_filled:
            report.wire_bytes += self.sources.fill("rank", tensors, patience_s)
        self._server.publish(tensors, b"")  # other twins of this node read from here
        if not self.is_filled:
            report.wire_bytes += self.sources.fill("twin", tensors, patience_s)
        clock.mark("fill")

    def _prove(self, groups: Sequence[SwitchGroup]) -> None:
        """One all-reduce of one number on each new communicator: everybody is there, in the same generation."""
        options = dist.AllreduceOptions()
        options.timeout = timedelta(seconds=self._patience_s())
        for group in groups:
            for device_type in self._libraries:
                number = torch.full((1,), float(self.terms.generation), device=device_type)
                group.inner.backend(device_type).allreduce([number], options).wait()
                if number.item() != self.terms.generation * group.size():
                    raise AttemptFailed(f"{group.key} answers for another generation")

    def _patience_s(self) -> float:
        return max(FILL_TIMEOUT_S_MIN, self._table.state_bytes() / FILL_BYTES_PER_S_MIN) + VERDICT_TIMEOUT_S

    # ------------------------------------------------------------ afterwards

    def close(self) -> None:
        """Drop what is not in use: after DONE the old communicators, otherwise the new ones. May take a while; never raises."""
        with self.busy:
            self._close()

    def _close(self) -> None:
        if self._server:
            self._server.close()
        if self._room:
            self._room.close()
        if self._across:
            self._across.close()
        self.sources.close()
        unused = self._replaced if self._replaced else self._inners
        for inner in unused.values():
            inner.close()
        self._replaced, self._inners = {}, {}
        self.leader = None


class _Clock:
    """Seconds by phase."""

    def __init__(self, phases: list[tuple[str, float]] | None = None) -> None:
        self.phases = [] if phases is None else phases
        self._last_s = time.perf_counter()

    def mark(self, phase: str) -> None:
        now_s = time.perf_counter()
        self.phases.append((phase, now_s - self._last_s))
        self._last_s = now_s

    def restart(self) -> None:
        self._last_s = time.perf_counter()


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
