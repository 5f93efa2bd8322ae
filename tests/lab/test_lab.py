"""A lab is a small cluster: machines that reach one another, links that are as slow as asked, devices that are bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from restow.errors import NotFound, Refused, SetupError, SpecError, Unreachable
from restow.lab import Lab, availability
from tests.lab.wire import send, serve

pytestmark = pytest.mark.lab

FAST = None
BURN = "import time; end = time.monotonic() + 1\nwhile time.monotonic() < end: pass\nprint(time.process_time())"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Three machines, unshaped; each test puts back what it changed."""
    with Lab(nodes=3, devices=2, rate_bits_per_s=FAST) as lab:
        for node in lab.nodes.values():
            serve(node)
        yield lab


def output(lab: Lab, node: str, *argv: str) -> str:
    return subprocess.check_output(lab.nodes[node].enter_command(argv), text=True, timeout=30)


def test_nodes_reach_one_another_and_themselves_and_nothing_else(lab: Lab):
    assert send(lab, "m1", "m2").arrived
    assert send(lab, "m3", "m1").arrived
    assert send(lab, "m1", "m1").arrived
    routes = output(lab, "m1", "cat", "/proc/net/route").splitlines()[1:]
    assert [line.split()[0] for line in routes] == ["eth0"]  # its own network; no way out


def test_nothing_of_the_lab_is_in_our_own_network(lab: Lab):
    ours = Path("/proc/net/dev").read_text()
    assert "br0" not in ours
    assert "eth0" in output(lab, "m1", "cat", "/proc/net/dev")
    assert lab.nodes["m1"].address not in Path("/proc/net/fib_trie").read_text()


def test_a_slow_link_takes_the_time_that_its_rate_says(lab: Lab):
    lab.set_link("m1", rate_bits_per_s=20e6)
    try:
        there, back = send(lab, "m1", "m2", 2_000_000), send(lab, "m2", "m1", 2_000_000)
        beside = send(lab, "m2", "m3", 2_000_000)
    finally:
        lab.set_link("m1", rate_bits_per_s=FAST)
    assert there.arrived
    assert back.arrived
    assert there.seconds > 0.6  # 0.8 at 20 Mbit/s
    assert back.seconds > 0.6  # a NIC has its rate in both directions
    assert beside.seconds < 0.6
    assert send(lab, "m1", "m2", 2_000_000).seconds < 0.6


def test_a_link_between_two_nodes_can_be_slower_than_their_nics(lab: Lab):
    lab.set_link("m1", "m2", rate_bits_per_s=20e6)
    try:
        assert send(lab, "m1", "m2", 2_000_000).seconds > 0.6
        assert send(lab, "m2", "m1", 2_000_000).seconds > 0.6
        assert send(lab, "m1", "m3", 2_000_000).seconds < 0.6
    finally:
        lab.set_link("m2", "m1", rate_bits_per_s=None)  # the order of the two does not matter
    assert lab.links()["pairs"] == []
    assert send(lab, "m1", "m2", 2_000_000).seconds < 0.6


def test_the_interface_counts_hardly_more_than_the_payload(lab: Lab):
    lab.set_link("m1", rate_bits_per_s=1e9)
    try:
        received, sent = lab.counters("m1")
        assert send(lab, "m1", "m2", 20_000_000).arrived
        received, sent = (now - before for now, before in zip(lab.counters("m1"), (received, sent), strict=True))
    finally:
        lab.set_link("m1", rate_bits_per_s=FAST)
    assert 20_000_000 < sent < 20_200_000
    assert received < 200_000


def test_a_cut_node_is_reached_by_nobody_until_it_is_healed(lab: Lab):
    lab.cut("m2")
    try:
        assert not send(lab, "m1", "m2", timeout_s=0.5).arrived
        assert send(lab, "m1", "m3").arrived
        assert send(lab, "m2", "m2").arrived  # it still reaches itself
        assert lab.links()["nodes"]["m2"]["is_cut"]
    finally:
        lab.heal("m2")
    assert send(lab, "m1", "m2").arrived


def test_a_cut_between_two_nodes_leaves_the_way_to_the_third(lab: Lab):
    lab.cut("m1", "m2")
    try:
        assert not send(lab, "m1", "m2", timeout_s=0.5).arrived
        assert not send(lab, "m2", "m1", timeout_s=0.5).arrived
        assert send(lab, "m1", "m3").arrived
        assert send(lab, "m3", "m2").arrived
    finally:
        lab.heal("m1", "m2")
    assert send(lab, "m1", "m2").arrived


def test_a_transfer_survives_a_change_of_rate_and_a_cut_in_its_middle(lab: Lab):
    lab.set_link("m1", rate_bits_per_s=20e6)
    try:
        argv = lab.nodes["m1"].enter_command([sys.executable, "-c", SENDER, lab.nodes["m2"].address])
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as sender:
            assert sender.stdout
            assert sender.stdout.readline() == "half\n"
            lab.cut("m1")
            lab.heal("m1")
            lab.set_link("m1", rate_bits_per_s=100e6)
            lab.set_link("m1", "m2", rate_bits_per_s=50e6)
            assert sender.stdout.readline() == "arrived\n"
    finally:
        lab.set_link("m1", "m2", rate_bits_per_s=None)
        lab.set_link("m1", rate_bits_per_s=FAST)


SENDER = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 5000), timeout=30)
connection.sendall(bytes(2_000_000))
print("half", flush=True)
connection.sendall(bytes(2_000_000))
connection.shutdown(socket.SHUT_WR)
print("arrived" if connection.recv(1) == b"k" else "lost", flush=True)
"""


def test_delay_is_added_where_the_kernel_can_and_refused_where_it_cannot(lab: Lab):
    if "netem" in availability()[1]:
        with pytest.raises(SetupError, match="netem"):
            lab.set_link("m1", delay_s=0.01)
        with pytest.raises(SetupError, match="netem"):
            lab.set_link("m1", "m2", delay_s=0.01)
        assert send(lab, "m1", "m2").arrived  # as before
        assert lab.links()["pairs"] == []
        return
    for node in ("m1", "m2"):
        lab.set_link(node, delay_s=0.05)
    try:
        assert send(lab, "m1", "m2").seconds > 0.15  # a round trip to connect, one for the answer: 0.2
    finally:
        for node in ("m1", "m2"):
            lab.set_link(node, delay_s=0.0)
    assert send(lab, "m1", "m2").seconds < 0.15


def test_a_program_in_a_node_is_told_its_devices_and_keeps_our_environment(lab: Lab):
    script = "import json, os; print(open(os.environ['RESTOW_DEVICES']).read()); print(os.environ['LANTERN'])"
    argv = lab.nodes["m2"].enter_command([sys.executable, "-c", script])
    text = subprocess.check_output(argv, text=True, env={**os.environ, "LANTERN": "lit"}, timeout=30)
    assert text.endswith("lit\n")
    devices = json.loads(text.removesuffix("lit\n"))["devices"]
    assert [device["index"] for device in devices] == [0, 1]
    assert {device["kind"] for device in devices} == {"cpu"}
    assert all(device["core"] in os.sched_getaffinity(0) for device in devices)


def test_a_program_in_a_node_is_told_the_nodes_name_and_address_so_that_restow_up_works_there(lab: Lab):
    said = output(lab, "m2", "sh", "-c", "echo $RESTOW_NODE_NAME $RESTOW_NODE_ADDRESS")
    assert said.split() == ["m2", lab.nodes["m2"].address]


def test_a_device_gets_no_more_than_its_share_of_a_core(lab: Lab):
    devices = [device for node in lab.nodes.values() for device in json.loads(node.devices_file.read_text())["devices"]]
    if devices[0]["cgroup"] is None:
        pytest.skip(f"NOT TESTED: {lab.notes}")
    assert len({device["share"] for device in devices}) == 1
    assert len({device["cgroup"] for device in devices}) == 6
    device = devices[0]
    into = f"echo $$ > {device['cgroup']}/cgroup.procs; exec {sys.executable} -c '{BURN}'"
    burnt_s = float(output(lab, "m1", "sh", "-c", into))
    assert 0.05 < burnt_s < device["share"] + 0.15  # of one second; the first period is free, timers are late


def test_exit_codes_and_missing_programs_come_back_as_in_a_shell(lab: Lab):
    assert lab.nodes["m1"].popen(["sh", "-c", "exit 7"]).wait(timeout=30) == 7
    missing = lab.nodes["m1"].popen(["no-such-program"], stderr=subprocess.PIPE, text=True)
    assert "no-such-program" in missing.communicate(timeout=30)[1]
    assert missing.returncode == 127


def test_wrong_names_and_numbers_are_refused_in_one_line(lab: Lab):
    with pytest.raises(NotFound, match="'m9'; there are m1, m2, m3"):
        lab.cut("m9")
    with pytest.raises(NotFound, match="'m9'"):
        lab.counters("m9")
    with pytest.raises(NotFound, match="'m9'"):
        lab.node("m9")
    with pytest.raises(SpecError, match="m1 was named twice"):
        lab.cut("m1", "m1")
    with pytest.raises(SpecError, match="rate is -1"):
        lab.set_link("m1", rate_bits_per_s=-1)
    with pytest.raises(SpecError, match="nodes is 0"):
        Lab(nodes=0)
    with pytest.raises(SpecError, match="devices is -1"):
        Lab(devices=-1)
    with pytest.raises(SpecError, match="share is 3"):
        Lab(share=3)
    with pytest.raises(SpecError, match=r"name is '\.\./etc'"):
        Lab(name="../etc")
    with pytest.raises(Refused, match="is up already"):
        Lab(name=lab.name)


def test_two_labs_side_by_side_do_not_meet(lab: Lab):
    with Lab(nodes=1, devices=0) as other:
        assert other.nodes["m1"].address not in {node.address for node in lab.nodes.values()}
        serve(other.nodes["m1"])
        client = other.nodes["m1"].popen(["cat", "/proc/net/dev"], stdout=subprocess.PIPE, text=True)
        assert "eth0" in client.communicate(timeout=30)[0]
        with pytest.raises(NotFound):
            Lab.open("no-such-lab")
        assert Lab.open(other.name).nodes.keys() == {"m1"}
    assert send(lab, "m1", "m2").arrived  # the end of the other did nothing to this one


def test_a_lab_that_is_down_says_so():
    lab = Lab(nodes=1, devices=0)
    lab.close()
    lab.close()
    with pytest.raises(Unreachable, match="does not answer"):
        lab.cut("m1")
    enter = subprocess.run(lab.nodes["m1"].enter_command(["true"]), capture_output=True, text=True, timeout=30)
    assert enter.returncode == 125
    assert "cannot enter the node" in enter.stderr
