"""The random generators of a process: taken, put back, and seeded from numbers that do not depend on where it runs.

Covers Python's `random`, NumPy's global generator, torch on the CPU and on every visible CUDA device. Does not know
generators that a script made itself; a `torch.Generator` can be carried by name (see boxes.py).
"""

from __future__ import annotations

import ctypes
import hashlib
import pickle
import random
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from restow.errors import ScriptError


@dataclass(frozen=True, slots=True)
class RandomState:
    """Where all generators of one process stand. Picklable, about 10 KB."""

    python: bytes  # pickled, as NumPy's: most steps draw from neither, and then the pickle of the step before is good
    numpy: bytes
    torch: bytes
    cuda: tuple[bytes, ...] = ()  # one per visible device; empty if this process never used CUDA

    def parts(self) -> tuple[bytes, bytes, bytes, tuple[bytes, ...]]:
        """Its fields, which are pickled in half the time."""
        return self.python, self.numpy, self.torch, self.cuda


def capture() -> RandomState:
    """Where the generators stand now. About 20 microseconds, 100 where Python's and NumPy's have been drawn from."""
    return RandomState(
        _python.capture(),
        _numpy.capture(),
        torch.default_generator.get_state().numpy().tobytes(),
        tuple(g.get_state().numpy().tobytes() for g in _cuda_generators()),
    )


def restore(state: RandomState) -> None:
    """Put every generator where `state` says. Raises ScriptError if fewer CUDA devices are visible than it has."""
    devices = torch.cuda.device_count() if state.cuda else 0
    if len(state.cuda) > devices:
        raise ScriptError(
            f"the random state has {len(state.cuda)} CUDA devices, this process sees {devices}; "
            "give both ranks the same number of visible devices"
        )
    random.setstate(pickle.loads(state.python))
    numpy.random.set_state(pickle.loads(state.numpy))
    torch.default_generator.set_state(_tensor(state.torch))
    for device, raw in enumerate(state.cuda):
        torch.cuda.set_rng_state(_tensor(raw), device)  # waits for CUDA's own start where it has not begun


_Words = ctypes.c_char * (625 * 4)  # a view of the memory of a Mersenne twister: 624 words, and a position before or behind them


class _Python:
    """The pickled state of Python's own generator, pickled again only when it has changed. To ask for it makes 625 numbers; whether
    it has changed since, its memory shows, which in CPython is a position and 624 words behind the object's head."""

    def __init__(self) -> None:
        self._before: tuple[bytes, float | None] = b"", None
        self._pickled = b""

    def capture(self) -> bytes:
        before = self._read()
        if not before[0] or before != self._before:
            state = random.getstate()
            self._pickled = pickle.dumps(state, 5)
            words = state[1]
            is_as_thought = before[0] == struct.pack("=625I", words[-1], *words[:-1])
            self._before = before if is_as_thought else (b"", None)
        return self._pickled

    def _read(self) -> tuple[bytes, float | None]:
        """Its memory, and a normal number that it keeps for the next call."""
        generator: Any = getattr(random, "_inst", None)
        if generator is not _INST or sys.implementation.name != "cpython":
            return b"", None
        return _INST_MEMORY.raw, getattr(generator, "gauss_next")  # noqa: B009 - its type does not tell of it


_INST = random._inst
_INST_MEMORY = _Words.from_address(id(_INST) + object.__basicsize__)


class _NumPy:
    """The pickled state of NumPy's global generator. To ask for it takes 40 microseconds; whether it has changed since, its memory
    shows in one: 624 words and a position. That says nothing of a second normal number kept for the next call, so while there is
    one the state is asked for."""

    def __init__(self) -> None:
        self._memory = b""
        self._pickled = b""
        self._generator: Any = None
        self._view = _Words()  # of its memory

    def capture(self) -> bytes:
        memory = self._read()
        if not memory or memory != self._memory:
            state: Any = numpy.random.get_state(legacy=False)
            self._pickled = pickle.dumps(state, 5)
            self._memory = b"" if state.get("has_gauss", 1) else memory
        return self._pickled

    def _read(self) -> bytes:
        generator = numpy.random.get_bit_generator()  # type: ignore[attr-defined]
        if type(generator) is not numpy.random.MT19937:
            return b""  # somebody's own
        if generator is not self._generator:
            self._generator, self._view = generator, _Words.from_address(generator.ctypes.state_address)
        return self._view.raw


_python, _numpy = _Python(), _NumPy()


def mix(*words: int) -> int:
    """One 63-bit seed from several numbers; the same on every machine and in every run."""
    text = ",".join(map(str, words)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def seed_all(seed: int) -> None:
    """Seed the CPU generators: what a loader's worker process uses. About 25 microseconds."""
    random.seed(seed)
    numpy.random.seed(seed & 0xFFFF_FFFF)
    torch.default_generator.manual_seed(seed)


def seed_rank(seed: int) -> None:
    """Seed every generator that travels. Where CUDA has not begun it is seeded when it begins."""
    seed_all(seed)
    torch.cuda.manual_seed_all(seed)


class Bubble:
    """CPU generators of their own for a piece of code, so that what it draws disturbs nobody and can be repeated.

        bubble = Bubble(seed)
        with bubble.inside():      # goes on where the last visit ended; about 160 microseconds per visit
            item = next(iterator)
    """

    def __init__(self, seed: int):
        self._seed = seed
        self._state: tuple[Any, Any, torch.Tensor] | None = None

    @contextmanager
    def inside(self) -> Iterator[None]:
        outside = _swap(self._state)
        if self._state is None:
            seed_all(self._seed)
        try:
            yield
        finally:
            self._state = _swap(outside)


def _swap(state: tuple[Any, Any, torch.Tensor] | None) -> tuple[Any, Any, torch.Tensor]:
    """Take the CPU generators' state and, unless None, put another in its place."""
    taken = random.getstate(), numpy.random.get_state(legacy=False), torch.default_generator.get_state()
    if state is not None:
        random.setstate(state[0])
        numpy.random.set_state(state[1])
        torch.default_generator.set_state(state[2])
    return taken


def _tensor(raw: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


def _cuda_generators() -> tuple[torch.Generator, ...]:
    """Asking must not start CUDA: that would cost a context on every visible device."""
    return tuple(torch.cuda.default_generators) if torch.cuda.is_initialized() else ()
