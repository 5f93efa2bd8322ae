from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from restow.interrupts import uninterrupted


def test_an_interrupt_counts_when_the_moment_is_over():
    done: list[str] = []

    def work() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")
        done.append("what comes after")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_one_nothing_happens_and_other_threads_are_let_through():
    with uninterrupted():
        pass
    seen: list[int] = []

    def elsewhere() -> None:
        with uninterrupted():
            seen.append(1)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [1]


def test_what_is_started_meanwhile_can_be_interrupted():
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.pthread_sigmask(0, []))"
    with uninterrupted():
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True", "set()"]
