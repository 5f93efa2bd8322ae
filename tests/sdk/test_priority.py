"""The kernel's part: a best-effort job on a processor core is put aside by the kernel, and comes back to its class."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from restow.gate import BEST_EFFORT, INTERLEAVE, PROTECTED, Gate, Keeper
from restow.sdk import priority as module
from restow.sdk.device import Device
from restow.sdk.passage import Passage
from restow.sdk.priority import Priority, is_background

needs_way_back = pytest.mark.skipif(not module._HAS_CLASSES or not module._can_return(), reason="needs CAP_SYS_NICE")


@needs_way_back
def test_threads_and_children_come_along_there_and_back():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    everybody = (os.getpid(), thread.native_id or 0, child.pid)
    priority = Priority()
    try:
        priority.set_background(True)
        assert [os.sched_getscheduler(pid) for pid in everybody] == [os.SCHED_IDLE] * 3
    finally:
        priority.set_background(False)
        assert [os.sched_getscheduler(pid) for pid in everybody] == [os.SCHED_OTHER] * 3
        stop.set()
        child.communicate(b"\n")


def test_where_it_must_stay_as_it_is_nothing_changes():
    priority = Priority(is_fixed=True)
    priority.set_background(True)
    assert not priority.is_background
    assert not is_background(os.getpid())


def test_without_a_way_back_nobody_goes(monkeypatch):
    monkeypatch.setattr(module, "_can_return", lambda: False)
    priority = Priority()
    priority.set_background(True)
    assert not priority.is_background
    assert not is_background(os.getpid())


def test_a_process_that_has_ended_is_not_in_the_background():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert not is_background(process.pid)


@needs_way_back
def test_a_protected_job_goes_over_the_head_of_a_holder_that_the_kernel_puts_aside(tmp_path):
    Keeper(tmp_path, 0).set_mode(INTERLEAVE)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert holder.stdin and holder.stdout
    try:
        assert holder.stdout.readline() == "holds\n"
        gate = Gate.join(tmp_path, 0, job="important", rank=0, level=PROTECTED)
        passage = Passage(gate, Device(torch.device("cpu")))
        passage.take()  # would wait for ever
        assert passage.holds and not gate.held
        passage.lend()
        assert not passage.holds
        assert gate.lesser_holder() == holder.pid, "the holder keeps it"
        passage.close()
    finally:
        holder.communicate("\n")


HOLDER = f"""
import sys
from pathlib import Path
from restow.gate import Gate
from restow.sdk.priority import Priority
gate = Gate.join(Path(sys.argv[1]), 0, job="background", rank=0, level={BEST_EFFORT})
gate.acquire()
Priority().set_background(True)
print("holds", flush=True)
sys.stdin.readline()
"""
