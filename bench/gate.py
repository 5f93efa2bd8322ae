"""What passing the gate of a device costs, and what happens to it when its members are killed.

    python bench/gate.py --json gate.json

pair       acquire and release when nobody else comes
poll       the question of a yield point
handover   from the call of release in one process to the return of acquire in another that was asleep
fairness   grants of two processes that hold for 2 ms and come back at once
kills      SIGKILL to a random member, mostly the holder, at a random moment, while a child that it forked lives on; how long
           until the next one is in. A witness, apart from the gate, tells whether two ever held the device at once.

Needs no root, no torch and no lab. All processes are forked from this one.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "src")]

from bench.options import new_file  # noqa: E402
from restow.gate import Gate, Keeper  # noqa: E402

PATIENCE_S = 5.0  # nobody let in for so long: wedged
MEMBERS = 4
_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    options = _options()
    with place() as folder:
        numbers = {
            **alone(folder, options.pairs),
            **handed_over(folder, options.handovers),
            **fairness(folder, options.seconds),
        }
    with place() as folder:
        numbers |= killed(folder, options.kills, options.seed)
    options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    print(
        f"pair         {_with_quartiles(numbers, 'pair_us')} us, at best {numbers['pair_us_best']:.1f}\n"
        f"poll         {_with_quartiles(numbers, 'poll_us', 3)} us\n"
        f"hand-over    {_with_quartiles(numbers, 'handover_us')} us, 99 % within {numbers['handover_us_p99']:.0f}\n"
        f"fairness     {' : '.join(str(grants) for grants in numbers['fairness_grants'])} grants in {options.seconds:g} s, "
        f"longest wait {numbers['fairness_wait_ms_max']:.1f} ms\n"
        f"kills        {numbers['kills']} ({numbers['kills_of_holder']} of the holder): next one in after "
        f"{_with_quartiles(numbers, 'recovery_ms')} ms, 99 % within {numbers['recovery_ms_p99']:.1f}, "
        f"at most {numbers['recovery_ms_max']:.1f}; "
        f"{numbers['wedged']} wedged, {numbers['double_holders']} double holders"
    )


def _with_quartiles(numbers: dict[str, Any], name: str, digits: int = 1) -> str:
    low, high = numbers[f"{name}_quartiles"]
    return f"{numbers[name]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _summary(name: str, values: list[float]) -> dict[str, Any]:
    low, _, high = quantiles(values, n=4)
    return {name: median(values), f"{name}_quartiles": [low, high]}


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A folder in shared memory."""
    folder = Path(tempfile.mkdtemp(prefix="restow-gate-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fork(do: Callable[[], None]) -> int:
    """A process that does this and ends."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        do()
        code = 0
    except KeyboardInterrupt:
        pass
    finally:
        os._exit(code)


def words(count: int) -> memoryview:
    """Words of 8 bytes that all processes forked from here share."""
    return memoryview(mmap.mmap(-1, max(4096, 8 * count))).cast("q")


# ---- costs


def alone(folder: Path, pairs: int) -> dict[str, Any]:
    gate = Gate.join(folder, 0, job="alone", rank=0)
    acquire, release, poll, now_ns = gate.acquire, gate.release, gate.poll, time.perf_counter_ns
    pair_us, poll_us = [], []
    for _ in range(pairs // 100):
        begin_ns = now_ns()
        for _ in range(100):
            acquire()
            release()
        pair_us.append((now_ns() - begin_ns) / 1e5)
        begin_ns = now_ns()
        for _ in range(100):
            poll()
        poll_us.append((now_ns() - begin_ns) / 1e5)
    keeper = Keeper(folder, 0)
    keeper.set_mode(0)
    begin_ns = now_ns()
    for _ in range(pairs):
        acquire()
        release()
    free_us = (now_ns() - begin_ns) / 1e3 / pairs
    keeper.close()
    gate.leave()
    best_us = min(pair_us)  # of 100 pairs: what it costs when the machine does nothing else
    return {
        **_summary("pair_us", pair_us), "pair_us_best": best_us, **_summary("poll_us", poll_us), "pair_disarmed_us": free_us
    }  # fmt: skip


def handed_over(folder: Path, count: int) -> dict[str, Any]:
    """Two processes take turns; who is let in was asleep, since the other slept while it held."""
    shared = words(count + 2)

    def run(job: str) -> None:
        gate = Gate.join(folder, 1, job=job, rank=0)
        while shared[0] < count:
            gate.acquire()
            now_ns = time.monotonic_ns()
            if shared[1] and shared[0] < count:
                shared[2 + shared[0]] = now_ns - shared[1]
                shared[0] += 1
            until_s = time.monotonic() + 0.1
            while not gate.crowded() and shared[0] < count and time.monotonic() < until_s:
                time.sleep(0.0002)
            time.sleep(0.001)  # so that the other is asleep for certain
            shared[1] = time.monotonic_ns() if gate.crowded() else 0
            gate.release()
        gate.leave()

    _wait_for([fork(lambda job=job: run(job)) for job in "ab"])  # type: ignore[misc]
    handover_us = [value / 1e3 for value in shared[2 : 2 + count].tolist()]
    return {**_summary("handover_us", handover_us), "handover_us_p99": quantiles(handover_us, n=100)[98]}


def fairness(folder: Path, seconds: float, hold_s: float = 0.002) -> dict[str, Any]:
    until_s, shared = time.monotonic() + seconds, words(4)

    def run(number: int) -> None:
        gate = Gate.join(folder, 2, job=f"job-{number}", rank=0)
        while time.monotonic() < until_s:
            begin_ns = time.monotonic_ns()
            gate.acquire()
            shared[number] += 1
            shared[2 + number] = max(shared[2 + number], time.monotonic_ns() - begin_ns)
            time.sleep(hold_s)
            gate.release()
        gate.leave()

    _wait_for([fork(lambda number=number: run(number)) for number in range(2)])  # type: ignore[misc]
    return {"fairness_grants": shared[:2].tolist(), "fairness_wait_ms_max": max(shared[2:4].tolist()) / 1e6}


def _wait_for(pids: list[int]) -> None:
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"process {pid} ended with {status}"


# ---- kills


class Witness:
    """What members tell of themselves, apart from the gate: who believes to hold the device, and what it found there."""

    INSIDE, DOUBLES, ENTERED, KILLS, PLACES = 0, 1, 2, 3, 8
    PID, CHILD, BEATS = range(3)  # of each member, from PLACES on
    VICTIM, PLACE, KILLED_NS, LET_IN_NS = range(4)  # of each kill, after the members

    def __init__(self, kills: int):
        self.words = words(self.PLACES + 4 * (MEMBERS + kills))

    def place(self, member: int, what: int) -> int:
        return self.PLACES + 4 * member + what

    def kill(self, number: int, what: int) -> int:
        return self.PLACES + 4 * (MEMBERS + number) + what

    def enter(self, me: int) -> None:
        """Whoever is found inside must have been killed there, and must not move any more."""
        words, now_ns = self.words, time.monotonic_ns()
        before, words[self.INSIDE] = words[self.INSIDE], me
        if before:
            kills = range(words[self.KILLS] - 1, -1, -1)
            kill = next((kill for kill in kills if words[self.kill(kill, self.VICTIM)] == before), None)
            if kill is None:
                words[self.DOUBLES] += 1
            else:
                beats = self.place(words[self.kill(kill, self.PLACE)], self.BEATS)
                seen = words[beats]
                time.sleep(0.0005)
                words[self.DOUBLES] += words[beats] != seen
                words[self.kill(kill, self.LET_IN_NS)] = now_ns
        words[self.ENTERED] += 1

    def stay(self, me: int, member: int, hold_s: float) -> None:
        words, beats, until_s = self.words, self.place(member, self.BEATS), time.monotonic() + hold_s
        while True:
            words[beats] += 1
            if words[self.INSIDE] != me:
                words[self.DOUBLES] += 1
            if time.monotonic() >= until_s:
                break
        words[self.INSIDE] = 0


def member_loop(folder: Path, witness: Witness, member: int, seed: int) -> None:
    """Hold for some moments, again and again, and look whether anybody else is inside."""
    chance, me = random.Random(seed), os.getpid()
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    witness.words[witness.place(member, Witness.CHILD)] = child
    gate = Gate.join(folder, 0, job=f"job-{member}", rank=0)
    witness.words[witness.place(member, Witness.PID)] = me
    while True:
        gate.acquire()
        witness.enter(me)
        witness.stay(me, member, chance.choice((0.0, 0.0, 0.0003, 0.001, 0.004)))
        gate.release()
        if chance.random() < 0.3:
            time.sleep(chance.random() * 0.002)


def killed(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill one after the other; a new one takes the place of each."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # the children of the killed come to us, to be reaped
    chance, witness, wedged = random.Random(seed), Witness(kills), 0
    words = witness.words
    places = [(witness.place(member, Witness.PID), witness.place(member, Witness.CHILD)) for member in range(MEMBERS)]

    def start(member: int) -> None:
        words[places[member][0]] = 0
        number = chance.randrange(1 << 30)
        fork(lambda: member_loop(folder, witness, member, number))
        assert _until(lambda: words[places[member][0]] != 0), f"member {member} did not come in"

    try:
        for member in range(MEMBERS):
            start(member)
        for kill in range(kills):
            time.sleep(chance.random() * 0.006)
            inside = words[Witness.INSIDE]
            holding = [
                member for member in range(MEMBERS) if words[places[member][0]] == inside and chance.random() < 0.8
            ]
            member = holding[0] if holding else chance.randrange(MEMBERS)
            pid, child = (words[place] for place in places[member])
            words[witness.kill(kill, Witness.PLACE)] = member
            words[witness.kill(kill, Witness.VICTIM)] = pid
            words[Witness.KILLS] = kill + 1
            words[witness.kill(kill, Witness.KILLED_NS)] = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            entered = words[Witness.ENTERED]
            wedged += not _until(lambda entered=entered: words[Witness.ENTERED] > entered)  # type: ignore[misc]
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            start(member)
        double_holders = words[Witness.DOUBLES]  # before the rest is killed, of which the witness does not know
    finally:
        for pid in (words[place] for member in places for place in member):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                if pid:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    recovery_ms = [
        (let_in_ns - words[witness.kill(kill, Witness.KILLED_NS)]) / 1e6
        for kill in range(kills)
        if (let_in_ns := words[witness.kill(kill, Witness.LET_IN_NS)])
    ]
    return {
        "kills": kills,
        "kills_of_holder": len(recovery_ms),
        **(_summary("recovery_ms", recovery_ms) if len(recovery_ms) > 1 else {}),
        "recovery_ms_p99": quantiles(recovery_ms, n=100)[98] if len(recovery_ms) > 1 else 0.0,
        "recovery_ms_max": max(recovery_ms, default=0.0),
        "wedged": wedged,
        "double_holders": double_holders,
        "entries": words[Witness.ENTERED],
        "seed": seed,
    }


def _until(condition: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.0003)
    return True


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, required=True, help="write the numbers here")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1, help="of the moments and the victims")
    parser.add_argument("--pairs", type=int, default=50_000)
    parser.add_argument("--handovers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long two processes compete")
    return parser.parse_args()


if __name__ == "__main__":
    main()
