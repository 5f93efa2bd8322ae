"""Clusters that are simulated, from a few words or a file."""

from __future__ import annotations

import pytest

from restow.errors import TraceError
from restow.sim.machines import machines, read_machines


def test_machines_are_named_after_the_kind_of_their_devices():
    found = machines("2x4:V100,1x8:Tesla K80,1x4:V100")
    assert [(node.name, len(node.devices), node.devices[0].kind) for node in found.nodes] == [
        ("v100-0", 4, "V100"), ("v100-1", 4, "V100"), ("tesla-k80-0", 8, "Tesla K80"), ("v100-2", 4, "V100"),
    ]  # fmt: skip
    assert found.devices == 20
    assert machines("8x4").nodes[0].name == "gpu-0"


def test_a_file_says_what_links_and_devices_can_do(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("nodes: 2x4\nlink: 200 Mbit/s\nlocal: 60 GB/s\nmemory: 16GB\n")
    found = read_machines(str(path))
    assert found.link.bytes_per_s == 25e6
    assert {node.local_bytes_per_s for node in found.nodes} == {60e9}
    assert found.nodes[0].devices[0].memory_bytes == 16_000_000_000


@pytest.mark.parametrize("text", ["", "8", "8x", "x4", "0x4", "8x0", "8x4,", "8x4:", "-1x4", "8x4;8x4", "99999999x4", "1x9999"])
def test_what_is_no_cluster_is_told_with_an_example(text):
    with pytest.raises(TraceError, match=r"cluster is '.*'.*"):
        read_machines(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nodes: 8", "has no nodes"), ("[1, 2]", "has no nodes"), ("nodes: 2x4\nrack: 3", "unknown key 'rack'"),
        ("nodes: 2x4\nlink: fast", "link is 'fast'; write for example 10 Gbit/s"),
        ("nodes: 2x4\nlink: 0 Mbit/s", "link is '0 Mbit/s'"),
        ("nodes: 2x4\nmemory: lots", "memory is 'lots'"), ("nodes: [", "cannot be read as YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_named(tmp_path, content, message):
    path = tmp_path / "cluster.yaml"
    path.write_text(content)
    with pytest.raises(TraceError) as caught:
        read_machines(str(path))
    assert message in str(caught.value)
