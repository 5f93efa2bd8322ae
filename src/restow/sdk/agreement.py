"""What the processes of one attempt agree on: a few words in the store of the next generation, and the first writer wins.

`decision/STEP`: go or abort. `gate` and `second gate`: whole, trouble or rollback. `verdict`: done, or rollback with its reason.
`after`: retire, or fallback with its reason. See docs/design/001-processes.md.
Knows nothing of state, of communicators or of the user's loop.
"""

from __future__ import annotations

import time
from datetime import timedelta

import torch.distributed as dist

from restow.sdk.takeover import Takeover, read_takeover
from restow.sdk.terms import AttemptFailed, Role, Trouble
from restow.sdk.transport import FillClient

DECISION_TIMEOUT_S = 5.0  # a controller that is alive decides within milliseconds of the last acceptance
POLL_S = 0.0005
PARKED_POLL_S = 0.01  # a proposal comes at least 0.3 s ahead
POLL_SHARE = 0.1  # of the time, at most, a question is under way: where an answer takes long, the next one waits longer ...
POLL_S_MAX = 0.02  # ... but not long: one answer that was late, on a machine that stood still, says nothing of the next
TROUBLE_PATIENCE_S = 120.0  # for everybody to be stuck or known as lost: somebody may be in a long evaluation
LOOK_S = 0.05  # between two looks whether the process across is still there, or a leaver may go


class Agreement:
    """One process's end, for the thread that takes part: the client of the store must not be shared with another."""

    def __init__(self, store: dist.Store, role: Role, rank: int, members: int, across: FillClient | None):
        """`members`: of the new generation, of the old one where it is suspended.
        `across`: leaving: to our twin; arriving: to our leaver. Only to see it end."""
        self.store = store
        self._role, self._rank, self._members, self._across = role, rank, members, across
        self._looked_s = 0.0
        self._has_settled = False

    # ------------------------------------------------------------ ahead of the switch step

    def await_announcement(self) -> int:
        """The switch step that is likely; waits for ever (an abandoned twin is ended by the worker)."""
        while True:
            if self.store.check(["upcoming"]):
                return int(self.store.get("upcoming"))
            self.look_across()
            if self.store.check(["takeover"]):
                return read_takeover(self.store.get("takeover")).step
            time.sleep(PARKED_POLL_S)

    # ------------------------------------------------------------ at the switch step

    def decision(self, step: int) -> str:
        """`go` or `abort`."""
        return self._first_word(f"decision/{step}", DECISION_TIMEOUT_S, "abort")

    def gather(self, gate: str, patience_s: float) -> None:
        """Block until every new member is ready to prove the ring: who proves must not hang because another never came.

        Raises Trouble when a leaver was lost, AttemptFailed when it is given up.
        """
        if self._role is not Role.LEAVING and self.store.add(f"{gate}/here", 1) == self._members:
            self.store.compare_set(gate, "", "whole")
        if self._role is Role.LEAVING:
            self._watch_across(gate, patience_s)
        if not self._has_come(gate, patience_s):
            raise AttemptFailed("not everybody came to the switch in time")
        self.check_gate(gate)

    def await_key(self, key: str, patience_s: float) -> bool:
        """Arriving: until our leaver has written `key`; False if it is late. Raises as `gather` does."""
        give_up_s = time.monotonic() + patience_s
        while True:
            asked_s = time.monotonic()
            if self.store.check([key]):
                return True
            took_s = time.monotonic() - asked_s
            self.look_across()
            self.check_gate("gate")
            if asked_s > give_up_s:
                return False
            time.sleep(min(POLL_S_MAX, max(POLL_S, took_s / POLL_SHARE)))

    def check_gate(self, gate: str) -> None:
        """Nothing if there is no word yet. Raises what the word means unless it is `whole`."""
        word = self.store.get(gate) if self.store.check([gate]) else b"whole"
        if word == b"trouble":
            raise Trouble
        if word != b"whole":
            raise AttemptFailed("given up by another rank")

    def vote(self) -> None:
        """The new ring is proved as far as we see. When every member says so, the verdict is `done`."""
        if self.store.add("proved", 1) == self._members:
            self.store.compare_set("verdict", "", "done")

    def verdict(self, patience_s: float) -> str:
        """`done` or `rollback REASON`."""
        self._has_come("verdict", patience_s)
        return self._first_word("verdict", 0.0, "rollback no verdict in time")

    def roll_back(self, reason: str) -> str:
        """Write `rollback` if there is no verdict yet, and wake whoever waits at a gate; returns the verdict."""
        verdict = self._first_word("verdict", 0.0, f"rollback {reason}")
        if verdict != "done":
            for gate in ("gate", "second gate"):
                self.store.compare_set(gate, "", "rollback")
        return verdict

    # ------------------------------------------------------------ the process across

    def look_across(self) -> None:
        """Arriving: tell the others when our leaver is gone."""
        if self._across is not None and self._is_alone():
            self._across = None
            self.store.set(f"lost/{self._rank}", "1")
            self.store.compare_set("gate", "", "trouble")

    def await_takeover(self) -> Takeover:
        """Arriving: what the survivors of a lost leaver agree on. Raises AttemptFailed."""
        give_up_s = time.monotonic() + TROUBLE_PATIENCE_S
        while not self.store.check(["takeover"]):
            self.look_across()
            if self.store.check(["verdict"]) or time.monotonic() > give_up_s:
                raise AttemptFailed("the survivors did not agree on a step")
            time.sleep(PARKED_POLL_S)
        return read_takeover(self.store.get("takeover"))

    def _watch_across(self, gate: str, patience_s: float) -> None:
        """Leaving: until there is a word under `gate`, see to it that there will be one if our twin is lost."""
        give_up_s = time.monotonic() + patience_s
        while not self.store.check([gate]) and time.monotonic() < give_up_s:
            if self._is_alone():
                self.roll_back(f"the twin of rank {self._rank} was lost")
            time.sleep(PARKED_POLL_S)  # the store may be across the link, and nobody waits for us any more

    def _is_alone(self) -> bool:
        """Has the process across ended? Looked at every LOOK_S."""
        now_s = time.monotonic()
        if self._across is None or now_s - self._looked_s < LOOK_S:
            return False
        self._looked_s = now_s
        return self._across.is_gone()

    # ------------------------------------------------------------ after the verdict `done`, until the first step is finished

    def settle(self) -> None:
        """A member of the new generation finished its first step. When the last one has, the leavers may go."""
        if not self._has_settled:
            self._has_settled = True
            if self.store.add("settled", 1) == self._members:
                self.store.compare_set("after", "", "retire")

    def is_settled(self) -> bool:
        """Has everybody finished the first step? From then on nobody goes back."""
        return bool(self.store.check(["after"])) and self.store.get("after") == b"retire"

    def await_retirement(self) -> str:
        """Leaving: empty when we may go. Else why the old generation goes on from the switch step, and we with it."""
        try:
            while not self.store.check(["after"]):
                if self._is_alone():
                    reason = f"the twin of rank {self._rank} was lost in its first step"
                    self.store.compare_set("after", "", f"fallback {reason}")
                time.sleep(LOOK_S)
            return self.store.get("after").decode().removeprefix("retire").removeprefix("fallback ")
        except dist.DistError:  # the store is gone: nobody can agree on going back any more
            return ""

    # ------------------------------------------------------------ words

    def _has_come(self, key: str, patience_s: float) -> bool:
        """Block until there is a word under `key`; False: there is none in time. Sleeps in the kernel: this rank may be training
        meanwhile, on the same core."""
        try:
            self.store.wait([key], timedelta(seconds=patience_s))
        except dist.DistStoreError:
            return False
        return True

    def _first_word(self, key: str, patience_s: float, otherwise: str) -> str:
        """The word that was written first under `key`; `otherwise` becomes it if there is none in time."""
        give_up_s = time.monotonic() + patience_s
        while not self.store.check([key]) and time.monotonic() < give_up_s:  # `wait` prints its time-out into the log
            time.sleep(POLL_S)
        return self.store.compare_set(key, "", otherwise).decode()
