"""A leaver's private state (random generators, data position) in the store of an attempt, where it outlives the leaver.

Signed with the job's secret, since whoever reads it unpickles it. Knows nothing of what is in it, nor of when it is needed.
"""

from __future__ import annotations

import hmac

import torch.distributed as dist

STORED_PRIVATE_BYTES_MAX = 1 << 20  # random generators, positions and BatchNorm buffers are tens of kilobytes
_SIGNATURE_BYTES = 32
_STEP_BYTES = 8


class NotSigned(Exception):
    """What is in the store was not put there by this job."""


class PrivateStore:
    """Of one rank in one attempt."""

    def __init__(self, secret: bytes, generation: int, rank: int):
        self._secret, self._generation, self._rank = secret, generation, rank

    # ------------------------------------------------------------ at the switch step

    @property
    def key(self) -> str:
        return f"private/{self._rank}"

    def hand_over(self, store: dist.Store, private: bytes) -> bytes:
        """The leaver puts it into the store; what is too large for that is returned and must be served directly."""
        is_small = len(private) <= STORED_PRIVATE_BYTES_MAX
        store.set(self.key, self._signed(private) if is_small else b"")  # type: ignore[arg-type]
        return b"" if is_small else private

    def received(self, store: dist.Store) -> bytes | None:
        """What was handed over, once `key` is there; None: it is served directly. Raises NotSigned."""
        signed = store.get(self.key)
        return self._checked(signed) if signed else None

    # ------------------------------------------------------------ at each save point while a switch is near

    def keep(self, store: dist.Store, step: int, private: bytes) -> None:
        """That of this save point, and of the one before, stay there."""
        signed = b"" if len(private) > STORED_PRIVATE_BYTES_MAX else self._signed(private)
        store.set(f"{self.key}/{step % 2}", step.to_bytes(_STEP_BYTES, "big") + signed)  # type: ignore[arg-type]

    def kept(self, store: dist.Store, step: int) -> bytes:
        """That of the save point after `step` steps. Raises NotSigned."""
        return self._checked(store.get(f"{self.key}/{step % 2}")[_STEP_BYTES:])

    def kept_steps(self, store: dist.Store) -> tuple[int, ...]:
        """The steps whose private state is there."""
        raw = [store.get(key) for n in (0, 1) if store.check([key := f"{self.key}/{n}"])]
        return tuple(int.from_bytes(word[:_STEP_BYTES], "big") for word in raw if len(word) > _STEP_BYTES)

    # ------------------------------------------------------------ signatures

    def _signed(self, private: bytes) -> bytes:
        return self._signature(private) + private

    def _checked(self, signed: bytes) -> bytes:
        signature, private = signed[:_SIGNATURE_BYTES], signed[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(private)):  # never unpickle what a stranger put there
            raise NotSigned(f"the private state of rank {self._rank} is not signed by this job")
        return private

    def _signature(self, private: bytes) -> bytes:
        return hmac.digest(self._secret, b"%d/%d/" % (self._generation, self._rank) + private, "sha256")
