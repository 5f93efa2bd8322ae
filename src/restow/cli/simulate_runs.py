"""The runs of `restow simulate`: one in this process, or several at once, each in a process of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from restow.cli.progress import Tell, progress
from restow.errors import Refused
from restow.interrupts import uninterrupted
from restow.own_policies import Bounded, find_policy
from restow.sim.history import History, history
from restow.sim.machines import Machines
from restow.sim.outcome import Outcome
from restow.sim.recorder import Recorder
from restow.sim.simulation import SimConfig, Simulation
from restow.sim.traces import Trace
from restow.sim.world import World

DECISION_S_MAX = 60.0
TELL_S = 0.2  # from one word of a process about its jobs to the next
PR_SET_PDEATHSIG = 1  # of prctl(2)

Result = tuple[Outcome, History | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one process simulates."""

    trace: Trace
    machines: Machines
    world: Callable[[], World]
    policy: str
    config: SimConfig
    is_recorded: bool  # is a history wanted?


def run_all(runs: Sequence[Run]) -> list[Result]:
    """In the order of the runs. A bar counts the jobs of all of them that have ended."""
    jobs = sum(len(run.trace.rows) for run in runs)
    with progress(f"{runs[0].policy}: " if len(runs) == 1 else f"{len(runs)} runs, jobs: ", jobs) as tell:
        return [_run(runs[0], tell)] if len(runs) == 1 else _run_beside(runs, tell)


def _run(run: Run, tell: Tell | None) -> Result:
    recorder = Recorder(run.config.begins_s) if run.is_recorded else None
    policy = Bounded(find_policy(run.policy), DECISION_S_MAX)
    try:
        simulation = Simulation(run.trace.rows, run.machines, run.world(), policy, run.config, recorder)
        outcome = simulation.run(tell)
    except Refused as error:
        raise Refused(f"{run.policy}: {error}") from None
    from_s = max(run.config.begins_s, run.trace.rows[0].submitted_s)
    return outcome, history(recorder.stays, run.machines, from_s, simulation.troubles) if recorder else None


def _run_beside(runs: Sequence[Run], tell: Tell | None) -> list[Result]:
    """As many at a time as there are cores. Whatever ends this ends them: no pool, whose own end waits for its workers."""
    waiting, results = list(enumerate(runs)), dict[int, Result]()
    ended = [0] * len(runs)  # jobs, by run
    running: dict[Any, tuple[int, Any]] = {}  # our end of its line → its number, its process
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                number, run = waiting.pop(0)
                ours, theirs = multiprocessing.Pipe(duplex=False)
                fork = multiprocessing.get_context("fork")
                process = fork.Process(target=_work, args=(run, theirs, os.getpid(), tell is not None))
                with uninterrupted():
                    process.start()
                    running[ours] = number, process
                theirs.close()
            ready: list[Any] = multiprocessing.connection.wait(list(running))
            for line in ready:
                number, process = running[line]
                said = _hear(line, runs[number])
                if isinstance(said, int):
                    ended[number] = said
                else:
                    del running[line]
                    process.join()
                    results[number], ended[number] = said, len(runs[number].trace.rows)
                if tell:
                    tell(sum(ended), 0.0)
    finally:
        for _, process in running.values():
            process.kill()
    return [results[number] for number in range(len(runs))]


def _hear(line: Any, run: Run) -> Any:
    """How many jobs of it have ended, or what came of it. Raises what went wrong there."""
    try:
        said = line.recv()
    except EOFError:
        why = "its run ended without a word: the policy ended its process, or the memory was not enough"
        raise Refused(f"{run.policy}: {why}") from None
    if isinstance(said, BaseException):
        raise said
    return said


def _work(run: Run, line: Any, parent: int, is_watched: bool) -> None:
    """In a process of its own. Ctrl-C is the parent's business, and without a parent there is nobody to work for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    told_s = time.monotonic()

    def tell(done: int, now_s: float) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= TELL_S:
            told_s = time.monotonic()
            line.send(done)

    try:
        line.send(_run(run, tell if is_watched else None))
    except Exception as error:  # told by the parent, as if it had happened there
        line.send(error)
